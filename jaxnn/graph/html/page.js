// Steps through the passes, folds, pins and explains what page_drawing.js has drawn.

// ---------------------------------------------------------------- steps

let items; // what is visible, in the forward order
let back; // of these, what has a gradient, in the reverse order

function visible() {
  items = scene.cards.map(card => card.item).filter(item => item >= 0).sort((a, b) => span(a)[0] - span(b)[0]);
  const has = item => {
    const [first, last] = span(item);
    for (let i = first; i <= last; i++) if (!G.nodes[i] || G.nodes[i].grads.some(g => g != null)) return true;
    return false;
  };
  back = G.backward ? items.filter(has).reverse() : [];
  slider.max = lastStep();
}
const lastStep = () => items.length + (G.backward ? 1 + back.length : 0) + 1;

function step() { // the number of the step that is shown
  if (state.phase === "all") return lastStep();
  if (state.phase === "forward") return items.filter(item => span(item)[1] <= state.at).length;
  return items.length + 1 + back.filter(item => span(item)[0] >= state.at).length;
}
function current() {
  if (state.phase === "all") return null;
  const list = state.phase === "forward" ? items : back;
  return list.find(item => { const [first, last] = span(item); return first <= state.at && state.at <= last; }) ?? null;
}
function goTo(n) {
  n = Math.max(0, Math.min(lastStep(), n));
  state.hovered = null;
  if (n === lastStep()) Object.assign(state, { phase: "all", at: 0 });
  else if (n <= items.length) Object.assign(state, { phase: "forward", at: n ? span(items[n - 1])[1] : -1 });
  else {
    const k = n - items.length - 1;
    Object.assign(state, { phase: "backward", at: k ? span(back[k - 1])[0] : G.n });
  }
  update();
  if (current() !== null) reveal(current());
}

let timer = null;
function play(on) {
  clearInterval(timer);
  timer = null;
  if (on) {
    if (step() >= lastStep() - 1) goTo(0);
    timer = setInterval(() => { if (step() >= lastStep() - 1) { play(false); goTo(lastStep()); } else goTo(step() + 1); }, BEAT);
  }
  byId("play").textContent = on ? "❚❚ pause" : "▶ play";
  byId("play").setAttribute("aria-label", on ? "pause" : "play");
}

// ---------------------------------------------------------------- what changes with a step

function update() {
  if (!scene.drawn) return; // what had the focus has just been taken away
  const now = current(), focus = state.pinned ?? state.hovered;
  svg.dataset.phase = state.phase;
  for (const [item, { g, card, fields }] of shapes) {
    g.classList.toggle("pinned", item === state.pinned);
    g.classList.toggle("now", item === now);
    if (!card) continue;
    let reached = true;
    for (const row of fields) {
      const known = row.label === "value" ? valueKnown(card.ref) : gradientText(card.ref) !== "";
      const shown = row.label === "value" ? (known ? short(row.brief, "value") : "") : gradientText(card.ref);
      const done = row.label === "value" ? known : known && parts(card.ref).every(part => part.arrived);
      row.field.textContent = (done && isWrong(row.brief) ? "⚠ " : "") + shown;
      row.field.classList.toggle("bad", done && isWrong(row.brief));
      row.bars?.classList.toggle("hidden", !done);
      if (row.label === "value") reached = known;
    }
    g.classList.toggle("waiting", !reached);
    g.setAttribute("aria-label", aria(item, fields));
  }
  for (const edge of scene.edges) {
    const { target, link } = edge;
    const touched = focus !== null && (target === focus || edge.source === focus || link.ref[0] === focus);
    const part = passedOn(edge);
    const returned = returnsAlong(edge);
    const active = target !== null && target === now && (part != null || state.phase === "forward");
    edge.line.setAttribute("class", ["edge", valueKnown(link.ref) ? "" : "waiting", touched ? "touched" : "",
      active ? `active ${state.phase}` : "", returned && state.phase === "backward" ? "returned" : ""].join(" "));
    const backwards = returned && state.phase === "backward";
    edge.line.setAttribute("marker-end", edge.ends && !backwards ? `url(#${active ? "now" : "ahead"})` : "");
    edge.line.setAttribute("marker-start", edge.starts && backwards ? "url(#back)" : "");
    if (edge.label) {
      edge.label.classList.toggle("hidden", !returned);
      edge.label.classList.toggle("active", active && state.phase === "backward");
    }
  }
  slider.value = step();
  const words = statusText(now);
  slider.setAttribute("aria-valuetext", words);
  byId("status").textContent = words;
  byId("before").disabled = byId("start").disabled = step() === 0;
  byId("next").disabled = byId("end").disabled = state.phase === "all";
  describe(focus ?? now);
}
function aria(item, fields) {
  const kind = item < 0 ? G.leaves[-1 - item].kind : isGroup(item) ? "folded group" : `operation ${item}`;
  return [`${kind} ${nameOf(item)}`, ...fields.map(row => `${row.label} ${row.field.textContent || "not yet"}`)].join(", ")
    + (isGroup(item) ? "; press to unfold" : "");
}
const said = (ref, role) => `${sourceName(ref)}${brief(ref) == null ? "" : isNumber(brief(ref)) ? ` = ${minus(brief(ref))}` : ""}`;

function statusText(now) {
  const graph = G.name;
  if (state.phase === "all") return "Everything is shown. Home, then →: the passes step by step.";
  if (state.phase === "forward") {
    if (now === null) return `Forward, start: what ${graph} is given.`;
    const head = `Forward, ${step()} of ${items.length}: ${nameOf(now)}`;
    if (isGroup(now)) return `${head}, ${subgraphOf(now).last - subgraphOf(now).first + 1} operations in one.`;
    const node = G.nodes[now], value = node.values[0];
    const from = node.inputs.map(ref => said(ref)).join(", ");
    return `${head} of ${from}${isNumber(value) ? ` gives ${minus(value)}` : ""}.`;
  }
  if (now === null) return `Backward, start: the gradient of the output is ${G.seeds.size === 1 && isNumber([...G.seeds.values()][0]) ? minus([...G.seeds.values()][0]) : "given"}.`;
  const head = `Backward, ${step() - items.length - 1} of ${back.length}: ${nameOf(now)}`;
  if (isGroup(now)) return `${head}, ${subgraphOf(now).last - subgraphOf(now).first + 1} operations in one.`;
  const node = G.nodes[now], own = node.grads.find(g => g != null);
  const passes = node.inputs.map((ref, slot) => node.passed[slot] == null ? null
    : `${short(node.passed[slot])} to ${sourceName(ref)}`).filter(Boolean);
  return `${head} has gradient ${isNumber(own) ? minus(own) : short(own)}; it passes ${passes.join(" and ") || "nothing on"}.`;
}

// ---------------------------------------------------------------- the panel

function describe(item) {
  panel.replaceChildren();
  panel.dataset.item = item ?? "";
  if (item === null) overview();
  else if (item < 0) describeLeaf(G.leaves[-1 - item]);
  else if (isGroup(item)) describeGroup(item);
  else describeNode(G.nodes[item]);
}
const add = (...children) => panel.append(...children.filter(child => child !== null));
const p = (cls, ...children) => html("p", { class: cls }, ...children);

function full(brief) { // an array, in all that is known of it
  if (brief == null) return html("span", { class: "none" }, "none");
  if (isNumber(brief)) return html("b", { class: isWrong(brief) ? "bad" : "number" }, minus(brief));
  const [kind, size, low, high, norm, wrong, drawn] = brief;
  const box = html("div", { class: "array" }, html("code", {}, text(kind)));
  if (brief.length === 1 || size === 0) return box;
  const list = html("dl", {});
  const row = (name, value, cls = "") => list.append(html("dt", {}, name), html("dd", { class: cls }, value));
  if (wrong < size) { row("range", `${minus(low)} … ${minus(high)}`); row("norm", norm); }
  row("not finite", wrong ? `⚠ ${wrong} of ${size}` : "0", wrong ? "bad" : "");
  box.append(list);
  if (drawn) {
    const picture = element(svg, "svg", { class: "histogram", viewBox: "0 0 160 44", role: "img", "aria-label": `histogram from ${low} to ${high}` });
    picture.remove();
    drawBars(picture, drawn, 0, 2, 160, 30);
    element(picture, "text", { x: 0, y: 43 }, minus(low));
    element(picture, "text", { x: 160, y: 43, "text-anchor": "end" }, minus(high));
    box.append(picture);
  }
  return box;
}
const inLine = brief => html("b", { class: isWrong(brief) ? "bad" : "number" }, short(brief));
function link(item, label) {
  const name = label ?? (item >= 0 ? `${nameOf(item)} (${item})` : nameOf(item));
  const button = html("button", { class: "link" });
  name.split(/(?=\[)/).forEach((part, i) => button.append(...(i ? [html("wbr")] : []), part)); // a path breaks at its keys
  button.addEventListener("click", () => { show(item); pin(item, true); });
  return button;
}
function gradientSection(ref, title = "gradient δ") {
  const total = gradient(ref), all = parts(ref);
  const rows = html("div", { class: "parts" });
  if (total == null) return [html("h3", {}, title), p("none", "none: no float, or no path to the output")];
  const shown = state.phase === "all" || (all.length ? all.every(part => part.arrived) : state.phase !== "forward");
  for (const part of all) {
    rows.append(html("div", { class: part.arrived ? "part" : "part waiting" },
      html("span", {}, part.from === null ? "given at the output" : "from ", part.from === null ? "" : link(part.from)),
      part.arrived ? inLine(part.brief) : "not yet"));
  }
  const scalar = isNumber(total) && all.length > 1 && shown;
  return [html("h3", {}, title), shown ? (scalar ? p("sum", `${sum(all)} = `, html("b", {}, minus(total))) : full(total))
    : p("none", all.some(part => part.arrived) ? "not all of it has arrived" : "not yet"),
    all.length > 1 ? p("hint", `the sum of the ${all.length} parts that are passed to it`) : "", all.length ? rows : ""];
}
function heading(title, kind) { add(html("h2", {}, title), p("kind", kind)); }
function source(node) {
  if (!node.file) return "";
  return p("source", html("code", { title: `${node.file}:${node.line}` }, `${node.file.split(/[\\/]/).pop()}:${node.line}`),
    node.fn ? ` in ${node.fn}` : "");
}
function nesting(item) { // the groups around an item
  const names = [];
  for (let g = G.home.get(item); g > 0; g = G.subgraphs[g].parent) names.unshift(nameOf(G.n + g));
  return names.length ? p("path", `in ${names.join(" › ")}`) : "";
}
function describeNode(node) {
  heading(`${node.symbol && !node.symbol.startsWith("^") ? node.symbol + " " : ""}${node.name}`, `operation ${node.id}`);
  add(nesting(node.id), source(node));
  if (node.note) add(p("note", node.note));
  add(html("h3", {}, "local rule"));
  if (node.formula) add(html("pre", { class: "formula" }, node.formula.replace(/, (?=δ\S* =)/g, "\n")));
  add(p("kind", node.rule));
  const here = locals(node);
  if (here) add(p("hint", here));
  node.values.forEach((value, o) => {
    const many = node.values.length > 1 ? ` of output ${o}` : "";
    add(html("h3", {}, `value${many}`), valueKnown([node.id, o]) ? full(value) : p("none", "not yet"));
    if (G.backward) add(...gradientSection([node.id, o], `gradient δ${many}`));
  });
  if (node.inputs.length) {
    const known = state.phase === "all" || (state.phase === "backward" && node.id >= state.at);
    const table = html("div", { class: "parts" });
    node.inputs.forEach((ref, slot) => table.append(html("div", { class: "part" },
      html("span", {}, link(ref[0]), ref[1] ? ` output ${ref[1]}` : ""),
      node.passed.length && node.passed[slot] != null ? (known ? inLine(node.passed[slot]) : "not yet") : html("span", { class: "none" }, "nothing"))));
    add(html("h3", {}, G.backward ? "passes back to" : "inputs"), table);
  }
  if (node.params) add(html("h3", {}, "parameters"), html("pre", {}, node.params));
  if (node.inside.length) {
    const list = html("div", { class: "inside" });
    for (const g of node.inside) {
      const button = html("button", {}, data.graphs[g].name);
      button.addEventListener("click", () => enter(g));
      list.append(button);
    }
    add(html("h3", {}, "inside"), list);
  }
}
function locals(node) { // the letters of the formula, as numbers
  const letters = { 1: ["x"], 2: ["x", "y"] }[node.inputs.length];
  if (!letters || node.values.length !== 1 || !letters.every(letter => new RegExp(`δ${letter} =`).test(node.formula))) return "";
  const values = [...node.inputs.map(brief), node.values[0]], names = [...letters, { 1: "y", 2: "z" }[node.inputs.length]];
  if (!values.every(isNumber) || !valueKnown([node.id, 0])) return "";
  const own = node.grads[0], known = own != null && (state.phase === "all" || (state.phase === "backward" && node.id >= state.at));
  return `here ${names.map((name, i) => `${name} = ${minus(values[i])}`).join(", ")}${known ? `, δ = ${minus(own)}` : ""}`;
}
function describeLeaf(leaf) {
  heading(leaf.name, { input: "input", constant: "constant, closed over", number: "number in the code" }[leaf.kind] || leaf.kind);
  add(nesting(-1 - leaf.k), html("h3", {}, "value"), full(leaf.value));
  if (G.backward && leaf.kind !== "number") add(...gradientSection([-1 - leaf.k, 0], "gradient"));
}
function describeGroup(item) {
  const subgraph = subgraphOf(item), count = subgraph.last - subgraph.first + 1;
  heading(subgraph.name || nameOf(item), `group of ${count} operations`);
  add(nesting(item));
  if (subgraph.omitted) add(p("note", "Its operations are not in this page, which has room for no more of them."));
  const ref = mainRef(item);
  if (ref) {
    add(html("h3", {}, "value that leaves it"), valueKnown(ref) ? full(brief(ref)) : p("none", "not yet"));
    if (G.backward) add(...gradientSection(ref));
  }
  const inside = G.leaves.filter(l => l && l.kind !== "number" && within(G.home.get(-1 - l.k), subgraph.g));
  if (inside.length) add(html("h3", {}, "used in it alone"), leafTable(inside));
}
function leafTable(leaves) {
  const shown = state.phase === "all";
  const table = html("table", {}, html("tr", {}, html("th", {}, "name"), html("th", {}, "value"), G.backward ? html("th", {}, "gradient") : ""));
  for (const leaf of leaves.slice(0, 40)) {
    table.append(html("tr", {}, html("td", {}, link(-1 - leaf.k)), html("td", {}, short(leaf.value, "value")),
      G.backward ? html("td", { class: isWrong(leaf.grad) ? "bad" : "" }, leaf.grad == null ? "none" : shown ? short(leaf.grad) : "") : ""));
  }
  if (leaves.length > 40) table.append(html("tr", {}, html("td", { colspan: 3 }, `and ${leaves.length - 40} more`)));
  return table;
}
function overview() {
  add(html("h2", {}, G.name), p("kind", `${G.n} operations, ${G.leaves.length} leaves`));
  G.outputs.slice(0, 4).forEach((ref, i) => add(html("h3", {}, G.outputs.length > 1 ? `output ${i}` : "value"), state.phase === "forward" && !valueKnown(ref) ? p("none", "not yet") : full(G.value[i])));
  const inputs = G.leaves.filter(leaf => leaf && leaf.kind === "input");
  if (inputs.length) add(html("h3", {}, "inputs"), leafTable(inputs));
  const wrong = G.nodes.filter(node => node && wrongNode(node.id));
  if (wrong.length) {
    const list = html("div", { class: "parts" });
    for (const node of wrong.slice(0, 12)) {
      const what = node.values.some(isWrong) ? "value" : "gradient";
      list.append(html("div", { class: "part" }, link(node.id), html("span", { class: "bad" }, `⚠ ${what}`)));
    }
    add(html("h3", {}, `not finite: ${wrong.length} operations`), list);
  }
  const omitted = G.subgraphs.filter(subgraph => subgraph.omitted);
  if (omitted.length) {
    const lost = G.nodes.filter(node => !node).length;
    add(p("note", `${lost} of ${G.n} operations are in ${omitted.length} groups that cannot be opened here: the page would be too large.`));
  }
  add(legend());
}
function legend() {
  const rows = [["input", "an input"], ["constant", "a constant or a number"], ["operation", "an operation"], ["group", "a folded group: click to unfold"]];
  const box = html("details", { open: "" }, html("summary", {}, "what is what"));
  for (const [cls, words] of rows) box.append(html("div", { class: "key" }, html("i", { class: cls }), words));
  box.append(html("div", { class: "key" }, html("i", { class: "along" }, "0.5"), "what is passed back along an edge"),
    html("div", { class: "key" }, html("i", { class: "tie" }, "∧"), "a tie, a kink or a place of infinite slope"),
    p("hint", "Click or Enter pins an operation; Escape lets go. ← → step, Home and End, space plays. Drag and wheel move and zoom."));
  return box;
}

// ---------------------------------------------------------------- folding, pinning, opening

function toggle(g) {
  const item = G.n + g, before = place(item);
  if (state.open.has(g)) for (const subgraph of G.subgraphs) { if (within(subgraph.g, g)) state.open.delete(subgraph.g); }
  else state.open.add(g);
  state.hovered = null;
  if (state.pinned !== null) state.pinned = null;
  rebuild();
  const after = place(item);
  if (before && after) { camera.x += before.x - after.x; camera.y += before.y - after.y; look(); }
  shapes.get(item)?.g.focus({ preventScroll: true });
}
function place(item) { // on the screen
  const shape = shapes.get(item), at = shape && (shape.card || shape.box);
  return at ? { x: camera.x + (at.x + at.w / 2) * camera.k, y: camera.y + at.y * camera.k } : null;
}
function openAll() {
  const before = state.open.size;
  let count = items.length;
  for (const subgraph of G.subgraphs) {
    if (subgraph.omitted || state.open.has(subgraph.g)) continue;
    if (!state.open.has(subgraph.parent)) continue;
    count += subgraph.items.filter(item => item >= 0).length - 1;
    if (count > DRAWABLE) break;
    state.open.add(subgraph.g);
  }
  if (state.open.size > before) { rebuild(); fit(); }
  const left = G.subgraphs.filter(subgraph => !state.open.has(subgraph.g)).length;
  if (left) byId("status").textContent = `${left} groups stay folded: no more than ${DRAWABLE} items are drawn at once. Unfold them one by one.`;
}
function foldAll() {
  state.open = new Set([0]);
  state.pinned = state.hovered = null;
  rebuild();
  fit();
}
function show(item) { // opens what is around an item and brings it into view
  let changed = false;
  for (let g = G.home.get(item); g > 0; g = G.subgraphs[g].parent) if (!state.open.has(g)) { state.open.add(g); changed = true; }
  if (changed) rebuild();
  reveal(item);
}
function pin(item, keep = false) {
  state.pinned = state.pinned === item && !keep ? null : item;
  update();
}
function listen(g, item, act) {
  g.addEventListener("click", () => { if (!camera.dragged) act(); });
  g.addEventListener("keydown", event => {
    if (event.key === "Enter") { event.preventDefault(); act(); }
  });
  const over = on => () => {
    if (camera.dragging) return;
    state.hovered = on ? item : null;
    update();
  };
  g.addEventListener("pointerenter", over(true));
  g.addEventListener("pointerleave", over(false));
  g.addEventListener("focus", () => { if (g.matches(":focus-visible")) { over(true)(); reveal(item); } });
  g.addEventListener("blur", over(false));
}
function rebuild() {
  build();
  update();
}

const trail = []; // graphs around the one that is shown, each with its state
function enter(g) {
  if (G) trail.push([G, state]);
  load(g);
}
function load(g) {
  play(false);
  G = decode(data.graphs[g]);
  state = { open: new Set(G.opened), phase: "all", at: 0, pinned: null, hovered: null };
  present();
}
function present() {
  byId("counts").textContent = `${G.n} operations`;
  const path = byId("trail");
  path.replaceChildren();
  trail.forEach(([graph], i) => {
    const button = html("button", { class: "link" }, graph.name);
    button.addEventListener("click", () => { [G, state] = trail[i]; trail.length = i; present(); });
    path.append(button, " › ");
  });
  byId("title").textContent = G.name + (G.outputs.length === 1 && isNumber(G.value[0]) ? ` = ${minus(G.value[0])}` : "");
  const folds = G.subgraphs.length > 1;
  byId("folds").hidden = !folds;
  rebuild();
  fit();
}

// ---------------------------------------------------------------- zoom and pan

const camera = { x: 0, y: 0, k: 1, dragging: null, dragged: false, moved: false };
const CLOSEST = 3, FARTHEST = 0.01, MARGIN = 28;

function look() { view.setAttribute("transform", `translate(${camera.x} ${camera.y}) scale(${camera.k})`); }
function whole() { // the scale at which all is seen
  const { clientWidth: w, clientHeight: h } = svg;
  return Math.max(1e-4, Math.min((w - 2 * MARGIN) / scene.w, (h - 2 * MARGIN) / scene.h, 1.3));
}
function fit() {
  const { clientWidth: w, clientHeight: h } = svg, k = whole();
  Object.assign(camera, { k, x: (w - scene.w * k) / 2, y: (h - scene.h * k) / 2, moved: false });
  look();
}
function zoom(by, x = svg.clientWidth / 2, y = svg.clientHeight / 2) {
  const k = Math.max(Math.min(FARTHEST, whole()), Math.min(CLOSEST, camera.k * by)), ratio = k / camera.k;
  Object.assign(camera, { k, x: x - (x - camera.x) * ratio, y: y - (y - camera.y) * ratio, moved: true });
  look();
}
function reveal(item) { // moves the view if an item is out of it
  const shape = shapes.get(item), at = shape?.card ?? (shape && { ...shape.box, h: 22 }); // of an open group its head
  if (!at) return;
  const { clientWidth: w, clientHeight: h } = svg, k = camera.k;
  const left = camera.x + at.x * k, top = camera.y + at.y * k, right = left + at.w * k, bottom = top + at.h * k;
  const tall = Math.min(MARGIN + 40 * k, h / 4);
  const across = left < MARGIN || right > w - MARGIN, along = top < tall || bottom > h - tall;
  if (across) camera.x += w / 2 - (left + right) / 2;
  if (along) camera.y += h / 2 - (top + bottom) / 2;
  camera.moved ||= across || along;
  look();
}
svg.addEventListener("wheel", event => {
  if (window !== window.top && !document.hasFocus()) return; // in a notebook the wheel scrolls until one clicks
  event.preventDefault();
  const box = svg.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

const fingers = new Map();
svg.addEventListener("pointerdown", event => {
  fingers.set(event.pointerId, event);
  camera.dragged = false;
  camera.dragging = { x: event.clientX - camera.x, y: event.clientY - camera.y, from: [event.clientX, event.clientY] };
});
window.addEventListener("pointermove", event => {
  if (!fingers.has(event.pointerId)) return;
  const before = [...fingers.values()];
  fingers.set(event.pointerId, event);
  if (fingers.size === 2) {
    const [a, b] = before, [c, d] = [...fingers.values()], box = svg.getBoundingClientRect();
    const apart = (u, v) => Math.hypot(u.clientX - v.clientX, u.clientY - v.clientY);
    zoom(apart(c, d) / Math.max(1, apart(a, b)), (c.clientX + d.clientX) / 2 - box.left, (c.clientY + d.clientY) / 2 - box.top);
    camera.dragged = true;
    return;
  }
  const { from } = camera.dragging;
  if (!camera.dragged && Math.hypot(event.clientX - from[0], event.clientY - from[1]) < 4) return;
  Object.assign(camera, { x: event.clientX - camera.dragging.x, y: event.clientY - camera.dragging.y, dragged: true, moved: true });
  svg.classList.add("dragging");
  look();
});
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, event => {
  fingers.delete(event.pointerId);
  camera.dragging = null;
  svg.classList.remove("dragging");
});

// ---------------------------------------------------------------- controls

byId("start").addEventListener("click", () => { play(false); goTo(0); });
byId("before").addEventListener("click", () => { play(false); goTo(step() - 1); });
byId("next").addEventListener("click", () => { play(false); goTo(step() + 1); });
byId("end").addEventListener("click", () => { play(false); goTo(lastStep()); });
byId("play").addEventListener("click", () => play(timer === null));
slider.addEventListener("input", () => { play(false); goTo(Number(slider.value)); });
byId("fold").addEventListener("click", foldAll);
byId("unfold").addEventListener("click", openAll);
byId("closer").addEventListener("click", () => zoom(1.25));
byId("farther").addEventListener("click", () => zoom(0.8));
byId("fit").addEventListener("click", fit);

const KEYS = {
  ArrowRight: () => goTo(step() + 1), ArrowLeft: () => goTo(step() - 1), Home: () => goTo(0), End: () => goTo(lastStep()),
  " ": () => play(timer === null), "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), "0": fit,
  Escape: () => { state.pinned = state.hovered = null; update(); },
};
document.addEventListener("keydown", event => {
  const act = KEYS[event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.matches?.("button, summary")) return;
  event.preventDefault();
  if (event.key !== " " && event.key.length > 1 && event.key !== "Escape") play(false);
  act();
});
svg.addEventListener("click", event => {
  if (camera.dragged || event.target.closest("[data-item]")) return;
  state.pinned = null;
  update();
});
new ResizeObserver(() => { if (!camera.moved) fit(); }).observe(svg);
window.addEventListener("beforeprint", () => {
  svg.setAttribute("viewBox", `${-MARGIN} ${-MARGIN} ${scene.w + 2 * MARGIN} ${scene.h + 2 * MARGIN}`);
  view.removeAttribute("transform");
});
window.addEventListener("afterprint", () => { svg.removeAttribute("viewBox"); look(); });

load(0);
