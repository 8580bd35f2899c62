// The content and the size of each card, and the coordinates of cards and edges; their order comes with the data.

function content(item) { // { title, symbol, sub, rows, kind, w, h }
  const ref = mainRef(item), value = ref && summary(ref), array = value != null && !isNumber(value);
  const leaf = item < 0 ? G.leaves[-1 - item] : null;
  const card = { item, ref, rows: [], sub: "", symbol: "", kind: "operation", title: nameOf(item) };
  if (leaf) {
    card.kind = leaf.kind;
    if (G.home.get(item) > 0) card.title = lastKey(leaf.name); // the groups around it show the rest
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
    card.rows.push({ label: "value", summary: value });
    const back = gradient(ref);
    if (G.backward && back != null) card.rows.push({ label: "grad", summary: back });
  }
  const tags = [];
  if (item >= 0 && !isGroup(item) && G.nodes[item].note) tags.push("∧");
  if (isOutput(ref)) tags.push("output");
  card.tag = tags.join(" ");
  const bars = card.rows.some(row => barsOf(row.summary)) ? 54 : 0;
  const head = wide(card.title, "bold 13px") + (card.symbol ? wide(card.symbol, "bold 16px") + 8 : 0)
    + (isGroup(item) ? 16 : 0) + (card.tag ? wide(card.tag, "11px") + 18 : 0);
  const saved = { ...state };
  let widest = 0;
  for (const row of card.rows) {
    Object.assign(state, { phase: "all" });
    const shown = row.label === "grad" ? gradientText(ref) : short(row.summary, "value");
    const ways = [shown];
    if (row.label === "grad") {
      const all = parts(ref);
      for (let count = 1; count < all.length; count++) ways.push(partial(all, count));
    }
    widest = Math.max(widest, 42 + Math.max(...ways.map(way => wide(way, "bold 13px"))) + bars + (isWrong(row.summary) ? 16 : 0));
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


// ---------------------------------------------------------------- coordinates

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
    point.y = unfed.has(point) ? bottom - point.h / 2 : (top + bottom) / 2; // without inputs, just above its use
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
