// The panel: everything known about one item, or an overview of the graph.

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

function full(summary) { // all that is known of an array
  if (summary == null) return html("span", { class: "none" }, "none");
  if (isNumber(summary)) return html("b", { class: isWrong(summary) ? "bad" : "number" }, minus(summary));
  const [kind, size, low, high, norm, wrong, drawn] = summary;
  const box = html("div", { class: "array" }, html("code", {}, text(kind)));
  if (summary.length === 1 || size === 0) return box;
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
const inLine = summary => html("b", { class: isWrong(summary) ? "bad" : "number" }, short(summary));
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
      part.arrived ? inLine(part.summary) : "not yet"));
  }
  const scalar = isNumber(total) && all.length > 1 && shown;
  return [html("h3", {}, title), shown ? (scalar ? p("sum", `${sum(all)} = `, html("b", {}, minus(total))) : full(total))
    : p("none", all.some(part => part.arrived) ? "incomplete so far" : "not yet"),
    all.length > 1 ? p("hint", `the sum of the ${all.length} terms passed to it`) : "", all.length ? rows : ""];
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
  const values = [...node.inputs.map(summary), node.values[0]], names = [...letters, { 1: "y", 2: "z" }[node.inputs.length]];
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
  if (subgraph.omitted) add(p("note", "Its operations are left out: the page would be too large."));
  const ref = mainRef(item);
  if (ref) {
    add(html("h3", {}, "output"), valueKnown(ref) ? full(summary(ref)) : p("none", "not yet"));
    if (G.backward) add(...gradientSection(ref));
  }
  const inside = G.leaves.filter(l => l && l.kind !== "number" && within(G.home.get(-1 - l.k), subgraph.g));
  if (inside.length) add(html("h3", {}, "used only here"), leafTable(inside));
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
  const box = html("details", { open: "" }, html("summary", {}, "legend"));
  for (const [cls, words] of rows) box.append(html("div", { class: "key" }, html("i", { class: cls }), words));
  box.append(html("div", { class: "key" }, html("i", { class: "along" }, "0.5"), "what is passed back along an edge"),
    html("div", { class: "key" }, html("i", { class: "tie" }, "∧"), "a tie, a kink or an infinite slope"),
    p("hint", "Click or Enter pins an operation, Escape unpins it. ← and → step, Home and End jump, space plays. Drag to move, scroll to zoom."));
  return box;
}
