/* The planner of the book: reads the grid that cxrstudy/scaling/planner.py put into the page, by the rules of its
   `consult`: linearly in log n between the sizes given, refused outside them. It fetches nothing. */
(function () {
  "use strict";
  const NUMBERS = ["value", "low", "high", "gain", "gain_low", "gain_high", "more", "more_low", "more_high"];
  const STEPS = 200;
  const root = document.getElementById("planner");
  const grid = JSON.parse(document.getElementById("planner-grid").textContent);
  if (!root || !grid.ladders.length) return;

  // ---- the numbers ---------------------------------------------------------------------------------------------
  const whole = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const decimal = (x, signed) => {
    const rounded = Number(x.toFixed(3)) + 0; // nothing is -0.000
    return (signed && rounded >= 0 ? "+" : "") + rounded.toFixed(3);
  };
  const fill = (text, words) => text.replace(/\{(\w+)\}/g, (_, name) => words[name]);

  function interpolate(at, values, x) {
    let k = 1;
    while (k < at.length - 1 && at[k] < x) k += 1;
    if (at.length === 1) return values[0];
    if (values[k - 1] === null || values[k] === null) return NaN;
    const share = (x - at[k - 1]) / (at[k] - at[k - 1]);
    return values[k - 1] + (values[k] - values[k - 1]) * Math.min(1, Math.max(0, share));
  }

  function consult(ladder, n) {
    const row = { n: n, reach: "refused" };
    if (n < ladder.smallest || n > ladder.limit) return row;
    row.reach = n <= ladder.largest ? "inside" : "extrapolated";
    const at = ladder.curves.n_images.map(Math.log);
    NUMBERS.forEach((name) => { row[name] = interpolate(at, ladder.curves[name], Math.log(n)); });
    row.more_n = Math.min(10 * n, ladder.limit);
    return row;
  }

  function sentence(ladder, row) {
    const said = grid.said, law = ladder.basis === "law";
    const words = { name: ladder.name, kind: ladder.kind, metric: grid.metric, factor: grid.factor, n: whole(row.n) };
    words.task = grid.titles[ladder.task] || ladder.task;
    ["smallest", "largest", "limit"].forEach((name) => { words[name] = whole(ladder[name]); });
    if (row.reach === "refused") {
      return fill(said[row.n < ladder.smallest ? "few" : law ? "many" : "many_measured"], words);
    }
    NUMBERS.forEach((name, k) => { words[name] = decimal(row[name], k >= 3); });
    words.base = ladder.base_value === null ? "" : decimal(ladder.base_value, false);
    words.more_n = whole(row.more_n);
    words.verdict = said[row.gain_low > 0 ? "better" : row.gain_high < 0 ? "worse" : "unclear"];
    const pieces = ["value", Number.isNaN(row.gain) ? "no_base" : "gain"];
    if (row.reach === "extrapolated") pieces.push("beyond");
    if (!law) pieces.push("measured");
    pieces.push(10 * row.n <= ladder.limit ? "ten" : row.n < ladder.limit ? "capped" : "end");
    return pieces.map((piece) => fill(said[piece], words)).join("");
  }

  function abreast(name, n) {
    const own = grid.ladders.filter((ladder) => ladder.task === name);
    const each = own.map((ladder) => {
      const row = consult(ladder, n), based = ladder.base_value !== null;
      const piece = row.reach === "refused" ? "each_none" : based ? "each" : "each_alone";
      const base = based ? decimal(ladder.base_value, false) : "";
      return fill(grid.said[piece], { name: ladder.name, value: decimal(row.value ?? NaN, false), base: base });
    });
    return fill(grid.said.abreast, { task: grid.titles[name] || name, n: whole(n), each: each.join("; ") });
  }

  // ---- the controls --------------------------------------------------------------------------------------------
  function make(tag, attributes, parent, text) {
    const node = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    if (text) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  function field(label, tag, attributes) {
    const box = make("p", { class: `planner-field planner-${attributes.id}` }, form);
    make("label", { for: `planner-${attributes.id}` }, box, label);
    return make(tag, { ...attributes, id: `planner-${attributes.id}` }, box);
  }
  function options(select, pairs) {
    const before = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => make("option", { value: value }, null, text)));
    if (pairs.some(([value]) => value === before)) select.value = before;
  }

  root.replaceChildren();
  const form = make("form", { class: "planner-form" }, root);
  const task = field("Task", "select", { id: "task" });
  const paradigm = field("Paradigm", "select", { id: "paradigm" });
  const number = field("Images you have", "input", { id: "n", type: "number", min: 1, step: 1, inputmode: "numeric" });
  const slider = field("The same, on a log scale", "input", { id: "slider", type: "range", min: 0, max: STEPS, step: 1 });
  const said = make("p", { class: "planner-said", role: "status", "aria-live": "polite" }, root);
  const note = make("p", { class: "planner-note" }, root);
  const all = make("p", { class: "planner-note planner-abreast" }, root);
  const figure = make("figure", { class: "planner-figure" }, root);
  const picture = make("div", {}, figure);
  const caption = make("figcaption", {}, figure);

  const ladder = () => grid.ladders[Number(paradigm.value)];
  const images = () => (number.value.trim() === "" ? NaN : Number(number.value));

  function choices() {
    const name = paradigm.selectedOptions.length ? paradigm.selectedOptions[0].textContent : "";
    const own = grid.ladders.map((l, k) => [String(k), l.name, l.task]).filter((l) => l[2] === task.value);
    options(paradigm, own);
    const same = own.find((l) => l[1] === name);
    paradigm.value = (same || own[0])[0];
  }
  function fromSlider() {
    const l = ladder();
    const n = l.smallest * Math.pow(l.limit / l.smallest, Number(slider.value) / STEPS);
    number.value = String(Math.min(l.limit, Math.max(l.smallest, Math.round(Number(n.toPrecision(3))))));
  }
  function toSlider(n) {
    const l = ladder(), wide = Math.log(l.limit / l.smallest);
    const share = wide > 0 ? Math.log(n / l.smallest) / wide : 0;
    slider.value = String(Math.round(STEPS * Math.min(1, Math.max(0, share))));
  }

  function show(moved) {
    const l = ladder(), n = images();
    if (!(n >= 1) || !Number.isFinite(n)) {
      said.textContent = grid.said.not_a_number;
      return;
    }
    if (!moved) toSlider(n);
    slider.setAttribute("aria-valuetext", `${whole(n)} images`);
    const row = consult(l, n), words = sentence(l, row);
    if (said.textContent !== words) said.textContent = words;
    note.textContent = (l.reason ? fill(grid.said.reason, l) : "") + fill(grid.said.covers, l) + l.home;
    all.textContent = abreast(l.task, n);
    draw(l, row);
  }

  // ---- the picture ---------------------------------------------------------------------------------------------
  function svg(tag, attributes, parent, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag); // a name: nothing is fetched
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    if (text) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  function ticks(low, high) {
    const raw = (high - low) / 5, power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = power * [1, 2, 5, 10].find((k) => k * power >= raw);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(k * step);
    return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
  }
  function draw(l, row) {
    const gain = l.base_value !== null, curves = l.curves, measured = l.measured;
    const [best, low, high] = gain ? ["gain", "gain_low", "gain_high"] : ["value", "low", "high"];
    const width = Math.max(260, picture.clientWidth), height = 300, left = 52, right = 14, top = 26, bottom = 44;
    const all = [curves[low], curves[high], measured[low], measured[high], gain ? [0] : []].flat();
    const pad = 0.08 * (Math.max(...all) - Math.min(...all)) || 0.01;
    const y0 = Math.min(...all) - pad, y1 = Math.max(...all) + pad;
    const wide = Math.log(l.limit / l.smallest) || 1;
    const x = (n) => left + 8 + (width - left - right - 16) * (Math.log(n / l.smallest) / wide);
    const y = (v) => height - bottom - (height - top - bottom) * ((v - y0) / (y1 - y0));
    const line = (n, v) => n.map((m, k) => `${k ? "L" : "M"}${x(m).toFixed(1)} ${y(v[k]).toFixed(1)}`).join("");

    const what = gain ? `gain over the base, macro ${grid.metric}` : `macro ${grid.metric}`;
    const title = grid.titles[l.task] || l.task;
    const ends = [0, measured.n_images.length - 1].map((k) => {
      return `${decimal(measured[best][k], gain)} measured with ${whole(measured.n_images[k])} images`;
    });
    const label = `${what} of ${l.name} on ${title} (${l.kind} x-rays) by the number of images: ${ends.join(", ")}.`;
    const s = svg("svg", { width: width, height: height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    s.setAttribute("aria-label", label);

    const [marks, digits] = ticks(y0, y1);
    marks.forEach((v) => {
      svg("line", { class: "planner-grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, s);
      const text = (gain && v > 1e-12 ? "+" : "") + (Math.abs(v) < 1e-12 ? 0 : v).toFixed(digits);
      svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, s, text);
    });
    let last = -Infinity;
    const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
    [...new Set([...measured.n_images, l.limit])].forEach((n) => {
      svg("line", { class: "planner-axis", x1: x(n), x2: x(n), y1: height - bottom, y2: height - bottom + 5 }, s);
      if (x(n) - last < 36) return;
      last = x(n);
      svg("text", { x: x(n), y: height - bottom + 18, "text-anchor": "middle" }, s, short.format(n).replace("K", "k"));
    });
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, s, "images (log scale)");
    svg("text", { x: 4, y: 14 }, s, what);
    svg("line", { class: "planner-axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, s);
    if (gain) svg("line", { class: "planner-base", x1: left, x2: width - right, y1: y(0), y2: y(0) }, s);

    const n = curves.n_images, back = [...n.keys()].reverse();
    const band = line(n, curves[high]) + line(back.map((k) => n[k]), back.map((k) => curves[low][k])).replace("M", "L");
    svg("path", { class: "planner-band", d: `${band}Z` }, s);
    const [inside, beyond] = [(m) => m <= l.largest, (m) => m >= l.largest].map((keep) => {
      return [n.filter(keep), curves[best].filter((_, k) => keep(n[k]))];
    });
    svg("path", { class: "planner-line", d: line(...inside) }, s);
    if (beyond[0].length > 1) svg("path", { class: "planner-line planner-beyond", d: line(...beyond) }, s);
    measured.n_images.forEach((m, k) => {
      svg("line", { class: "planner-bar", x1: x(m), x2: x(m), y1: y(measured[low][k]), y2: y(measured[high][k]) }, s);
      svg("circle", { class: "planner-dot", cx: x(m), cy: y(measured[best][k]), r: 3.5 }, s);
    });
    if (row.reach !== "refused") {
      const [px, py] = [x(row.n), y(row[best])];
      svg("line", { class: "planner-own", x1: px, x2: px, y1: y(row[low]), y2: y(row[high]) }, s);
      const d = `M${px} ${py - 8}L${px + 8} ${py}L${px} ${py + 8}L${px - 8} ${py}Z`;
      svg("path", { class: "planner-own planner-point", d: d }, s);
    }
    picture.replaceChildren(s);
    caption.textContent =
      `Diamond: your images. Line: ${l.basis === "law" ? "the fitted law, dashed where it is extrapolated" : "between measured sizes"}; ` +
      `band: its 95% interval. Dots: measured, with their intervals.${gain ? " Heavy line at 0: the base as it came." : ""}`;
  }

  // ---- start ---------------------------------------------------------------------------------------------------
  const tasks = [...new Set(grid.ladders.map((l) => l.task))];
  options(task, tasks.map((name) => [name, grid.titles[name] || name]));
  choices();
  number.value = String(Math.round(Number(Math.sqrt(ladder().smallest * ladder().largest).toPrecision(1))));
  task.addEventListener("change", () => { choices(); show(false); });
  paradigm.addEventListener("change", () => show(false));
  number.addEventListener("input", () => show(false));
  slider.addEventListener("input", () => { fromSlider(); show(true); });
  form.addEventListener("submit", (event) => event.preventDefault());
  let before = 0;
  new ResizeObserver(() => {
    if (picture.clientWidth !== before) { before = picture.clientWidth; show(false); }
  }).observe(picture);
  show(false);
})();
