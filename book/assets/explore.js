/* "Explore the results": the figure and the table, from the data that cxrstudy/explorer.py wrote into explore-data.js.
   It fetches nothing. */
(function () {
  "use strict";
  const data = window.cxrstudyResults;
  const figureRoot = document.getElementById("explore-figure"), tableRoot = document.getElementById("explore-table");
  if (!data || !figureRoot || !tableRoot) return;
  const ALL = "", PAGE = 25, EACH = "each", MEAN = "mean";
  const { sources, runs, keys, rows } = data;
  const count = rows.key.length, runOf = new Uint32Array(count), start = [];
  runs.rows.forEach((size, k) => {
    start.push(k ? start[k - 1] + runs.rows[k - 1] : 0);
    runOf.fill(k, start[k], start[k] + size);
  });

  // ---- words and nodes -------------------------------------------------------------------------------------------
  const whole = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const human = (n) => (n >= 1e6 ? `${+(n / 1e6).toPrecision(3)}M` : n >= 1e3 ? `${+(n / 1e3).toPrecision(3)}k` : `${n}`);
  const say = (name) => {
    const [own, place] = name.split("@");
    return (data.phrases[own] || own.replace(/_/g, " ")) + (place ? ` at ${place.replace(/-[0-9a-f]{6}$/, "")}` : "");
  };
  const four = (v) => (Math.abs(v) >= 1000 ? whole(v) : v.toPrecision(4)); // digits, as the data have
  const range = (low, high) => (low === null || high === null ? "" : ` [${four(low)}, ${four(high)}]`);
  const unique = (items) => [...new Set(items)];

  function fill(node, attributes, parent, text) {
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  const make = (tag, attributes, parent, text) => fill(document.createElement(tag), attributes, parent, text);
  const SVG = "http://www.w3.org/2000/svg"; // a name: nothing is fetched
  const svg = (tag, attributes, parent, text) => fill(document.createElementNS(SVG, tag), attributes, parent, text);
  function field(form, id, label, tag, attributes) {
    const box = make("p", { class: `explore-field explore-for-${id}` }, form);
    make("label", { for: `explore-${id}` }, box, label);
    return make(tag, { ...attributes, id: `explore-${id}` }, box);
  }
  function options(select, pairs) {
    const before = select.value, groups = new Map();
    select.replaceChildren();
    pairs.forEach(([value, text]) => { // "other patient: findings" stands among what is said of other patients
      const who = text.includes(": ") ? text.slice(0, text.indexOf(": ")) : "";
      if (who && !groups.has(who)) groups.set(who, make("optgroup", { label: who }, select));
      make("option", { value: value }, groups.get(who) || select, text);
    });
    if (pairs.some(([value]) => value === before)) select.value = before;
  }
  function sourceOptions(select, indices) {
    [[true, "Recorded with this book"], [false, "Run on this machine"]].forEach(([kept, label]) => {
      const own = indices.filter((k) => sources[k].kept === kept);
      if (!own.length) return;
      const group = make("optgroup", { label: label }, select);
      own.forEach((k) => make("option", { value: k }, group, sources[k].name));
    });
  }
  const FIRST = ["findings", "lines_tubes", "macro", "auroc", "dice", "f1_micro"]; // of tasks, labels and metrics
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  const named = (names) => names.sort((a, b) => rank(a) - rank(b)).map((name) => [name, say(name)]);

  [figureRoot, tableRoot].forEach((root) => root.replaceChildren());
  if (!count) {
    make("p", {}, figureRoot, "There are no results yet.");
    return;
  }

  // ---- the figure's choices ----------------------------------------------------------------------------------------
  const form = make("form", { class: "explore-form" }, figureRoot);
  const source = field(form, "source", "Source", "select", {});
  const task = field(form, "task", "Task", "select", {});
  const label = field(form, "label", "Label", "select", {});
  const metric = field(form, "metric", "Metric", "select", {});
  const kind = field(form, "points", "Points", "select", {});
  const paradigms = make("fieldset", { class: "explore-paradigms" }, form);
  const figure = make("figure", {}, figureRoot);
  const heading = make("p", { class: "explore-heading" }, figure);
  const picture = make("div", { class: "explore-picture" }, figure);
  const detail = make("p", { class: "explore-detail" }, figure);
  const caption = make("figcaption", {}, figure);
  const HINT = "Point at a mark, or move along them with the arrow keys, to read it.";
  const off = new Set(); // ladders that the reader switched off
  let shown = [], current = 0;

  function valuesOf(wanted) { // the rows of judged runs of the chosen source that pass, as [run, row]
    const found = [];
    runs.role.forEach((role, k) => {
      if (!role || runs.source[k] !== Number(source.value)) return;
      for (let r = start[k]; r < start[k] + runs.rows[k]; r += 1) {
        if (rows.value[r] !== null && wanted(keys[rows.key[r]], role)) found.push([k, r]);
      }
    });
    return found;
  }
  function choices() {
    const rungs = unique(valuesOf((_, role) => role === "rung").map(([, r]) => rows.key[r])).map((k) => keys[k]);
    options(task, named(unique(rungs.map((key) => key[0]))));
    const own = rungs.filter((key) => key[0] === task.value);
    options(label, named(unique(own.map((key) => key[1]))));
    options(metric, named(unique(own.filter((key) => key[1] === label.value).map((key) => key[2]))));
  }
  function ladders() { // of the choice: name to {colour, marker, line, points}, and the bases
    const found = new Map(), bases = [];
    const chosen = [task.value, label.value, metric.value];
    valuesOf((key) => key.every((part, k) => part === chosen[k])).forEach(([k, r]) => {
      const row = { run: k, n: runs.n_images[k], value: rows.value[r], low: rows.low[r], high: rows.high[r] };
      if (runs.role[k] === "base") return bases.push(row);
      const name = runs.ladder[k];
      if (!found.has(name)) found.set(name, { name: name, style: data.styles[runs.paradigm[k]] || ["#666666", "o", "-"], points: [] });
      return found.get(name).points.push(row);
    });
    const order = Object.keys(data.styles);
    const all = [...found.values()].sort((a, b) => order.indexOf(a.name.split(",")[0]) - order.indexOf(b.name.split(",")[0]));
    all.forEach((l) => l.points.sort((a, b) => a.n - b.n || runs.seed[a.run] - runs.seed[b.run]));
    return [all, bases];
  }
  function means(points) { // a point a size: means of values and of intervals' ends
    return unique(points.map((p) => p.n)).map((n) => {
      const own = points.filter((p) => p.n === n), mean = (of) => own.reduce((sum, p) => sum + p[of], 0) / own.length;
      return { n: n, own: own, value: mean("value"), low: mean("low"), high: mean("high"), run: own[0].run };
    });
  }
  const SHAPES = {
    o: "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z", s: "M-4.5-4.5H4.5V4.5H-4.5Z", "^": "M0-5.5L5.5 4.5H-5.5Z", D: "M0-6L6 0L0 6L-6 0Z",
  };
  const DASHES = { "-": "none", "--": "7 3", "-.": "7 3 2 3", ":": "2 3" };

  function boxes(all) {
    paradigms.replaceChildren(make("legend", {}, null, "Paradigms"));
    all.forEach((ladder, k) => {
      const [colour, marker, line] = ladder.style;
      const word = make("label", { for: `explore-paradigm-${k}` }, paradigms);
      const box = make("input", { type: "checkbox", id: `explore-paradigm-${k}` }, word);
      box.checked = !off.has(ladder.name);
      const sample = svg("svg", { width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true" }, word);
      svg("path", { d: "M-16 0H16", stroke: colour, "stroke-width": 2, "stroke-dasharray": DASHES[line] }, sample);
      svg("path", { class: "explore-mark", d: SHAPES[marker], fill: colour }, sample);
      word.append(ladder.name);
      box.addEventListener("change", () => {
        off[box.checked ? "delete" : "add"](ladder.name);
        draw();
      });
    });
  }

  // ---- the picture -------------------------------------------------------------------------------------------------
  function ticks(low, high) {
    const raw = (high - low) / 5, power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = power * [1, 2, 5, 10].find((k) => k * power >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(k * step);
    return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
  }
  function told(point) { // a point in words
    const k = point.run, seeds = (point.own || [point]).map((p) => runs.seed[p.run]);
    const many = point.own && point.own.length > 1;
    const values = many ? point.own.map((p) => p.value) : [];
    const who = many ? `${runs.ladder[k]}, mean of seeds ${seeds.join(", ")}` : `${runs.name[k]}: ${runs.ladder[k]}, seed ${seeds[0]}`;
    const about = `${whole(point.n)} images, ${whole(runs.samples_seen[k])} samples seen`;
    const spread = many ? `; single seeds from ${four(Math.min(...values))} to ${four(Math.max(...values))}` : "";
    const leads = many ? " Opens their rows in the table."
      : runs.page[k] ? " Opens its executed notebook." : ` Opens its rows in the table. Made by: ${runs.command[k]}`;
    return `${who}; ${about}. ${say(metric.value)} ${four(point.value)}${range(point.low, point.high)}${spread}.${leads}`;
  }
  function baseName(base, bases) {
    const alike = bases.filter((b) => runs.paradigm[b.run] === runs.paradigm[base.run]).length > 1;
    return alike ? runs.name[base.run].replace(/-[0-9a-f]{6}$/, "") : `${runs.paradigm[base.run]} base`;
  }
  function draw(keep) {
    const [all, bases] = ladders();
    if (!keep) boxes(all);
    const on = all.filter((l) => !off.has(l.name));
    const series = on.map((l) => ({ ...l, mean: means(l.points), marks: kind.value === MEAN ? means(l.points) : l.points }));
    const what = `${label.value === "macro" ? "macro " : ""}${say(metric.value)}`;
    const of = label.value === "macro" ? say(task.value) : `${say(label.value)} (${say(task.value)})`;
    const here = sources[Number(source.value)];
    heading.textContent = `${what[0].toUpperCase()}${what.slice(1)} of ${of}, by the number of in-house images: ${here.name}`;
    caption.textContent = `${here.caption} ${series.length ? `Shown: ${series.map((l) => `${l.name}, ${l.points.length} runs`).join("; ")}. ` : ""}`
      + `Bars: 95% intervals over test patients. Dashed across: a base as it came, not continued.`;
    shown = [];
    detail.textContent = HINT;
    const marks = series.flatMap((l) => l.marks);
    if (!marks.length) {
      picture.replaceChildren(make("p", {}, null, all.length ? "Every paradigm is switched off." : "No ladder was judged so."));
      return;
    }
    const words = [...series.map((l) => l.name), ...bases.map((b) => baseName(b, bases))];
    const width = Math.max(280, picture.clientWidth), height = width < 500 ? 340 : 400;
    const right = Math.min(0.4 * width, 16 + 6.6 * Math.max(...words.map((w) => w.length))), left = 52, top = 12, bottom = 46;
    const seen = [...marks, ...bases].flatMap((p) => [p.value, p.low, p.high]).filter((v) => v !== null && Number.isFinite(v));
    const pad = 0.06 * (Math.max(...seen) - Math.min(...seen)) || 0.01;
    const y0 = Math.min(...seen) - pad, y1 = Math.max(...seen) + pad;
    const sizes = unique(marks.map((p) => p.n)).sort((a, b) => a - b);
    const inner = width - left - right, wide = Math.log(sizes[sizes.length - 1] / sizes[0]) || 1;
    const at = (n) => left + 0.08 * inner + 0.84 * inner * (sizes.length > 1 ? Math.log(n / sizes[0]) / wide : 0.5);
    const y = (v) => height - bottom - (height - top - bottom) * ((v - y0) / (y1 - y0));
    // marks of one size stand side by side, so that bars do not hide
    const most = Math.max(...series.map((l) => Math.max(...sizes.map((n) => l.marks.filter((p) => p.n === n).length))));
    const gap = Math.min(...sizes.slice(1).map((n, k) => at(n) - at(sizes[k])), 160);
    const step = Math.min(11, (0.8 * gap) / (most * series.length));

    const s = svg("svg", { width: width, height: height, viewBox: `0 0 ${width} ${height}`, role: "group" });
    s.setAttribute("aria-label", `${heading.textContent}. ${marks.length} marks; arrow keys move along them, Enter opens one.`);
    const [levels, digits] = ticks(y0, y1);
    levels.forEach((v) => {
      svg("line", { class: "explore-grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, s);
      svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, s, v.toFixed(digits));
    });
    let last = Infinity;
    [...sizes].reverse().forEach((n) => { // the largest has its label whatever the room
      svg("line", { class: "explore-axis", x1: at(n), x2: at(n), y1: height - bottom, y2: height - bottom + 5 }, s);
      if (last - at(n) < 28) return;
      last = at(n);
      svg("text", { class: "explore-size", x: at(n), y: height - bottom + 19, "text-anchor": "middle" }, s, human(n));
    });
    svg("text", { x: left + inner / 2, y: height - 6, "text-anchor": "middle" }, s, "in-house images (log scale)");
    svg("line", { class: "explore-axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, s);

    const labels = bases.map((b) => [y(b.value), baseName(b, bases)]);
    bases.forEach((b) => svg("line", { class: "explore-base", x1: left, x2: width - right, y1: y(b.value), y2: y(b.value) }, s));
    series.forEach((l, j) => {
      const [colour, marker, line] = l.style, aside = (j - (series.length - 1) / 2) * step * most;
      const path = l.mean.map((p, k) => `${k ? "L" : "M"}${(at(p.n) + aside).toFixed(1)} ${y(p.value).toFixed(1)}`).join("");
      svg("path", { class: "explore-line", d: path, stroke: colour, "stroke-dasharray": DASHES[line] }, s);
      labels.push([y(l.mean[l.mean.length - 1].value), l.name]);
      sizes.forEach((n) => {
        const own = l.marks.filter((p) => p.n === n);
        own.forEach((p, k) => {
          const x = at(n) + aside + (k - (own.length - 1) / 2) * step;
          const page = own.length && !(p.own && p.own.length > 1) ? runs.page[p.run] : "";
          const link = svg("a", { class: "explore-point", href: page || "#explore-table", tabindex: -1, "aria-label": told(p) }, s);
          if (p.low !== null && p.high !== null) {
            svg("line", { class: "explore-bar", x1: x, x2: x, y1: y(p.low), y2: y(p.high), stroke: colour }, link);
          }
          const place = `translate(${x.toFixed(1)} ${y(p.value).toFixed(1)})`;
          svg("path", { class: "explore-mark", d: SHAPES[marker], fill: colour, transform: place }, link);
          svg("circle", { class: "explore-target", cx: x, cy: y(p.value), r: 9 }, link);
          const index = shown.push({ link: link, point: p, x: x }) - 1;
          link.addEventListener("pointerenter", () => { detail.textContent = told(p); });
          link.addEventListener("focus", () => { choose(index); detail.textContent = told(p); });
          link.addEventListener("click", (event) => {
            if (page) return; // the link itself leads there
            event.preventDefault();
            showRows(p);
          });
        });
      });
    });
    let floor = -Infinity; // labels of near lines are set apart, from the top down
    labels.sort((a, b) => a[0] - b[0]).forEach(([height_, word], k) => {
      const room = top + 8 + 14 * k, most_ = height - bottom - 14 * (labels.length - 1 - k);
      floor = Math.max(Math.min(Math.max(height_, room), most_), floor + 14);
      svg("line", { class: "explore-lead", x1: width - right + 2, x2: width - right + 9, y1: height_, y2: floor }, s);
      svg("text", { class: "explore-word", x: width - right + 12, y: floor + 4 }, s, word);
    });
    picture.replaceChildren(s);
    choose(Math.min(current, shown.length - 1));
  }
  function choose(index) { // one mark alone is a tab stop
    shown.forEach(({ link }, k) => link.setAttribute("tabindex", k === index ? 0 : -1));
    current = index;
  }
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? shown.length - 1 : step && current + step;
    if (to === undefined || !shown[to]) return;
    event.preventDefault();
    shown[to].link.focus();
  });

  // ---- the table ---------------------------------------------------------------------------------------------------
  const ofRun = (name) => (r) => runs[name][runOf[r]];
  const ofKey = (k) => (r) => say(keys[rows.key[r]][k]);
  const MEASURED = ["value", "low", "high"], NUMERIC = [...MEASURED, "images", "samples seen", "seed", "n"];
  const COLUMNS = {
    run: ofRun("name"), task: ofKey(0), label: ofKey(1), metric: ofKey(2),
    value: (r) => rows.value[r], low: (r) => rows.low[r], high: (r) => rows.high[r], n: (r) => rows.n[r],
    images: ofRun("n_images"), "samples seen": ofRun("samples_seen"), seed: ofRun("seed"), paradigm: ofRun("paradigm"),
    source: (r) => sources[runs.source[runOf[r]]].name,
  };
  const filters = make("form", { class: "explore-form" }, tableRoot);
  const find = field(filters, "find", "Find", "input", { type: "search", autocomplete: "off" });
  const only = {};
  only.source = field(filters, "only-source", "Source", "select", {});
  make("option", { value: ALL }, only.source, "all");
  sourceOptions(only.source, unique(runs.source));
  const PARTS = ["task", "label", "metric"];
  PARTS.forEach((name) => { only[name] = field(filters, `only-${name}`, name[0].toUpperCase() + name.slice(1), "select", {}); });
  const passing = (upTo) => keys.filter((key) => PARTS.slice(0, upTo).every((name, k) => [ALL, key[k]].includes(only[name].value)));
  function narrow() { // labels are the chosen task's, metrics the chosen label's
    PARTS.forEach((name, k) => options(only[name], [[ALL, "all"], ...named(unique(passing(k).map((key) => key[k])).sort())]));
  }
  narrow();
  const status = make("p", { class: "explore-status", role: "status", "aria-live": "polite" }, tableRoot);
  const scroll = make("div", { class: "explore-scroll", role: "region", tabindex: 0, "aria-label": "Results" }, tableRoot);
  const table = make("table", {}, scroll), head = make("tr", {}, make("thead", {}, table)), body = make("tbody", {}, table);
  const buttons = make("p", { class: "explore-buttons" }, tableRoot);
  const back = make("button", { type: "button", id: "explore-back" }, buttons, "Previous rows");
  const next = make("button", { type: "button", id: "explore-next" }, buttons, "Next rows");
  const save = make("button", { type: "button", id: "explore-save" }, buttons);
  let matching = [], page = 0, sorted = "", down = false;

  Object.keys(COLUMNS).forEach((name) => {
    const cell = make("th", { scope: "col", class: NUMERIC.includes(name) ? "explore-number" : "" }, head);
    const button = make("button", { type: "button" }, cell, name);
    button.addEventListener("click", () => {
      down = sorted === name ? !down : false;
      sorted = name;
      filter();
    });
  });
  function filter() {
    narrow();
    const tokens = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const runText = runs.name.map((name, k) => `${sources[runs.source[k]].name} ${name} ${runs.paradigm[k] || ""}`.toLowerCase());
    const keyText = keys.map((key) => `${key.join(" ")} ${key.map(say).join(" ")}`.toLowerCase());
    const ofRuns = tokens.map((token) => runText.map((text) => text.includes(token)));
    const ofKeys = tokens.map((token) => keyText.map((text) => text.includes(token)));
    const good = new Set(passing(PARTS.length)), goodKey = keys.map((key) => good.has(key));
    const goodRun = runs.source.map((k) => only.source.value === ALL || k === Number(only.source.value));
    matching = [];
    for (let r = 0; r < count; r += 1) {
      const [run, key] = [runOf[r], rows.key[r]];
      if (goodKey[key] && goodRun[run] && tokens.every((_, k) => ofRuns[k][run] || ofKeys[k][key])) matching.push(r);
    }
    if (sorted) {
      const read = COLUMNS[sorted], sign = down ? -1 : 1;
      const values = new Map(matching.map((r) => [r, read(r)]));
      matching.sort((a, b) => {
        const [x, y] = [values.get(a), values.get(b)];
        if (x === null || y === null) return (x === null) - (y === null); // what was not measured comes last
        return x < y ? -sign : x > y ? sign : a - b;
      });
    }
    [...head.children].forEach((cell) => {
      if (cell.textContent === sorted) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    page = 0;
    fillPage();
  }
  function fillPage() {
    const from = page * PAGE, own = matching.slice(from, from + PAGE);
    body.replaceChildren(...own.map((r) => {
      const row = make("tr", {}, null);
      Object.entries(COLUMNS).forEach(([name, read]) => {
        const value = read(r), numeric = NUMERIC.includes(name);
        const missing = name === "value" ? "not measured" : "";
        const text = value === null ? missing : !numeric ? value : MEASURED.includes(name) ? four(value) : whole(value);
        const link = name === "run" ? runs.page[runOf[r]] : "";
        const cell = make("td", { class: numeric ? "explore-number" : "" }, row, link ? "" : text);
        if (link) make("a", { href: link }, cell, text);
      });
      return row;
    }));
    const of = `${whole(matching.length)} of ${whole(count)} rows match`;
    status.textContent = matching.length ? `${of}; shown: ${whole(from + 1)} to ${whole(from + own.length)}.` : `${of}.`;
    back.disabled = page === 0;
    next.disabled = from + PAGE >= matching.length;
    save.disabled = !matching.length;
    save.textContent = `CSV of the ${whole(matching.length)} matching rows`;
  }
  function showRows(point) { // of a mark of the figure: those of its run, or of its seeds
    const many = point.own && point.own.length > 1;
    find.value = many ? runs.name[point.run].replace(/s\d+-[0-9a-f]{6}$/, "") : runs.name[point.run];
    only.source.value = source.value;
    PARTS.forEach((name, k) => {
      narrow();
      only[name].value = [task.value, label.value, many ? metric.value : ALL][k];
    });
    filter();
    scroll.focus();
    tableRoot.scrollIntoView();
  }
  function csv() {
    const quote = (v) => (v === null ? "" : /[",\n]/.test(v) ? `"${String(v).replace(/"/g, '""')}"` : String(v));
    const readers = Object.values(COLUMNS);
    const lines = matching.map((r) => readers.map((read) => quote(read(r))).join(","));
    const file = new Blob([`${Object.keys(COLUMNS).join(",")}\n${lines.join("\n")}\n`], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(file), download: "results-shown.csv" }, null);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // ---- start -------------------------------------------------------------------------------------------------------
  const drawn = unique(runs.source.filter((_, k) => runs.role[k] === "rung")).sort((a, b) => a - b);
  if (drawn.length) {
    sourceOptions(source, drawn);
    options(kind, [[EACH, "each run"], [MEAN, "mean over seeds"]]);
    choices();
    [source, task, label].forEach((select) => select.addEventListener("change", () => { choices(); draw(); }));
    [metric, kind].forEach((select) => select.addEventListener("change", () => draw()));
    let before = 0;
    new ResizeObserver(() => {
      if (picture.clientWidth === before) return;
      before = picture.clientWidth;
      draw(true);
    }).observe(picture);
    draw();
  } else {
    figureRoot.replaceChildren(make("p", {}, null, "There is no ladder of continued encoders to draw yet."));
  }
  [form, filters].forEach((each) => each.addEventListener("submit", (event) => event.preventDefault()));
  find.addEventListener("input", filter);
  Object.values(only).forEach((select) => select.addEventListener("change", filter));
  back.addEventListener("click", () => { page -= 1; fillPage(); });
  next.addEventListener("click", () => { page += 1; fillPage(); });
  save.addEventListener("click", csv);
  filter();
})();
