// The drawing: cards, boxes of open groups, edges with what is passed back along them.

let scene; // { w, h, cards: [card], edges: [edge], boxes: [box], drawn }

function build() {
  scene = { cards: [], edges: [], boxes: [] };
  const root = arranged(0);
  (function spread(inner, ox, oy, depth) {
    const { subgraph, points, tops, bottoms } = inner;
    for (const point of points) {
      if (point.item === undefined) continue;
      const tenths = length => Math.round(10 * length) / 10;
      const at = { x: tenths(ox + point.x - point.w / 2), y: tenths(oy + point.y - point.h / 2), w: point.w, h: point.h };
      if (point.inner) {
        scene.boxes.push({ ...at, item: point.item, depth });
        spread(point.inner, at.x, at.y, depth + 1);
      } else scene.cards.push({ ...point, ...at });
    }
    for (const link of subgraph.links) scene.edges.push(route(subgraph, link, points, tops, bottoms, ox, oy));
  })(root, 0, 0, 1);
  Object.assign(scene, { w: root.w, h: root.h });
  visible();
  draw();
}

function route(subgraph, link, points, tops, bottoms, ox, oy) {
  const first = points[link.u], last = points[link.v];
  const folded = last.item !== undefined && isGroup(last.item) && !last.inner;
  let x = ox + first.x + link.from, y = oy + first.y + first.h / 2, row = first.row;
  let path = `M${x.toFixed(1)} ${y.toFixed(1)}`;
  for (const p of link.path.slice(1)) {
    const point = points[p], end = p === link.v;
    const bottom = oy + bottoms[row];
    if (bottom > y + 0.5) path += `V${bottom.toFixed(1)}`;
    y = Math.max(y, bottom);
    const nx = ox + point.x + (end ? link.to : 0);
    let ny = oy + tops[point.row];
    if (end) ny = Math.min(ny, oy + last.y - last.h / 2 - (folded ? STACK : 0));
    const middle = (y + ny) / 2;
    path += `C${x.toFixed(1)} ${middle.toFixed(1)} ${nx.toFixed(1)} ${middle.toFixed(1)} ${nx.toFixed(1)} ${ny.toFixed(1)}`;
    [x, y, row] = [nx, ny, point.row];
  }
  const top = oy + last.y - last.h / 2 - (folded ? STACK : 0);
  if (top > y + 0.5) path += `V${top.toFixed(1)}`;
  return { link, path, subgraph, source: first.item ?? null, target: last.item ?? null, open: Boolean(last.inner), x, y: top,
    starts: first.item !== undefined && !first.inner, ends: last.item !== undefined && !last.inner };
}

const shapes = new Map(); // item: its elements
function draw() {
  view.replaceChildren();
  shapes.clear();
  const layer = { boxes: element(view, "g"), edges: element(view, "g", { "aria-hidden": "true" }), cards: element(view, "g") };
  const order = [
    ...scene.boxes.map(box => [firstUse(box.item) - 0.5 + 0.001 * box.depth, () => drawBox(layer, box)]),
    ...scene.cards.map(card => [firstUse(card.item), () => drawCard(layer.cards, card)]),
  ].sort((a, b) => a[0] - b[0]);
  for (const [, make] of order) make();
  const into = new Map();
  for (const edge of scene.edges) into.set(edge.target, (into.get(edge.target) || 0) + 1);
  for (const edge of scene.edges) drawEdge(layer, edge, into.get(edge.target));
  const labels = element(view, "g", { "aria-hidden": "true" });
  for (const edge of scene.edges) if (edge.label) labels.append(edge.label);
  scene.drawn = true;
}
function firstUse(item) { // its place in forward order
  if (item >= 0) return span(item)[0];
  const uses = G.uses.get(`${item}:0`);
  return uses ? uses[0][0] - 0.25 : -1;
}

function drawBox(layer, box) {
  element(layer.boxes, "rect", { class: `box depth${box.depth % 2}`, x: box.x, y: box.y, width: box.w, height: box.h, rx: 10 });
  const name = nameOf(box.item), w = wide(name, "bold 13px") + 34;
  const head = element(layer.cards, "g", { class: "boxhead", transform: `translate(${box.x + 8} ${box.y - 11})`,
    tabindex: 0, role: "button", "aria-expanded": "true", "data-item": box.item, "data-name": name,
    "aria-label": `group ${name}, unfolded; press to fold` });
  element(head, "rect", { width: w, height: 22, rx: 11 });
  element(head, "text", { x: 10, y: 15.5, class: "sign" }, "▾");
  element(head, "text", { x: 25, y: 15.5, class: "name" }, name);
  listen(head, box.item, () => toggle(box.item - G.n));
  shapes.set(box.item, { g: head, box });
}

function drawCard(layer, card) {
  const wrong = wrongIn(card.item);
  const g = element(layer, "g", { class: `card ${card.kind}${wrong ? " wrong" : ""}`, tabindex: 0, role: "button",
    transform: `translate(${card.x} ${card.y})`, "data-item": card.item, "data-name": nameOf(card.item),
    "aria-expanded": isGroup(card.item) ? "false" : null });
  const rx = card.item < 0 ? Math.min(16, card.h / 2) : 5;
  if (isGroup(card.item)) {
    for (const d of [STACK, STACK / 2]) element(g, "rect", { class: "stack", x: d, y: -d, width: card.w, height: card.h, rx });
  }
  element(g, "rect", { class: "ground", width: card.w, height: card.h, rx });
  let x = PAD.card;
  if (isGroup(card.item)) { element(g, "text", { class: "sign", x, y: 18 }, card.kind === "group" ? "▸" : "▪"); x += 16; }
  if (card.symbol) {
    element(g, "text", { class: "symbol", x, y: 19 }, card.symbol);
    x += wide(card.symbol, "bold 16px") + 8;
  }
  const alone = !card.rows.length && !card.sub && card.item < 0;
  element(g, "text", { class: "name", x: alone ? card.w / 2 : x, y: 18, "text-anchor": alone ? "middle" : null }, card.title);
  if (card.tag) {
    const w = wide(card.tag, "11px") + 10;
    element(g, "rect", { class: "tag", x: card.w - w - 6, y: 5, width: w, height: 16, rx: 8 });
    element(g, "text", { class: "tagtext", x: card.w - w / 2 - 6, y: 17, "text-anchor": "middle" }, card.tag);
  }
  let y = 26;
  if (card.sub) { element(g, "text", { class: "sub", x: PAD.card, y: y + 7 }, card.sub); y += 15; }
  const fields = card.rows.map((row, i) => {
    const base = y + 13 + 19 * i;
    element(g, "text", { class: "label", x: PAD.card, y: base }, row.label);
    const bars = barsOf(row.summary) ? drawBars(g, barsOf(row.summary), card.w - PAD.card - 48, base - 11, 48, 13) : null;
    const field = element(g, "text", { class: `field ${row.label}`, x: card.w - PAD.card - (card.rows.some(r => barsOf(r.summary)) ? 54 : 0),
      y: base, "text-anchor": "end" });
    return { ...row, field, bars };
  });
  listen(g, card.item, () => isGroup(card.item) && card.kind === "group" ? toggle(card.item - G.n) : pin(card.item));
  shapes.set(card.item, { g, card, fields });
}
function drawBars(parent, drawn, x, y, w, h) {
  const g = element(parent, "g", { class: "bars", transform: `translate(${x} ${y})` });
  element(g, "path", { class: "axis", d: `M0 ${h}H${w}` });
  const step = w / drawn.length;
  [...drawn].forEach((c, i) => {
    const tall = parseInt(c, 36) / 35 * h;
    if (tall) element(g, "rect", { x: i * step + 0.4, y: h - tall, width: step - 0.8, height: tall });
  });
  return g;
}

function drawEdge(layer, edge, crowd) {
  const used = edge.link.slot >= 0 || edge.ends;
  edge.line = element(layer.edges, "path", { class: "edge", d: edge.path });
  const part = passedOn(edge);
  if (part == null || !(used || edge.link.total != null)) return;
  const shown = isNumber(part) ? minus(part) : short(part);
  const w = wide(shown, "bold 11px") + 10;
  const card = shapes.get(edge.target)?.card;
  if (card && crowd > 1 && w > card.w / crowd + 14) return; // it would cover its neighbour; the panel shows it
  edge.label = element(layer.edges, "g", { class: `passed${isWrong(part) ? " bad" : ""}`, transform: `translate(${edge.x} ${edge.y - 21})` });
  element(edge.label, "rect", { x: -w / 2, y: -8, width: w, height: 16, rx: 8 });
  element(edge.label, "text", { y: 4, "text-anchor": "middle", "data-from": nameOf(edge.target), "data-to": sourceName(edge.link.ref) }, shown);
}
function passedOn(edge) { // what is passed back along an edge into an operation or a group
  const { link, target } = edge;
  if (target === null || target < 0) return null;
  if (link.slot >= 0) return G.nodes[target].passed[link.slot];
  if (link.total != null) return link.total;
  if (!isGroup(target)) return null;
  const [first, last] = span(target);
  const inside = (G.uses.get(key(link.ref)) || []).filter(([node]) => node >= first && node <= last);
  return inside.map(([node, slot]) => G.nodes[node].passed[slot]).find(part => part != null) ?? null;
}
function returnsAlong(edge) { // whether something has been passed back along an edge by this step
  const { link, target, subgraph } = edge, part = passedOn(edge);
  if (state.phase !== "backward") return state.phase === "all" && part != null;
  if (target !== null && !edge.open) return part != null && span(target)[0] >= state.at;
  const [first, last] = target === null ? [subgraph.first, subgraph.last] : span(target);
  return parts(link.ref).some(({ from, arrived }) => arrived && (from !== null && from >= first && from <= last) === (target !== null));
}
const sourceName = ([node]) => nameOf(node);
