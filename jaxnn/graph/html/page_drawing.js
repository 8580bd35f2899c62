// Measures, places and draws a graph. The order of points within each subgraph comes with the data. Names: an item is an
// operation (its id), a leaf (−1 − k) or a group (count of operations + g); a point is an item, an entry, an exit or a
// bend of one subgraph; a ref is an array, [node, output]. page.html puts this and page.js into one function.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const svg = byId("drawing"), view = byId("view"), panel = byId("panel"), slider = byId("slider");
const FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";
const GAP = { item: 26, bend: 12, row: 52, exit: 20 }; // pixels between neighbours
const STACK = 6; // how far the sheets below a folded group are seen
const PAD = { box: 18, head: 30, card: 10 };
const SWEEPS = 8, STIFF = 8; // of the fit: passes down and up; how much straighter a long edge is than a short one
const WIDEST = 200; // of a card's number
const LABELLED = 3; // edges into one card whose labels have room
const DRAWABLE = 800; // items at once
const BEAT = 900; // ms a step while playing

// ---------------------------------------------------------------- elements

function element(parent, name, attributes = {}, ...children) {
  const node = document.createElementNS(parent ? svg.namespaceURI : document.documentElement.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children);
  if (parent) parent.append(node);
  return node;
}
const html = (name, attributes, ...children) => element(null, name, attributes, ...children);

const pen = document.createElement("canvas").getContext("2d");
function wide(text, font = "13px") {
  pen.font = `${font} ${FONT}`;
  return pen.measureText(text).width;
}
function cut(text, most, font) {
  if (wide(text, font) <= most) return text;
  let n = text.length;
  while (n > 1 && wide(text.slice(0, n) + "…", font) > most) n -= 1;
  return text.slice(0, n) + "…";
}

// ---------------------------------------------------------------- the data, named

const text = i => data.strings[i];
const key = ref => `${ref[0]}:${ref[1]}`;
const minus = number => number.replace(/-/g, "−");

function decode(raw) {
  const nodes = raw.nodes.map((n, id) => n && {
    id, name: text(n[0]), symbol: text(n[1]), inputs: n[2].map(r => Array.isArray(r) ? r : [r, 0]),
    values: n[3], grads: n[4], passed: n[5], formula: text(n[6]), rule: text(n[7]), note: text(n[8]),
    file: text(n[9]), fn: text(n[10]), params: text(n[11]), line: n[12], inside: n[13],
  });
  const leaves = raw.leaves.map((l, k) => l && { k, name: l[0], kind: l[1], value: l[2], grad: l[3] });
  const subgraphs = raw.subgraphs.map(([name, parent, first, last, exits, items, entries, links, rows, bends], g) => ({
    g, name, parent, first, last, exits, items, entries, rows, omitted: !items,
    links: (links || []).map(([u, v, ref, slot, total], i) => ({ u, v, ref, slot, total, path: [u, ...bends[i], v] })),
  }));
  const uses = new Map(); // of each array: [node, slot]
  for (const node of nodes) if (node) node.inputs.forEach((ref, slot) => {
    if (!uses.has(key(ref))) uses.set(key(ref), []);
    uses.get(key(ref)).push([node.id, slot]);
  });
  const fixed = []; // operations on numbers of the code alone: a NaN there is meant
  for (const node of nodes) {
    fixed.push(Boolean(node?.inputs.every(([i]) => i < 0 ? leaves[-1 - i]?.kind === "number" : fixed[i])));
  }
  const home = new Map(); // item: the subgraph that it is in
  for (const subgraph of subgraphs) for (const item of subgraph.items || []) home.set(item, subgraph.g);
  const seeds = new Map(raw.outputs.map((ref, i) => [key(ref), raw.seeds[i] ?? null]));
  return { ...raw, nodes, leaves, subgraphs, uses, fixed, home, seeds, n: nodes.length };
}

// What an array is: a number is text; others are [kind, size, low, high, norm, not finite, histogram].
const isNumber = brief => typeof brief === "string";
const barsOf = brief => isNumber(brief) ? "" : brief[6];
const isWrong = brief => brief != null && (isNumber(brief) ? /nan|inf/.test(brief) : brief[5] > 0);

let G; // the graph that is shown
let state; // { open: Set of subgraphs, phase, at, pinned, hovered }

const brief = ([node, output]) => node < 0 ? G.leaves[-1 - node]?.value : G.nodes[node]?.values[output];
const gradient = ([node, output]) => node < 0 ? G.leaves[-1 - node]?.grad : G.nodes[node]?.grads[output];
const isGroup = item => item >= G.n;
const subgraphOf = item => G.subgraphs[item - G.n];

const lastKey = name => (/\['?([^'\]]*)'?\]$/.exec(name) || /\.(\w+)$/.exec(name) || [0, name])[1]; // of a tree's path
function mainRef(item) { // the array that a card speaks of
  if (item < 0) return [item, 0];
  if (!isGroup(item)) {
    const node = G.nodes[item];
    return [item, Math.max(0, node.grads.findIndex(g => g != null))];
  }
  const subgraph = subgraphOf(item);
  const left = subgraph.exits.length ? subgraph.exits : G.outputs.filter(([n]) => n >= subgraph.first && n <= subgraph.last);
  return left.find(ref => gradient(ref) != null) ?? left[0] ?? null;
}
const isOutput = ref => ref && G.seeds.has(key(ref));

function nameOf(item) {
  if (item < 0) return G.leaves[-1 - item].name;
  if (!isGroup(item)) return G.nodes[item].name;
  const { name, first, last } = subgraphOf(item);
  if (name.includes(" … ")) return name;
  return name ? name.split("/").pop() : `operations ${first}–${last}`;
}
const wrongNode = i => G.nodes[i] && !G.fixed[i] && [...G.nodes[i].values, ...G.nodes[i].grads].some(isWrong);
function wrongIn(item) {
  if (item < 0) {
    const leaf = G.leaves[-1 - item];
    return leaf.kind !== "number" && (isWrong(leaf.value) || isWrong(leaf.grad));
  }
  const [first, last] = span(item);
  for (let i = first; i <= last; i++) if (wrongNode(i)) return true;
  return false;
}
const span = item => isGroup(item) ? [subgraphOf(item).first, subgraphOf(item).last] : [item, item];

// ---------------------------------------------------------------- what is known at a step

const valueKnown = ([node]) => state.phase !== "forward" || node < 0 || node <= state.at;

function parts(ref) { // what arrives at an array's gradient, in the order of arrival: { from, text, arrived }
  const seed = G.seeds.get(key(ref));
  const found = seed == null ? [] : [{ from: null, brief: seed }];
  for (const [node, slot] of [...(G.uses.get(key(ref)) || [])].reverse()) {
    const part = G.nodes[node].passed[slot];
    if (part != null) found.push({ from: node, slot, brief: part });
  }
  for (const part of found) {
    part.arrived = state.phase === "all" || (state.phase === "backward" && (part.from === null || part.from >= state.at));
  }
  return found;
}
function gradientText(ref) { // for a card
  const all = parts(ref), here = all.filter(part => part.arrived), total = gradient(ref);
  if (state.phase === "all" && total == null) return "";
  if (state.phase !== "all" && !here.length) return all.length || state.phase === "forward" ? "" : short(total);
  if (here.length < all.length) return partial(all, here.length);
  if (isNumber(total) && all.length > 1) {
    const whole = `${sum(here)} = ${minus(total)}`;
    if (wide(whole, "bold 13px") <= WIDEST) return whole;
  }
  return short(total);
}
function partial(all, count) { // what has arrived of a gradient that is not complete
  const text = isNumber(all[0].brief) ? `${sum(all.slice(0, count))} + …` : "";
  return text && wide(text, "bold 13px") <= WIDEST / 2 ? text : `${count} of ${all.length} parts`;
}
const sum = some => some.map(part => minus(part.brief)).join(" + ").replace(/\+ −/g, "− ");
function short(brief, role = "grad") {
  if (brief == null) return "";
  if (isNumber(brief)) return minus(brief);
  const [, size, low, high, norm, wrong] = brief;
  if (brief.length === 1) return "";
  if (wrong) return `${wrong} of ${size} not finite`;
  if (size === 0) return "empty";
  if (role === "value" && text(brief[0]).startsWith("bool")) return low !== high ? "true and false" : `all ${low === "0" ? "false" : "true"}`;
  if (role === "value") return low === high ? `all ${minus(low)}` : `${minus(low)} … ${minus(high)}`;
  return `norm ${norm}`;
}

// ---------------------------------------------------------------- cards

function content(item) { // { title, symbol, sub, rows, kind, w, h }
  const ref = mainRef(item), value = ref && brief(ref), array = value != null && !isNumber(value);
  const leaf = item < 0 ? G.leaves[-1 - item] : null;
  const card = { item, ref, rows: [], sub: "", symbol: "", kind: "operation", title: nameOf(item) };
  if (leaf) {
    card.kind = leaf.kind;
    if (G.home.get(item) > 0) card.title = lastKey(leaf.name); // the groups around it say the rest
  }
  if (isGroup(item)) {
    const subgraph = subgraphOf(item), count = subgraph.last - subgraph.first + 1;
    const inside = G.leaves.filter(l => l && l.kind !== "number" && within(G.home.get(-1 - l.k), subgraph.g));
    const names = inside.map(l => lastKey(l.name));
    card.kind = subgraph.omitted ? "group omitted" : "group";
    card.sub = `${count} operation${count > 1 ? "s" : ""}` + (names.length && names.length < 4 ? ` · ${names.join(", ")}` : "");
  } else if (array) {
    card.sub = text(value[0]);
  }
  if (item >= 0 && !isGroup(item)) {
    card.symbol = G.nodes[item].symbol;
    if (G.nodes[item].values.length > 1) card.sub += ` and ${G.nodes[item].values.length - 1} more`;
  }
  if (leaf?.kind === "number" && !array) {
    card.title = minus(leaf.value);
  } else if (value != null && value.length !== 1 || isNumber(value)) {
    card.rows.push({ label: "value", brief: value });
    const back = gradient(ref);
    if (G.backward && back != null) card.rows.push({ label: "grad", brief: back });
  }
  const tags = [];
  if (item >= 0 && !isGroup(item) && G.nodes[item].note) tags.push("∧");
  if (isOutput(ref)) tags.push("output");
  card.tag = tags.join(" ");
  const bars = card.rows.some(row => barsOf(row.brief)) ? 54 : 0;
  const head = wide(card.title, "bold 13px") + (card.symbol ? wide(card.symbol, "bold 16px") + 8 : 0)
    + (isGroup(item) ? 16 : 0) + (card.tag ? wide(card.tag, "11px") + 18 : 0);
  const saved = { ...state };
  let widest = 0;
  for (const row of card.rows) {
    Object.assign(state, { phase: "all" });
    const shown = row.label === "grad" ? gradientText(ref) : short(row.brief, "value");
    const ways = [shown];
    if (row.label === "grad") {
      const all = parts(ref);
      for (let count = 1; count < all.length; count++) ways.push(partial(all, count));
    }
    widest = Math.max(widest, 42 + Math.max(...ways.map(way => wide(way, "bold 13px"))) + bars + (isWrong(row.brief) ? 16 : 0));
  }
  Object.assign(state, saved);
  card.w = Math.ceil(Math.max(leaf?.kind === "number" && !array ? 30 : 92, Math.min(head, 240), Math.min(wide(card.sub, "11px"), 240), widest)
    + 2 * PAD.card);
  const arriving = isGroup(item) ? subgraphOf(item).entries?.length ?? 0 : item < 0 ? 0 : G.nodes[item].inputs.length;
  if (arriving > 1 && arriving <= LABELLED) { // room for what is passed back along each edge
    const said = isGroup(item) ? ["norm 0.0000"] : G.nodes[item].passed.filter(part => part != null).map(part => short(part));
    card.w = Math.max(card.w, Math.ceil(arriving * (Math.max(0, ...said.map(part => wide(part, "11px"))) + 18)));
  }
  card.title = cut(card.title, card.w - 2 * PAD.card - (head - wide(card.title, "bold 13px")) + 1, "bold 13px");
  card.sub = cut(card.sub, card.w - 2 * PAD.card, "11px");
  card.h = 26 + (card.sub ? 15 : 0) + 19 * card.rows.length + (card.rows.length ? 5 : 0);
  return card;
}
function within(g, outer) {
  while (g > outer) g = G.subgraphs[g].parent;
  return g === outer;
}

// ---------------------------------------------------------------- placing

function arranged(g) { // a subgraph, opened: its points with centres and sizes, in its own coordinates
  const subgraph = G.subgraphs[g], count = subgraph.items.length + subgraph.entries.length + subgraph.exits.length;
  const points = [];
  for (let p = 0; p < count; p++) {
    const item = subgraph.items[p];
    if (item === undefined) points.push({ w: 0, h: 0, port: p < subgraph.items.length + subgraph.entries.length ? "entry" : "exit" });
    else if (isGroup(item) && state.open.has(item - G.n)) {
      const inner = arranged(item - G.n);
      points.push({ item, w: inner.w, h: inner.h, inner });
    } else points.push({ item, ...content(item) });
  }
  for (const row of subgraph.rows) for (const p of row) if (!points[p]) points[p] = { w: 0, h: 0, bend: true };
  subgraph.rows.forEach((row, r) => row.forEach(p => { points[p].row = r; }));
  placeAcross(subgraph, points);
  const tops = [], bottoms = [];
  let y = subgraph.entries.length || g === 0 ? 0 : PAD.head + 8;
  subgraph.rows.forEach((row, r) => {
    const tall = Math.max(0, ...row.map(p => points[p].h));
    if (r && r === subgraph.rows.length - 1 && subgraph.exits.length) y -= GAP.row - GAP.exit;
    tops.push(y);
    bottoms.push(y + tall);
    y += tall + GAP.row;
  });
  const unfed = new Set(points);
  for (const link of subgraph.links) unfed.delete(points[link.v]);
  for (const point of points) {
    const top = tops[point.row], bottom = bottoms[point.row];
    point.y = unfed.has(point) ? bottom - point.h / 2 : (top + bottom) / 2; // what has no inputs stands just above its use
  }
  const h = Math.max(0, y - GAP.row) + (subgraph.exits.length || g === 0 ? 0 : PAD.box);
  const left = Math.min(0, ...points.map(p => p.x - p.w / 2)), right = Math.max(0, ...points.map(p => p.x + p.w / 2));
  const side = g === 0 ? 0 : PAD.box;
  let w = right - left + 2 * side, shift = side - left;
  if (g) {
    const least = wide(nameOf(G.n + g), "bold 13px") + 70;
    if (w < least) { shift += (least - w) / 2; w = least; }
  }
  for (const point of points) point.x += shift;
  return { subgraph, points, tops, bottoms, w, h };
}

function placeAcross(subgraph, points) {
  const size = p => points[p].w;
  const gap = (p, q) => points[p].bend || points[q].bend || points[p].port && points[q].port ? GAP.bend : GAP.item;
  const near = points.map(() => ({ up: [], down: [] }));
  const seen = new Set();
  const ports = new Map(); // of each item: the links that come in
  for (const link of subgraph.links) {
    link.from = 0; link.to = 0;
    if (!ports.has(link.v)) ports.set(link.v, []);
    ports.get(link.v).push(link);
    for (let i = 1; i < link.path.length; i++) {
      const [p, q] = [link.path[i - 1], link.path[i]];
      const real = i === 1 || i === link.path.length - 1;
      if (!real && seen.has(`${p} ${q}`)) continue;
      seen.add(`${p} ${q}`);
      const weight = points[p].bend && points[q].bend ? STIFF : 1;
      const step = { p, q, link, first: i === 1, last: i === link.path.length - 1, weight };
      near[p].down.push(step);
      near[q].up.push(step);
    }
  }
  const sent = step => (step.first ? step.link.from : 0), taken = step => (step.last ? step.link.to : 0);
  const attach = () => {
    for (const link of subgraph.links) {
      link.from = leaves(points[link.u], link.ref);
      const inner = points[link.v].inner;
      if (inner) link.to = port(inner, "entry", link.ref) - points[link.v].w / 2;
    }
    for (const [v, links] of ports) {
      if (points[v].inner || points[v].port) continue;
      const order = link => points[link.path.at(-2)].x + (link.path.length === 2 ? link.from : 0);
      [...links].sort((a, b) => order(a) - order(b) || a.slot - b.slot).forEach((link, i, all) => {
        link.to = all.length === 1 ? 0 : ((i + 0.5) / all.length - 0.5) * points[v].w;
      });
    }
  };
  for (const row of subgraph.rows) apart(row, points, row.map(() => 0), row.map(() => 1), size, gap);
  attach();
  for (let sweep = 0; sweep < 3 * SWEEPS; sweep++) {
    if (sweep === SWEEPS || sweep === 2 * SWEEPS) attach();
    const down = sweep % 2 === 0;
    for (const row of down ? subgraph.rows : [...subgraph.rows].reverse()) {
      const wanted = [], weights = [];
      for (const p of row) {
        let some = down ? near[p].up.map(s => [s, true]) : near[p].down.map(s => [s, false]);
        if (sweep >= SWEEPS || !some.length) some = [...near[p].up.map(s => [s, true]), ...near[p].down.map(s => [s, false])];
        let total = 0, at = 0;
        for (const [step, up] of some) {
          total += step.weight;
          at += step.weight * (up ? points[step.p].x + sent(step) - taken(step) : points[step.q].x + taken(step) - sent(step));
        }
        wanted.push(total ? at / total : points[p].x);
        weights.push(total || 1);
      }
      apart(row, points, wanted, weights, size, gap);
    }
  }
  straighten(subgraph, points, gap);
  attach();
}
function straighten(subgraph, points, gap) { // a long edge stays on one line as far as there is room
  const done = new Set();
  for (const link of [...subgraph.links].sort((a, b) => b.path.length - a.path.length)) {
    const chain = link.path.slice(1, -1).filter(p => !done.has(p));
    const room = p => {
      const row = subgraph.rows[points[p].row], i = row.indexOf(p);
      const [left, right] = [row[i - 1], row[i + 1]];
      return [left === undefined ? -Infinity : points[left].x + points[left].w / 2 + gap(left, p),
        right === undefined ? Infinity : points[right].x - points[right].w / 2 - gap(p, right)];
    };
    while (chain.length) {
      let low = -Infinity, high = Infinity, n = 0;
      for (const p of chain) {
        const [l, h] = room(p);
        if (Math.max(low, l) > Math.min(high, h) + 1e-6) break;
        [low, high, n] = [Math.max(low, l), Math.min(high, h), n + 1];
      }
      const run = chain.splice(0, Math.max(1, n));
      const ends = [points[link.path[0]].x + link.from, points[link.v].x + link.to];
      const mean = (run.reduce((sum, p) => sum + points[p].x, 0) / run.length + ends[0] + ends[1]) / 3;
      for (const p of run) { if (n) points[p].x = Math.max(low, Math.min(high, mean)); done.add(p); }
    }
  }
}
function apart(row, points, wanted, weights, size, gap) { // isotonic regression: least squares under the gaps (Ayer et al. 1955)
  const offsets = [], blocks = [];
  let offset = 0;
  row.forEach((p, i) => {
    if (i) offset += (size(row[i - 1]) + size(p)) / 2 + gap(row[i - 1], p);
    offsets.push(offset);
    let block = [weights[i], wanted[i] - offset, 1];
    while (blocks.length && blocks.at(-1)[1] >= block[1]) {
      const [w, m, n] = blocks.pop();
      block = [w + block[0], (w * m + block[0] * block[1]) / (w + block[0]), n + block[2]];
    }
    blocks.push(block);
  });
  blocks.flatMap(([, mean, many]) => Array(many).fill(mean)).forEach((mean, i) => { points[row[i]].x = mean + offsets[i]; });
}
function port(inner, kind, ref) { // where an array passes an open group's border, from its left side
  const { items, entries, exits } = inner.subgraph;
  const refs = kind === "entry" ? entries : exits;
  const at = refs.findIndex(r => key(r) === key(ref));
  return inner.points[items.length + (kind === "exit" ? entries.length : 0) + at].x;
}
function leaves(point, ref) { // where an array leaves an item, from its centre
  if (point.inner) return port(point.inner, "exit", ref) - point.w / 2;
  if (point.item === undefined || point.item < 0) return 0;
  const refs = isGroup(point.item) ? subgraphOf(point.item).exits : G.nodes[point.item].values.map((_, o) => [point.item, o]);
  const used = refs.filter(r => G.uses.has(key(r)) || isGroup(point.item));
  const at = used.findIndex(r => key(r) === key(ref));
  return used.length < 2 || at < 0 ? 0 : ((at + 0.5) / used.length - 0.5) * point.w;
}

// ---------------------------------------------------------------- drawing

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
function firstUse(item) { // where it stands in the forward order
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
    const bars = barsOf(row.brief) ? drawBars(g, barsOf(row.brief), card.w - PAD.card - 48, base - 11, 48, 13) : null;
    const field = element(g, "text", { class: `field ${row.label}`, x: card.w - PAD.card - (card.rows.some(r => barsOf(r.brief)) ? 54 : 0),
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
  if (card && crowd > 1 && w > card.w / crowd + 14) return; // it would cover its neighbour; the panel has it
  edge.label = element(layer.edges, "g", { class: `passed${isWrong(part) ? " bad" : ""}`, transform: `translate(${edge.x} ${edge.y - 21})` });
  element(edge.label, "rect", { x: -w / 2, y: -8, width: w, height: 16, rx: 8 });
  element(edge.label, "text", { y: 4, "text-anchor": "middle", "data-from": nameOf(edge.target), "data-to": sourceName(edge.link.ref) }, shown);
}
function passedOn(edge) { // what comes back along an edge into an operation or a group
  const { link, target } = edge;
  if (target === null || target < 0) return null;
  if (link.slot >= 0) return G.nodes[target].passed[link.slot];
  if (link.total != null) return link.total;
  if (!isGroup(target)) return null;
  const [first, last] = span(target);
  const inside = (G.uses.get(key(link.ref)) || []).filter(([node]) => node >= first && node <= last);
  return inside.map(([node, slot]) => G.nodes[node].passed[slot]).find(part => part != null) ?? null;
}
function returnsAlong(edge) { // whether something has come back along an edge by now
  const { link, target, subgraph } = edge, part = passedOn(edge);
  if (state.phase !== "backward") return state.phase === "all" && part != null;
  if (target !== null && !edge.open) return part != null && span(target)[0] >= state.at;
  const [first, last] = target === null ? [subgraph.first, subgraph.last] : span(target);
  return parts(link.ref).some(({ from, arrived }) => arrived && (from !== null && from >= first && from <= last) === (target !== null));
}
const sourceName = ([node]) => nameOf(node);
