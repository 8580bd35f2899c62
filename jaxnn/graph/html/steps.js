// The passes step by step, and what changes in the drawing with a step.

let items; // the visible ones, in forward order
let back; // those of them with a gradient, in reverse order

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
  if (!scene.drawn) return; // the element with the focus has just been removed
  const now = current(), focus = state.pinned ?? state.hovered;
  svg.dataset.phase = state.phase;
  for (const [item, { g, card, fields }] of shapes) {
    g.classList.toggle("pinned", item === state.pinned);
    g.classList.toggle("now", item === now);
    if (!card) continue;
    let reached = true;
    for (const row of fields) {
      const known = row.label === "value" ? valueKnown(card.ref) : gradientText(card.ref) !== "";
      const shown = row.label === "value" ? (known ? short(row.summary, "value") : "") : gradientText(card.ref);
      const done = row.label === "value" ? known : known && parts(card.ref).every(part => part.arrived);
      row.field.textContent = (done && isWrong(row.summary) ? "⚠ " : "") + shown;
      row.field.classList.toggle("bad", done && isWrong(row.summary));
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
const said = (ref, role) => `${sourceName(ref)}${summary(ref) == null ? "" : isNumber(summary(ref)) ? ` = ${minus(summary(ref))}` : ""}`;

function statusText(now) {
  const graph = G.name;
  if (state.phase === "all") return "Everything is shown. Press Home, then → to step through both passes.";
  if (state.phase === "forward") {
    if (now === null) return `Forward, start: the inputs of ${graph}.`;
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
  return `${head} has gradient ${isNumber(own) ? minus(own) : short(own)}; it passes ${passes.join(" and ") || "nothing back"}.`;
}
