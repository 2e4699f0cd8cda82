/* The planner of the book: reads the grid that the analysis wrote (cxrstudy/scaling/planner.py) by the rules of its
   `consult`: linearly in log n between the sizes given, refused outside them. It fetches nothing. */
(function () {
  "use strict";
  const NUMBERS = ["value", "low", "high", "gain", "gain_low", "gain_high", "more", "more_low", "more_high"];
  const STEPS = 200;
  const root = document.getElementById("planner");
  const grid = JSON.parse(document.getElementById("planner-grid").textContent);
  if (!root || !grid.curves.length) return;

  // ---- the numbers ---------------------------------------------------------------------------------------------
  const whole = (n) => n.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const decimal = (x, sign) => { // four decimals where three would hide the sign; nothing is -0.000
    const places = sign && Math.abs(x) >= 0.00005 && Math.abs(x) < 0.0005 ? 4 : 3;
    const rounded = Number(x.toFixed(places)) + 0;
    return (sign && rounded >= 0 ? "+" : "") + rounded.toFixed(places);
  };
  const fill = (text, words) => text.replace(/\{(\w+)\}/g, (_, name) => words[name]);
  const title = (c) => grid.titles[c.task] || c.task;

  function interpolate(at, values, x) {
    let k = 1;
    while (k < at.length - 1 && at[k] < x) k += 1;
    if (at.length === 1) return values[0];
    if (values[k - 1] === null || values[k] === null) return NaN;
    const share = (x - at[k - 1]) / (at[k] - at[k - 1]);
    return values[k - 1] + (values[k] - values[k - 1]) * Math.min(1, Math.max(0, share));
  }

  function consult(curve, n) {
    const row = { n: n, reach: "refused" };
    if (n < curve.smallest || n > curve.limit) return row;
    row.reach = n <= curve.largest ? "inside" : "extrapolated";
    const at = curve.at.n_images.map(Math.log), off = at.map((x) => Math.abs(x - Math.log(n)));
    NUMBERS.forEach((name) => { row[name] = interpolate(at, curve.at[name], Math.log(n)); });
    row.verdict = curve.at.verdict[off.indexOf(Math.min(...off))] || "";
    row.more_n = Math.min(10 * n, curve.limit);
    return row;
  }

  function sentence(curve, row) {
    const said = grid.said, control = curve.control;
    const words = { name: curve.name, kind: curve.kind, reason: curve.reason, metric: grid.metric };
    Object.assign(words, { task: title(curve), n: whole(row.n) });
    ["smallest", "largest", "limit"].forEach((name) => { words[name] = whole(curve[name]); });
    if (row.reach === "refused") return fill(said[row.n < curve.smallest ? "few" : "many"], words);
    NUMBERS.forEach((name, k) => { words[name] = decimal(row[name], k >= 3); });
    words.base = curve.base_value === null ? "" : decimal(curve.base_value, false);
    Object.assign(words, { verdict: row.verdict, more_n: whole(row.more_n) });
    if (control) {
      Object.assign(words, { control_n: whole(control.n), control: decimal(control.effect, true) });
      ["low", "high"].forEach((end) => { words[`control_${end}`] = decimal(control[end], true); });
      Object.assign(words, { control_what: control.what, control_verdict: control.verdict });
    }
    const pieces = [control ? "control" : "no_control", "value", Number.isNaN(row.gain) ? "no_base" : "gain"];
    if (row.reach === "extrapolated") pieces.push("beyond");
    pieces.push(10 * row.n <= curve.limit ? "ten" : row.n < curve.limit ? "capped" : "end");
    return pieces.map((piece) => fill(said[piece], words)).join("");
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
  const figure = make("figure", { class: "planner-figure" }, root);
  const picture = make("div", {}, figure);
  const caption = make("figcaption", {}, figure);

  const curve = () => grid.curves[Number(paradigm.value)];
  const images = () => (number.value.trim() === "" ? NaN : Number(number.value));

  function choices() {
    const name = paradigm.selectedOptions.length ? paradigm.selectedOptions[0].textContent : "";
    const own = grid.curves.map((l, k) => [String(k), l.name, l.task]).filter((l) => l[2] === task.value);
    options(paradigm, own);
    const same = own.find((l) => l[1] === name);
    paradigm.value = (same || own[0])[0];
  }
  function fromSlider() {
    const l = curve();
    const n = l.smallest * Math.pow(l.limit / l.smallest, Number(slider.value) / STEPS);
    number.value = String(Math.min(l.limit, Math.max(l.smallest, Math.round(Number(n.toPrecision(3))))));
  }
  function toSlider(n) {
    const l = curve(), wide = Math.log(l.limit / l.smallest);
    const share = wide > 0 ? Math.log(n / l.smallest) / wide : 0;
    slider.value = String(Math.round(STEPS * Math.min(1, Math.max(0, share))));
  }

  function show(moved) {
    const l = curve(), n = images();
    if (!(n >= 1) || !Number.isFinite(n)) {
      said.textContent = grid.said.not_a_number;
      return;
    }
    if (!moved) toSlider(n);
    slider.setAttribute("aria-valuetext", `${whole(n)} images`);
    const row = consult(l, n), words = sentence(l, row);
    if (said.textContent !== words) said.textContent = words;
    const tests = `Test set: ${whole(l.n)} images of ${whole(l.n_patients)} patients, ${whole(l.positives)} positive labels.`;
    note.textContent = `${fill(grid.said.covers, l)} ${l.reason} ${tests}`;
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
    const gain = l.base_value !== null, { at, measured, control } = l;
    const [best, low, high] = gain ? ["gain", "gain_low", "gain_high"] : ["value", "low", "high"];
    const width = Math.max(260, picture.clientWidth), height = 300, left = 52, right = 14, top = 26, bottom = 44;
    const last = measured[best][measured[best].length - 1], beside = control && last - control.effect;
    const all = [at[low], at[high], measured[low], measured[high], gain ? [0] : [], control ? [beside] : []].flat();
    const pad = 0.08 * (Math.max(...all) - Math.min(...all)) || 0.01;
    const y0 = Math.min(...all) - pad, y1 = Math.max(...all) + pad;
    const wide = Math.log(l.limit / l.smallest) || 1;
    const x = (n) => left + 8 + (width - left - right - 16) * (Math.log(n / l.smallest) / wide);
    const y = (v) => height - bottom - (height - top - bottom) * ((v - y0) / (y1 - y0));
    const line = (n, v) => n.map((m, k) => `${k ? "L" : "M"}${x(m).toFixed(1)} ${y(v[k]).toFixed(1)}`).join("");

    const what = gain ? `gain over the base model, macro ${grid.metric}` : `macro ${grid.metric}`;
    const ends = [0, measured.n_images.length - 1].map((k) => {
      return `${decimal(measured[best][k], gain)} measured with ${whole(measured.n_images[k])} images`;
    });
    if (control) ends.push(`control ${decimal(beside, gain)}`);
    const label = `${what} of ${l.name} on ${title(l)} (${l.kind} x-rays) by the number of images: ${ends.join(", ")}.`;
    const s = svg("svg", { width: width, height: height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    s.setAttribute("aria-label", label);

    const [marks, digits] = ticks(y0, y1);
    marks.forEach((v) => {
      svg("line", { class: "planner-grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, s);
      const text = (gain && v > 1e-12 ? "+" : "") + (Math.abs(v) < 1e-12 ? 0 : v).toFixed(digits);
      svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, s, text);
    });
    let written = -Infinity;
    const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
    [...new Set([...measured.n_images, l.limit])].forEach((n) => {
      svg("line", { class: "planner-axis", x1: x(n), x2: x(n), y1: height - bottom, y2: height - bottom + 5 }, s);
      if (x(n) - written < 36) return;
      written = x(n);
      svg("text", { x: x(n), y: height - bottom + 18, "text-anchor": "middle" }, s, short.format(n).replace("K", "k"));
    });
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, s, "images (log scale)");
    svg("text", { x: 4, y: 14 }, s, what);
    svg("line", { class: "planner-axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, s);
    if (gain) svg("line", { class: "planner-base", x1: left, x2: width - right, y1: y(0), y2: y(0) }, s);

    const n = at.n_images, back = [...n.keys()].reverse();
    const band = line(n, at[high]) + line(back.map((k) => n[k]), back.map((k) => at[low][k])).replace("M", "L");
    svg("path", { class: "planner-band", d: `${band}Z` }, s);
    const [inside, beyond] = [(m) => m <= l.largest, (m) => m >= l.largest].map((keep) => {
      return [n.filter(keep), at[best].filter((_, k) => keep(n[k]))];
    });
    svg("path", { class: "planner-line", d: line(...inside) }, s);
    if (beyond[0].length > 1) svg("path", { class: "planner-line planner-beyond", d: line(...beyond) }, s);
    measured.n_images.forEach((m, k) => {
      svg("line", { class: "planner-bar", x1: x(m), x2: x(m), y1: y(measured[low][k]), y2: y(measured[high][k]) }, s);
      svg("circle", { class: "planner-dot", cx: x(m), cy: y(measured[best][k]), r: 3.5 }, s);
    });
    if (control) {
      svg("rect", { class: "planner-control", x: x(control.n) - 5, y: y(beside) - 5, width: 10, height: 10 }, s);
    }
    if (row.reach !== "refused") {
      const [px, py] = [x(row.n), y(row[best])];
      svg("line", { class: "planner-own", x1: px, x2: px, y1: y(row[low]), y2: y(row[high]) }, s);
      const d = `M${px} ${py - 8}L${px + 8} ${py}L${px} ${py + 8}L${px - 8} ${py}Z`;
      svg("path", { class: "planner-own planner-point", d: d }, s);
    }
    picture.replaceChildren(s);
    caption.textContent =
      `Diamond: your images. Dots: measured, with 95% intervals. Line and band: between them` +
      `${l.limit > l.largest ? ", dashed where the law extrapolates" : ""}.` +
      `${control ? ` Hollow square: the control at equal compute, ${control.what}.` : ""}` +
      `${gain ? " Heavy line at 0: the base model." : ""}`;
  }

  // ---- start ---------------------------------------------------------------------------------------------------
  const tasks = [...new Set(grid.curves.map((l) => l.task))];
  options(task, tasks.map((name) => [name, grid.titles[name] || name]));
  choices();
  number.value = String(Math.round(Number(Math.sqrt(curve().smallest * curve().largest).toPrecision(1))));
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
