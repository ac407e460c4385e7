"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const color = (i) => `var(--c${i < 1 ? 0 : 1 + ((i - 1) % 6)})`;
const dashes = (i) => ["", "7 4", "2 3", "9 3 2 3"][Math.floor(Math.max(0, i - 1) / 6) % 4];
const known = (x) => typeof x === "number" && Number.isFinite(x);

function svg(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function option(select, value, text) {
  const node = document.createElement("option");
  node.value = value;
  node.textContent = text;
  select.append(node);
}

/* A row of buttons of which one is pressed. */
function choice(parent, entries, changed) {
  const buttons = entries.map(([value, text]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.dataset.value = value;
    button.addEventListener("click", () => set(value));
    parent.append(button);
    return button;
  });
  function set(value) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    changed(value);
  }
  return set;
}

/* Numbers at which an axis is marked. */
function ticks(low, high, count) {
  const span = high - low || 1;
  const unit = 10 ** Math.floor(Math.log10(span / count));
  const step = unit * [1, 2, 5, 10].find((m) => span / (unit * m) <= count);
  const marks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * span; k += 1) marks.push(k * step);
  return marks;
}

function logTicks(low, high) {
  const marks = [];
  for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; k += 1) for (const m of [1, 2, 5]) marks.push(m * 10 ** k);
  const inside = marks.filter((x) => x >= low * 0.999 && x <= high * 1.001);
  const decades = inside.filter((x) => Math.abs(Math.log10(x) - Math.round(Math.log10(x))) < 1e-9);
  return decades.length > 3 ? decades : inside;
}

/* A map of [low, high] to [from, to], with its marks. */
function scale(low, high, from, to, logarithmic, count) {
  const f = logarithmic ? Math.log : (x) => x;
  const map = (x) => from + ((f(x) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
  map.ticks = logarithmic ? logTicks(low, high) : ticks(low, high, count || 6);
  return map;
}

function short(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? x.toExponential(0) : String(+x.toPrecision(4));
  return text.replace("-", "−");
}

function signed(x, digits) {
  return (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
}

/* Draws now and whenever the width changes. */
function responsive(id, draw) {
  const box = byId(id);
  let width = 0;
  const again = () => {
    width = box.clientWidth - 16;
    if (width < 100) return;
    box.replaceChildren();
    draw(box, width);
  };
  new ResizeObserver(() => { if (Math.abs(box.clientWidth - 16 - width) > 1) again(); }).observe(box);
  return again;
}

function canvas(box, width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, box);
}

/* Axes of a plot with x to the right and y upwards. */
function frame(root, x, y, area, names) {
  for (const t of y.ticks) {
    svg("line", { class: "grid", x1: area.left, x2: area.right, y1: y(t), y2: y(t) }, root);
    svg("text", { class: "muted", x: area.left - 8, y: y(t) + 4, "text-anchor": "end" }, root, short(t));
  }
  for (const t of x.ticks) {
    svg("line", { class: "grid", x1: x(t), x2: x(t), y1: area.top, y2: area.bottom }, root);
    svg("text", { class: "muted", x: x(t), y: area.bottom + 18, "text-anchor": "middle" }, root, short(t));
  }
  svg("text", { class: "muted", x: area.right, y: area.bottom + 36, "text-anchor": "end" }, root, names[0]);
  svg("text", { class: "muted", x: 4, y: area.top - 8 }, root, names[1]);
}

/* Rows of intervals about zero; a row without `mean` is a heading, or says why it has none. */
function forest(box, width, rows, metric) {
  const rowHeight = 27, top = 10, height = top + rows.length * rowHeight + 42;
  const root = canvas(box, width, height, `Differences of ${metric.name}`);
  const texts = rows.map((row) => row.label.length);
  const left = Math.min(0.42 * width, 40 + 6.6 * Math.max(...texts, 4)), right = width - (width > 620 ? (rows.some((row) => row.after) ? 245 : 190) : 10);
  const ends = rows.flatMap((row) => [row.mean, row.lo, row.hi]).filter(known);
  const low = Math.min(0, ...ends), high = Math.max(0, ...ends), pad = 0.06 * (high - low || 1);
  const x = scale(low - pad, high + pad, left, right, false, width > 620 ? 7 : 4);
  const bottom = top + rows.length * rowHeight;
  for (const t of x.ticks) {
    svg("line", { class: "grid", x1: x(t), x2: x(t), y1: top, y2: bottom }, root);
    svg("text", { class: "muted", x: x(t), y: bottom + 17, "text-anchor": "middle" }, root, short(t));
  }
  svg("line", { class: "zero", x1: x(0), x2: x(0), y1: top, y2: bottom }, root);
  const better = metric.direction === "max" ? "better →" : "← better";
  svg("text", { class: "muted", x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, root, `Δ ${metric.name}   ${better}`);
  rows.forEach((row, i) => {
    const y = top + (i + 0.5) * rowHeight;
    const label = svg("text", { x: row.heading ? 4 : 16, y: y + 4, "font-weight": row.heading ? 600 : 400 }, root, fit(row.label, (left - 24) / 6.6));
    svg("title", {}, label, row.label);
    if (!known(row.mean)) {
      if (row.text) svg("text", { class: "muted", x: width - 4, y: y + 4, "text-anchor": "end" }, root, row.text);
      return;
    }
    const stroke = row.color;
    if (known(row.lo) && known(row.hi)) {
      svg("line", { x1: x(row.lo), x2: x(row.hi), y1: y, y2: y, style: `stroke:${stroke}`, "stroke-width": 2.5, "stroke-dasharray": row.images_only ? "4 4" : "" }, root);
      for (const end of [row.lo, row.hi]) svg("line", { x1: x(end), x2: x(end), y1: y - 4, y2: y + 4, style: `stroke:${stroke}`, "stroke-width": 1.5 }, root);
    }
    svg("circle", { cx: x(row.mean), cy: y, r: 5, style: `stroke:${stroke};fill:${row.decided ? stroke : "var(--raised)"}`, "stroke-width": 2 }, root);
    if (width > 620) {
      const interval = known(row.lo) ? ` [${signed(row.lo, metric.digits)}, ${signed(row.hi, metric.digits)}]` : "";
      svg("text", { x: width - 4, y: y + 4, "text-anchor": "end" }, root, signed(row.mean, metric.digits) + interval + (row.after || ""));
    }
  });
}

function fit(text, length) {
  return text.length > length ? text.slice(0, Math.max(1, Math.floor(length) - 1)) + "…" : text;
}

function differences(metric) {
  return data.variants.map((variant, i) => {
    const d = variant.paired[metric.key];
    if (d) return { label: variant.label, color: color(i), decided: d.verdict !== "open", ...d };
    return { label: variant.label, text: i === 0 ? "baseline" : variant.missing };
  });
}

function effects(metric) {
  const rows = [];
  let axis = null;
  for (const effect of data.effects[metric.key]) {
    if (effect.axis !== axis) rows.push({ label: effect.axis, heading: true, text: `against ${effect.reference}` });
    axis = effect.axis;
    rows.push({ ...effect, label: effect.value, color: "var(--c1)", decided: false, after: ` · ${effect.pairs} ${effect.pairs === 1 ? "pair" : "pairs"}` });
  }
  return rows;
}

/* Quality against cost. */
function scatter(box, width, metric, cost) {
  const points = data.variants.map((v, i) => ({ label: v.label, x: v.costs[cost.key], y: v.summaries[metric.key][0], sd: v.summaries[metric.key][1], color: color(i) }))
    .concat((byId("with-references").checked ? data.references : []).map((r) => ({ label: r.label, x: r.costs[cost.key], y: r.values[metric.key], color: "var(--muted)", reference: true })))
    .filter((p) => known(p.x) && known(p.y));
  const root = canvas(box, width, 360, `${metric.name} against ${cost.name}`);
  if (!points.length) return svg("text", { class: "muted", x: 16, y: 40 }, root, "Nothing to show yet.");
  const positive = points.filter((p) => p.x > 0).map((p) => p.x);
  const spread = points.every((p) => p.x > 0) && Math.max(...positive) > 8 * Math.min(...positive);
  const xs = points.map((p) => p.x), ys = points.flatMap((p) => [p.y - (p.sd || 0), p.y + (p.sd || 0)]);
  const area = { left: 62, right: width - 24, top: 34, bottom: 306 };
  const pad = 0.08 * (Math.max(...ys) - Math.min(...ys) || 1);
  const reach = Math.max(...xs) - Math.min(...xs) || Math.max(...xs) || 1;
  const x = spread ? scale(Math.min(...xs) / 1.3, Math.max(...xs) * 1.6, area.left, area.right, true)
    : scale(Math.min(...xs) - 0.06 * reach, Math.max(...xs) + 0.14 * reach, area.left, area.right);
  const y = scale(Math.min(...ys) - pad, Math.max(...ys) + pad, area.bottom, area.top);
  frame(root, x, y, area, [cost.name, metric.name]);
  const taken = points.map((p) => ({ x: x(p.x) - 6, y: y(p.y) + 4, wide: 12 }));
  for (const p of points.sort((a, b) => y(a.y) - y(b.y))) {
    const px = x(p.x), py = y(p.y);
    if (p.sd) svg("line", { x1: px, x2: px, y1: y(p.y - p.sd), y2: y(p.y + p.sd), style: `stroke:${p.color}`, "stroke-width": 1.5 }, root);
    const mark = p.reference ? svg("path", { d: `M${px} ${py - 6}l6 6l-6 6l-6 -6z`, style: `stroke:${p.color};fill:var(--raised)`, "stroke-width": 1.8 }, root)
      : svg("circle", { cx: px, cy: py, r: 5.5, style: `fill:${p.color}` }, root);
    svg("title", {}, mark, `${p.label}: ${short(p.y)}, ${short(p.x)} ${cost.name}`);
    const text = fit(p.label, 34), wide = 6.6 * text.length;
    const box = { x: 0, y: 0, wide }, right = px + 10, left = px - 10 - wide;
    for (let k = 0; k < 60; k += 1) {  // to the right, to the left, and a line further down
      const flip = right + wide > width - 4 || (k % 2 === 1 && left > area.left);
      Object.assign(box, { x: flip ? left : right, y: py + 4 + 14 * Math.floor(k / 2) });
      if (!taken.some((t) => Math.abs(t.y - box.y) < 14 && t.x < box.x + wide && box.x < t.x + t.wide)) break;
    }
    taken.push(box);
    svg("text", { x: box.x < px ? px - 10 : box.x, y: box.y, "text-anchor": box.x < px ? "end" : "start", class: p.reference ? "muted" : "" }, root, text);
  }
}

/* Training curves: mean and band of each variant. */
function lines(box, width, name, hidden) {
  const curves = data.curves[name].filter((curve) => !hidden.has(curve.variant) && curve.steps.length);
  const root = canvas(box, width, 340, name);
  if (!curves.length) return svg("text", { class: "muted", x: 16, y: 40 }, root, "No variant is shown.");
  const area = { left: 62, right: width - 16, top: 34, bottom: 286 };
  const steps = curves.flatMap((curve) => [curve.steps[0], curve.steps[curve.steps.length - 1]]);
  const means = curves.flatMap((curve) => curve.mean);
  const logarithmic = Math.min(...means) > 0 && Math.max(...means) > 30 * Math.min(...means);
  const ends = logarithmic ? means : curves.flatMap((curve) => curve.mean.flatMap((m, k) => [m - curve.sd[k], m + curve.sd[k]]));
  const low = Math.min(...ends), high = Math.max(...ends), pad = 0.05 * (high - low || Math.abs(high) || 1);
  const x = scale(Math.min(...steps), Math.max(...steps), area.left, area.right);
  const y = logarithmic ? scale(low / 1.2, high * 1.2, area.bottom, area.top, true) : scale(low - pad, high + pad, area.bottom, area.top);
  frame(root, x, y, area, ["optimizer steps", name]);
  const floor = (v) => y(logarithmic ? Math.max(v, low / 1.2) : v);
  const path = (steps, values) => steps.map((s, k) => `${x(s).toFixed(1)} ${floor(values[k]).toFixed(1)}`).join("L");
  for (const curve of curves) {
    if (curve.sd.some((s) => s > 0)) {
      const above = path(curve.steps, curve.mean.map((m, k) => m + curve.sd[k]));
      const below = path([...curve.steps].reverse(), curve.mean.map((m, k) => m - curve.sd[k]).reverse());
      svg("path", { d: `M${above}L${below}Z`, style: `fill:${color(curve.variant)};opacity:.13` }, root);
    }
  }
  for (const curve of curves) {
    const line = svg("path", { d: "M" + path(curve.steps, curve.mean), fill: "none", style: `stroke:${color(curve.variant)}`, "stroke-width": 1.8, "stroke-dasharray": dashes(curve.variant), "stroke-linejoin": "round" }, root);
    svg("title", {}, line, data.variants[curve.variant].label);
    if (curve.steps.length === 1) svg("circle", { cx: x(curve.steps[0]), cy: floor(curve.mean[0]), r: 4, style: `fill:${color(curve.variant)}` }, root);
  }
}

/* Sorting by the headings; what has no number stays last. */
function sortable(table) {
  table.querySelectorAll("thead button").forEach((button) => {
    const heading = button.closest("th");
    button.addEventListener("click", () => {
      const downwards = heading.getAttribute("aria-sort") === (heading.dataset.first === "descending" ? "descending" : "ascending");
      const direction = heading.dataset.first === "descending" ? (downwards ? "ascending" : "descending") : (downwards ? "descending" : "ascending");
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const key = (row) => row.cells[heading.cellIndex].dataset.value;
      const body = table.tBodies[0];
      const order = [...body.rows].map((row) => [key(row), row]);
      order.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (heading.classList.contains("text") ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      });
      body.append(...order.map(([, row]) => row));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
for (const section of document.querySelectorAll("[data-needs]")) {
  section.hidden = !data.has[section.dataset.needs];
  document.querySelector(`nav a[href="#${section.id}"]`).hidden = section.hidden;
}
const metricNamed = Object.fromEntries(data.metrics.map((metric) => [metric.key, metric]));
const choices = data.metrics.length > 1 ? data.metrics.map((metric) => [metric.key, metric.name]) : [];
const chosen = { forest: data.metrics[0], effects: data.metrics[0], quality: data.metrics[0], cost: data.costs[0] };
const drawings = {
  forest: responsive("forest", (box, width) => forest(box, width, differences(chosen.forest), chosen.forest)),
  effects: responsive("effects-plot", (box, width) => forest(box, width, effects(chosen.effects), chosen.effects)),
  quality: responsive("scatter", (box, width) => chosen.cost && scatter(box, width, chosen.quality, chosen.cost)),
};
for (const [name, draw] of Object.entries(drawings)) {
  const set = choice(document.querySelector(`[data-choice="${name}"]`), choices, (key) => { chosen[name] = metricNamed[key]; draw(); });
  set(data.metrics[0].key);
}
data.costs.forEach((cost) => option(byId("cost-of"), cost.key, cost.name));
byId("references").hidden = !data.references.length;
byId("with-references").addEventListener("change", drawings.quality);
byId("cost-of").addEventListener("change", (event) => { chosen.cost = data.costs.find((cost) => cost.key === event.target.value); drawings.quality(); });

const hidden = new Set(data.variants.map((_, i) => i).filter((i) => i > 7));
const drawLines = responsive("lines", (box, width) => data.has.curves && lines(box, width, byId("curve-of").value, hidden));
Object.keys(data.curves).forEach((name) => option(byId("curve-of"), name, name));
if (data.curves["val/psnr"]) byId("curve-of").value = "val/psnr";
byId("curve-of").addEventListener("change", drawLines);
data.variants.forEach((variant, i) => {
  const button = document.createElement("button");
  const swatch = document.createElement("span");
  button.type = "button";
  swatch.className = "swatch";
  swatch.style.background = color(i);
  button.append(swatch, variant.label);
  button.setAttribute("aria-pressed", String(!hidden.has(i)));
  button.addEventListener("click", () => {
    if (!hidden.delete(i)) hidden.add(i);
    button.setAttribute("aria-pressed", String(!hidden.has(i)));
    drawLines();
  });
  byId("legend").append(button);
});
drawLines();
