// The data of the page, decoded, and what is known at a step. An item is an operation (its id), a leaf (−1 − k) or
// a group (number of operations + g); a point is an item, an entry, an exit or a bend of one subgraph; a ref is an array,
// [node, output].

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
  const fixed = []; // operations on numbers in the code alone: a NaN there is intended
  for (const node of nodes) {
    fixed.push(Boolean(node?.inputs.every(([i]) => i < 0 ? leaves[-1 - i]?.kind === "number" : fixed[i])));
  }
  const home = new Map(); // item: its subgraph
  for (const subgraph of subgraphs) for (const item of subgraph.items || []) home.set(item, subgraph.g);
  const seeds = new Map(raw.outputs.map((ref, i) => [key(ref), raw.seeds[i] ?? null]));
  return { ...raw, nodes, leaves, subgraphs, uses, fixed, home, seeds, n: nodes.length };
}

// An array is summarised as text if it is a number, else as [type, size, low, high, norm, not finite, histogram].
const isNumber = summary => typeof summary === "string";
const barsOf = summary => isNumber(summary) ? "" : summary[6];
const isWrong = summary => summary != null && (isNumber(summary) ? /nan|inf/.test(summary) : summary[5] > 0);

let G; // the graph that is shown
let state; // { open: Set of subgraphs, phase, at, pinned, hovered }

const summary = ([node, output]) => node < 0 ? G.leaves[-1 - node]?.value : G.nodes[node]?.values[output];
const gradient = ([node, output]) => node < 0 ? G.leaves[-1 - node]?.grad : G.nodes[node]?.grads[output];
const isGroup = item => item >= G.n;
const subgraphOf = item => G.subgraphs[item - G.n];

const lastKey = name => (/\['?([^'\]]*)'?\]$/.exec(name) || /\.(\w+)$/.exec(name) || [0, name])[1]; // of a tree's path
function mainRef(item) { // the array that a card shows
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

function parts(ref) { // the terms of an array's gradient, in the order of arrival: { from, summary, arrived }
  const seed = G.seeds.get(key(ref));
  const found = seed == null ? [] : [{ from: null, summary: seed }];
  for (const [node, slot] of [...(G.uses.get(key(ref)) || [])].reverse()) {
    const part = G.nodes[node].passed[slot];
    if (part != null) found.push({ from: node, slot, summary: part });
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
function partial(all, count) { // the terms of an incomplete gradient that have arrived
  const text = isNumber(all[0].summary) ? `${sum(all.slice(0, count))} + …` : "";
  return text && wide(text, "bold 13px") <= WIDEST / 2 ? text : `${count} of ${all.length} parts`;
}
const sum = some => some.map(part => minus(part.summary)).join(" + ").replace(/\+ −/g, "− ");
function short(summary, role = "grad") {
  if (summary == null) return "";
  if (isNumber(summary)) return minus(summary);
  const [, size, low, high, norm, wrong] = summary;
  if (summary.length === 1) return "";
  if (wrong) return `${wrong} of ${size} not finite`;
  if (size === 0) return "empty";
  if (role === "value" && text(summary[0]).startsWith("bool")) return low !== high ? "true and false" : `all ${low === "0" ? "false" : "true"}`;
  if (role === "value") return low === high ? `all ${minus(low)}` : `${minus(low)} … ${minus(high)}`;
  return `norm ${norm}`;
}
