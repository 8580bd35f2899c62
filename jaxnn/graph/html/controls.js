// Folding, pinning, opening, zoom, and the controls.

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
  if (left) byId("status").textContent = `${left} groups remain folded: at most ${DRAWABLE} items are drawn at once. Unfold them one by one.`;
}
function foldAll() {
  state.open = new Set([0]);
  state.pinned = state.hovered = null;
  rebuild();
  fit();
}
function show(item) { // opens the groups around an item and brings it into view
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

const trail = []; // graphs around the current one, each with its state
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
function whole() { // the scale that fits the whole graph
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
