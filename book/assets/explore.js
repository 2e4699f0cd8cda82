/* The page "Explore the results": fills the figure (Plotly) and the table (itables) from explore-data.js. */
(function () {
  "use strict";
  const { runs, keys, rows, captions, styles } = window.exploreData;
  const all = rows.map(([run, key, value, low, high, n, n_patients, positives]) => (
    { ...runs[run], ...keys[key], value, low, high, n, n_patients, positives }));
  const node = (name) => document.getElementById(`explore-${name}`);
  const unique = (items) => [...new Set(items)];
  const pick = (items, name) => items.map((item) => item[name]);
  const whole = (v) => v.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const four = (v) => (Math.abs(v) >= 1000 ? whole(v) : v.toPrecision(4));

  // ---- the table: itables asks for its rows and for what a cell shows ----
  const page = document.documentElement; // itables reads its dark mode from a class, the theme writes it as data
  const shade = () => page.classList.toggle("dark", page.dataset.theme === "dark");
  new MutationObserver(shade).observe(page, { attributeFilter: ["data-theme"] });
  shade();
  const last = (sign) => (a, b) => (a === null) - (b === null) || sign * (a - b); // rows without a value
  node("rows_fallback").remove(); // itables' table for pages without scripts: it has no rows here
  window.exploreRows = (done) => {
    Object.assign(window.$.fn.dataTable.ext.type.order, { "measured-asc": last(1), "measured-desc": last(-1) });
    done({ data: all });
  };
  window.exploreClear = (table) => {
    table.search("").columns().search("");
    table.columns().columnControl.searchClear().draw();
  };
  window.exploreCell = (name, value, type, row) => {
    if (type !== "display" || name === "seed") return value;
    if (value === null) return name === "value" ? "not measured" : "";
    if (typeof value === "number") return ["value", "low", "high"].includes(name) ? four(value) : whole(value);
    const cell = Object.assign(document.createElement(name === "run" && row.page ? "a" : "span"), { textContent: value });
    if (cell.tagName === "A") cell.href = row.page;
    return cell.outerHTML;
  };

  // ---- the figure ----
  const CHOICES = ["source", "task", "label", "metric"];
  const evaluated = all.filter((row) => row.role && row.value !== null);
  let marks = []; // the rows that the figure shows
  function fill(name, values, texts) { // a drop-down keeps its choice where it can
    const select = node(name), before = select.value;
    select.replaceChildren(...values.map((value, k) => new Option((texts || values)[k], value)));
    if (values.includes(before)) select.value = before;
    return select.value;
  }
  function mean(own) { // of runs of one size; its bar is from the lowest to the highest seed
    const values = pick(own, "value"), ends = own.length > 1 ? [Math.min(...values), Math.max(...values)] : [null, null];
    return { ...own[0], value: values.reduce((sum, v) => sum + v, 0) / own.length, low: ends[0], high: ends[1], page: "",
      run: own[0].run.replace(/s\d+-[0-9a-f]+$/, ""), seed: pick(own, "seed").join(", "), seeds: own.length };
  }
  function told(row) {
    const ends = row.low === null ? "" : `, ${row.seeds ? "seeds from" : "95% interval"} ${four(row.low)} to ${four(row.high)}`;
    const counts = { n: "test images", n_patients: "patients", positives: "positive labels" };
    return [
      `${row.run}: ${row.curve}, ${row.seeds > 1 ? "mean of seeds" : "seed"} ${row.seed}`,
      `${whole(row.n_images)} images, ${whole(row.samples_seen)} samples seen`,
      `${row.metric} ${four(row.value)}${ends}`,
      Object.keys(counts).filter((name) => row[name] !== null).map((name) => `${whole(row[name])} ${counts[name]}`).join(", "),
    ];
  }
  const hover = (points) => ({ customdata: points.map((row) => marks.push(row) - 1), hovertemplate: "%{text}<extra></extra>",
    text: points.map((row) => told(row).join("<br>")), y: pick(points, "value") });

  function curve(name, j, own, aside) { // its line through the means, and its marks, side by side at each size
    const bySize = unique(pick(own, "n_images")).sort((a, b) => a - b).map((n) => own.filter((row) => row.n_images === n));
    const line = bySize.map(mean), groups = node("points").value === "each run" ? bySize : line.map((row) => [row]);
    const points = groups.flat(), [color, symbol, dash] = styles[own[0].paradigm] || ["#666666", "circle", "solid"];
    const x = groups.flatMap((part) => part.map((row, k) => row.n_images * Math.exp(0.05 * (aside + k - (part.length - 1) / 2))));
    const ends = { array: points.map((row) => (row.high ?? row.value) - row.value),
      arrayminus: points.map((row) => row.value - (row.low ?? row.value)) };
    return [
      { x: pick(line, "n_images"), y: pick(line, "value"), mode: "lines", line: { color, dash, width: 1.4 }, legendgroup: name,
        hoverinfo: "skip", showlegend: false },
      { x, ...hover(points), name, legendgroup: name, mode: "markers", marker: { color, symbol, size: 9 },
        error_y: { type: "data", symmetric: false, ...ends, thickness: 1.4, width: 0 } },
    ];
  }
  function draw() {
    let own = evaluated.filter((row) => row.role === "continued");
    CHOICES.forEach((name) => {
      const value = fill(name, unique(pick(own, name)));
      own = own.filter((row) => row[name] === value);
    });
    const [source, task, label, metric] = CHOICES.map((name) => node(name).value);
    const only = fill("paradigm", ["all", ...unique(pick(own, "curve"))]);
    fill("points", ["each run", "mean over seeds"]);
    own = own.filter((row) => ["all", row.curve].includes(only));
    const sizes = unique(pick(own, "n_images")).sort((a, b) => a - b), curves = unique(pick(own, "curve"));
    const bases = evaluated.filter((row) => row.role === "base" && CHOICES.every((name) => row[name] === own[0][name])
      && pick(own, "base").includes(row.base));
    marks = [];
    const traces = curves.flatMap((name, j) => curve(name, j, own.filter((row) => row.curve === name), 3 * (j - (curves.length - 1) / 2)));
    bases.forEach((row) => { // a line across
      const { customdata, text, hovertemplate } = hover([row]), ends = [sizes[0], sizes[sizes.length - 1]];
      traces.push({ x: ends, y: ends.map(() => row.value), customdata: ends.map(() => customdata[0]), text: text[0], hovertemplate,
        name: row.curve, mode: "lines", line: { color: (styles[row.paradigm] || ["#666666"])[0], dash: "longdash", width: 1.4 } });
    });
    const layout = node("plot").layout;
    layout.xaxis.tickvals = sizes;
    layout.yaxis.title = { text: metric };
    window.Plotly.react("explore-plot", traces, layout);
    const texts = marks.map((row) => `${row.curve}, ${whole(row.n_images)} images, seed ${row.seed}: ${four(row.value)}`);
    fill("run", Object.keys(marks), texts);
    node("heading").textContent = `${metric} of ${task} (${label}) by the number of in-house images: ${source}`;
    node("caption").textContent = captions[source];
    tell();
  }
  function tell() { // the chosen run, in words
    const row = marks[node("run").value];
    node("detail").textContent = `${told(row).join("; ")}.${row.page ? "" : ` Made by: ${row.command}`}`;
    Object.assign(node("open"), row.page ? { href: row.page, textContent: "Open its notebook" }
      : { href: "#explore-table", textContent: "Show its rows in the table" });
  }
  function find() { // the rows of the chosen run, or those of the figure for its seeds
    const row = marks[node("run").value], table = window.$("#explore-rows").DataTable();
    if (row.page) return;
    window.exploreClear(table);
    const same = row.seeds ? CHOICES : ["source"];
    table.columns().every(function () { if (same.includes(this.dataSrc())) this.search(row[this.dataSrc()], { exact: true }); });
    table.search(`"${row.run}"`).draw();
  }

  if (!evaluated.some((row) => row.role === "continued")) {
    node("figure").textContent = "There is no scaling curve to draw yet.";
    return;
  }
  draw();
  [...CHOICES, "paradigm", "points"].forEach((name) => node(name).addEventListener("change", draw));
  node("run").addEventListener("change", () => {
    const data = node("plot").data, index = Number(node("run").value);
    const at = data.findIndex((trace) => (trace.customdata || []).includes(index));
    window.Plotly.Fx.hover("explore-plot", [{ curveNumber: at, pointNumber: data[at].customdata.indexOf(index) }]);
    tell();
  });
  node("open").addEventListener("click", find);
  node("plot").on("plotly_click", ({ points: [point] }) => {
    node("run").value = point.customdata;
    tell();
    node("open").click();
  });
})();
