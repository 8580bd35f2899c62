"""The page of a graph: one self-contained file, and a browser shows on it what the graph contains."""

import html
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from examples_loader import load_example

from jaxnn import dense, graph, losses, relu, residual, serial, tanh
from jaxnn.graph.html.subgraphs import MOST, subgraphs
from jaxnn.graph.nodes import Graph, Leaf, Node, Ref
from jaxnn.graph.summaries import number

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
TOO_LARGE = 2_000_000  # bytes
PUBLISHED = load_example("graph_micrograd").published


def product(x, y):
    return x * (x + y)


def trapped(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()


def recurrent(x, w):
    h, hs = jax.lax.scan(lambda h, x: (jnp.tanh(w @ h + x), h.sum()), jnp.zeros(3), x)
    return h.sum() + (hs**2).sum()


def network(depth, width):
    body = [part for _ in range(depth) for part in (dense(width), tanh)]
    net = serial(*body, residual(serial(dense(width), relu)), dense(3))
    params, state = net.init(jax.random.key(0), (8,))
    x, labels = jax.random.normal(jax.random.key(1), (20, 8)), jnp.arange(20) % 3

    def cost(params, x):
        return losses.softmax_cross_entropy.value(net.forward(params, state, x)[0], labels).mean()

    return graph.trace(cost)(params, x)


@pytest.fixture(scope="module")
def small():
    return network(2, 5)


@pytest.fixture(scope="module")
def long():
    def f(x):
        for _ in range(2500):
            x = x * 1.0001 + 0.5
        return x

    return graph.trace(f)(1.0)


def chain(count, name="x", bad=None, group=()):
    """A graph of so many additions, made without tracing; one of them has NaN values."""
    value = np.float32(1)
    nodes = tuple(
        Node(i, "add", (Ref(i - 1), Ref(i - 1)), (np.float32("nan") if i == bad else value,), (value,), (value, value),
             formula="δx = δ, δy = δ", group=group)
        for i in range(count)
    )  # fmt: skip
    return Graph("f", (Leaf(name, "input", value, value),), nodes, (Ref(count - 1),), value, (value,), (value,))


def written(page):
    """The data in a page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(found)


# ---------------------------------------------------------------- subgraphs


@pytest.mark.parametrize("name", ["micrograd", "unrolled loop", "network", "long", "identity"])
def test_every_array_has_a_way_from_where_it_is_made_to_where_it_is_used(name, small, long):
    traced = {
        "micrograd": lambda: graph.trace(PUBLISHED)(-4.0, 2.0),
        "unrolled loop": lambda: graph.trace(recurrent, unroll=True)(jnp.ones((4, 3)), jnp.eye(3)),
        "network": lambda: small,
        "long": lambda: long,
        "identity": lambda: graph.trace(lambda x: x, backward=False)(1.0),
    }[name]()
    n, tree = len(traced.nodes), subgraphs(traced)
    items = [item for subgraph in tree for item in subgraph.items]
    assert sorted(items) == [*range(-len(traced.leaves), n), *range(n + 1, n + len(tree))]  # group 0 is the whole
    assert all(len([item for item in subgraph.items if item >= 0]) <= MOST for subgraph in tree)
    home = {item: g for g, subgraph in enumerate(tree) for item in subgraph.items}
    for subgraph in tree:
        inside = [i for i in subgraph.items if 0 <= i < n]
        inside += [i for item in subgraph.items if item >= n for i in tree[item - n].nodes]
        assert sorted(inside) == list(subgraph.nodes)
    for node in traced.nodes:
        for slot, ref in enumerate(node.inputs):
            assert reaches(tree, home, n, ref, node.id, slot)


def reaches(tree, home, n, ref, target, slot):
    """Follows the links of an array back from an input of an operation."""
    g, goal = home[target], target
    while True:
        subgraph = tree[g]
        into = [k for k in subgraph.links if k.ref == ref and k.slot == slot and points(subgraph, k.target) == goal]
        assert len(into) == 1
        source = points(subgraph, into[0].source)
        if source == ref.node:
            return True
        if source == ("entry", ref):
            g, goal, slot = subgraph.parent, n + g, -1
        else:  # a group that it leaves
            g, goal, slot = source - n, ("exit", ref), -1


def points(subgraph, p):
    ports = [*(("entry", ref) for ref in subgraph.entries), *(("exit", ref) for ref in subgraph.exits)]
    return (*subgraph.items, *ports)[p]


def test_weights_stand_in_their_layer_and_plain_arguments_outside(small):
    tree = subgraphs(small)
    at = {small.leaves[-1 - item].name: subgraph.name for subgraph in tree for item in subgraph.items if item < 0}
    assert at["params['dense_0']['w']"] == "dense_0"
    assert at["x"] == ""


# ---------------------------------------------------------------- the file


class Attributes(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen += [(tag, name, value) for name, value in attrs]


def test_the_page_needs_nothing_else(small):
    page = graph.page(small)
    parser = Attributes()
    parser.feed(page.html)
    assert not {name for _, name, _ in parser.seen} & {"src", "href", "srcset", "data", "action"}
    assert "://" not in page.html
    assert not re.search(r"@import|\bimport\(|\bfetch\(|XMLHttpRequest|WebSocket|innerHTML|url\((?!#)", page.html)
    assert "{{" not in page.html


def test_the_data_are_those_of_the_graph():
    data = written(graph.page(graph.trace(product)(2.0, 1.0)))
    (only,) = data["graphs"]
    strings = data["strings"]
    assert [leaf[:4] for leaf in only["leaves"]] == [["x", "input", "2", "5"], ["y", "input", "1", "2"]]
    assert [strings[node[0]] for node in only["nodes"]] == ["add", "mul"]
    assert [node[3:6] for node in only["nodes"]] == [[["3"], ["2"], ["2", "2"]], [["6"], ["1"], ["3", "2"]]]
    assert [strings[node[6]] for node in only["nodes"]] == ["δx = δ, δy = δ", "δx = δ y, δy = δ x"]
    assert strings[only["nodes"][0][9]] == __file__


def test_arrays_are_summarised_and_not_copied():
    page = graph.page(graph.trace(lambda x: (x**2).sum())(jnp.arange(300_000.0) / 300_000))
    assert len(page.html) < 100_000
    kind, size, low, high, norm, wrong, bars = written(page)["graphs"][0]["leaves"][0][2]
    assert (written(page)["strings"][kind], size, low, high, wrong) == ("float32[300000]", 300_000, "0", "1", 0)
    assert float(norm) == pytest.approx(math.sqrt(100_000), rel=1e-3)
    assert set(bars) <= {"y", "z"}  # equally many in each part


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "\"'&<!--", "δ ⟨𝔁⟩\u2028", "\ud800", "{{DATA}}"]
)
def test_names_are_escaped(name):
    page = graph.page(chain(2, name, group=(name, "g")), title=name)
    assert written(page)["graphs"][0]["leaves"][0][0] == name
    assert page.html.count("</script>") == 2
    assert page.html.count("<!--") == 0
    if name != "\ud800":
        assert page.html.encode()


def test_a_notebook_shows_a_frame(tmp_path):
    traced = graph.trace(product)(2.0, 1.0)
    parser = Attributes()
    parser.feed(traced._repr_html_())
    frame = {name: value for _, name, value in parser.seen}
    assert frame["srcdoc"] == graph.page(traced).html
    assert graph.page(traced).save(tmp_path / "f.html").read_text(encoding="utf-8") == graph.page(traced).html


def test_a_hundred_thousand_parameters_and_sixty_layers():
    traced = network(60, 41)
    assert sum(leaf.value.size for leaf in traced.leaves if leaf.kind == "input") > 100_000
    page = graph.page(traced)
    assert len(page.html.encode()) < TOO_LARGE
    top = written(page)["graphs"][0]["subgraphs"][0]
    assert len([item for item in top[5] if item >= 0]) <= MOST


def test_five_thousand_operations_can_all_be_opened(long):
    page = graph.page(long)
    assert len(page.html.encode()) < TOO_LARGE
    (only,) = written(page)["graphs"]
    assert all(only["nodes"])
    assert only["opened"] == [0]


def test_what_has_no_room_is_said_to_be_folded_and_not_what_is_wrong(monkeypatch):
    monkeypatch.setattr(sys.modules["jaxnn.graph.html.document"], "LARGEST", 100_000)
    data = written(page := graph.page(chain(4000, bad=3990)))
    assert len(page.html) < 100_000 + len(graph.page(chain(1)).html)
    (only,) = data["graphs"]
    assert len(only["nodes"]) == 4000
    assert 500 < sum(node is not None for node in only["nodes"]) < 2000
    assert only["nodes"][3990][3] == ["nan"]
    assert any(len(subgraph) == 5 for subgraph in only["subgraphs"])  # omitted: a name, a place, and what leaves it


HALF = np.ones(2, ml_dtypes.bfloat16)


@pytest.mark.parametrize(("f", "args", "options"), [
    (lambda x: x, (1.0,), {}),
    (lambda x: 3.0 * x, (jnp.ones((0, 2)),), {"backward": False}),
    (lambda n: n + 1, (jnp.arange(3),), {"backward": False}),
    (lambda x, y: x * 2, (1.0, 5), {}),
    (lambda key, x: x * jax.random.normal(key), (jax.random.key(0), 2.0), {}),
    (lambda x: {"a": x * 2, "b": [x + 1]}, (HALF,), {"cotangent": {"a": HALF, "b": [HALF]}}),
    (lambda x: jax.lax.while_loop(lambda c: c < 9, lambda c: c * 2, x), (1.0,), {"backward": False}),
])  # fmt: skip
def test_every_graph_has_a_page(f, args, options):
    page = graph.page(graph.trace(f, **options)(*args))
    assert written(page)["graphs"][0]["backward"] == (options.get("backward", True))
    jax.jit(lambda *args: graph.page(graph.trace(f, **options)(*args)) and 0)(*args)  # arrays without numbers


def test_what_a_folded_group_passes_back_is_the_sum_over_its_operations():
    inner = jax.jit(lambda x: x * x + jnp.sin(x))
    traced = graph.trace(lambda x: inner(x) + 3.0 * x)(2.0)
    only = written(graph.page(traced, most=1))["graphs"][0]
    (total,) = [link[4] for link in only["subgraphs"][0][7] if link[4] is not None]
    assert total == number(np.float32(2 * 2 + math.cos(2)))
    assert number(traced.gradients[0]) == number(np.float32(7 + math.cos(2)))


def test_iterations_are_written_as_graphs_of_their_own():
    traced = graph.trace(recurrent)(jnp.ones((20, 3)), jnp.eye(3))
    data = written(graph.page(traced))
    names = [each["name"] for each in data["graphs"]]
    assert names == ["recurrent", *(f"scan[{t}]" for t in (0, 1, 2, 3, 16, 17, 18, 19))]
    (scan,) = [node for node in data["graphs"][0]["nodes"] if data["strings"][node[0]] == "scan"]
    assert scan[-1] == list(range(1, 9))


# ---------------------------------------------------------------- in a browser

TOOLS = """
const one = query => document.querySelector(query);
const every = query => [...document.querySelectorAll(query)];
const named = name => every("[data-item]").find(g => g.dataset.name === name);
const press = (key, where = document.activeElement) =>
  where.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const click = where => where.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const shown = (g, kind) => g.querySelector(".field." + kind)?.textContent ?? null;
const read = g => ({
  item: Number(g.dataset.item), name: g.dataset.name, value: shown(g, "value"), grad: shown(g, "grad"),
  now: g.classList.contains("now"), wrong: g.classList.contains("wrong"), aria: g.getAttribute("aria-label"),
});
const cards = () => every(".card").map(read);
const labels = () => every(".passed:not(.hidden) text").map(t => [t.dataset.from, t.dataset.to, t.textContent]);
const frames = () => every(".card").map(g => {
  const ground = g.querySelector(".ground"), place = g.getAttribute("transform").match(/-?[\\d.]+/g);
  return [g.dataset.name, ...[...place, ground.getAttribute("width"), ground.getAttribute("height")].map(Number)];
});
"""


def browse(path, *options):
    """What Chromium writes when it opens a file."""
    settings = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent}/profile"]
    command = [CHROMIUM, *settings, "--window-size=1280,800", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def look(page, tmp_path, script):
    """What a script returns that runs in the page; errors in the page are errors here."""
    watch = "<script>var failures = []; addEventListener('error', e => failures.push(e.message));</script>"
    run = f"""<script>addEventListener("load", () => setTimeout(() => {{
      let found = null;
      try {{ found = (() => {{ {TOOLS} {script} }})(); }} catch (error) {{ failures.push(String(error.stack)); }}
      const out = document.createElement("pre");
      out.id = "found"; out.hidden = true; out.textContent = JSON.stringify([found, failures]);
      document.body.append(out);
    }}, 200));</script>"""
    path = tmp_path / "page.html"
    path.write_text(page.html.replace("<head>", "<head>" + watch).replace("</body>", run + "</body>"), encoding="utf-8")
    out = browse(path, "--virtual-time-budget=5000", "--dump-dom")
    (found,) = re.findall(r'<pre id="found"[^>]*>(.*?)</pre>', out, re.DOTALL)
    found, failures = json.loads(html.unescape(found))
    assert failures == []
    return found


def numbers(cards):
    """By name, value and gradient as numbers; the last number where a sum is shown."""
    return {card["name"]: tuple(ascii_number(card[kind]) for kind in ("value", "grad")) for card in cards}


def ascii_number(text):
    return None if not text else float(text.split("= ")[-1].removeprefix("⚠ ").replace("−", "-"))


@in_a_browser
@pytest.mark.parametrize("name", ["small", "deep", "large", "unfolded"])
def test_it_opens_fitted_to_the_window(name, tmp_path, small):
    """Whatever its size: all that is drawn lies in the window, and would not if it were larger."""
    traced = {
        "small": lambda: graph.trace(product)(2.0, 1.0),
        "deep": lambda: small,
        "large": lambda: chain(70),
        "unfolded": lambda: chain(1000, group=("a", "b")),
    }[name]()
    script = """
      if (UNFOLD) click(one("#unfold"));
      const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
      const drawn = every("#view [data-item]").map(box), room = box(one("svg"));
      const place = one("svg > g").getAttribute("transform");
      click(one("#fit"));
      return { drawn, room, place, again: one("svg > g").getAttribute("transform") };
    """.replace("UNFOLD", str(name == "unfolded").lower())
    seen = look(graph.page(traced), tmp_path, script)
    left, top, right, bottom = seen["room"]
    assert seen["place"] == seen["again"]
    corners = np.array(seen["drawn"])
    assert (corners[:, :2].min(0) >= (left, top)).all()
    assert (corners[:, 2:].max(0) <= (right, bottom)).all()
    wide, high = corners[:, 2:].max(0) - corners[:, :2].min(0)
    assert name == "small" or wide > 0.8 * (right - left) or high > 0.8 * (bottom - top)


@in_a_browser
def test_both_passes_step_by_step(tmp_path):
    seen = look(graph.page(graph.trace(product)(2.0, 1.0)), tmp_path, """
      const seen = [];
      const note = () => seen.push({ cards: cards(), labels: labels(), status: one("#status").textContent });
      note();
      press("Home", document.body); note();
      for (let i = 0; i < 5; i++) { press("ArrowRight", document.body); note(); }
      click(one("#before")); note();
      one("#slider").value = 2; one("#slider").dispatchEvent(new Event("input")); note();
      press("End", document.body); note();
      return seen;
    """)  # fmt: skip
    everything, start, add, mul, given, at_mul, at_add, again, slid, end = seen
    assert numbers(everything["cards"]) == {"x": (2, 5), "y": (1, 2), "add": (3, 2), "mul": (6, 1)}
    assert [c["grad"] for c in everything["cards"]] == ["3 + 2 = 5", "2", "2", "1"]
    assert numbers(start["cards"]) == {"x": (2, None), "y": (1, None), "add": (None, None), "mul": (None, None)}
    assert numbers(add["cards"])["add"] == (3, None)
    assert numbers(mul["cards"])["mul"] == (6, None)
    assert [c["name"] for c in mul["cards"] if c["now"]] == ["mul"]
    assert mul["status"] == "Forward, 2 of 2: mul of x = 2, add = 3 gives 6."
    assert [c["grad"] for c in given["cards"]] == ["", "", "", "1"]
    assert given["labels"] == start["labels"] == []
    assert [c["grad"] for c in at_mul["cards"]] == ["3 + …", "", "2", "1"]
    assert sorted(at_mul["labels"]) == [["mul", "add", "2"], ["mul", "x", "3"]]
    assert at_mul["status"] == "Backward, 1 of 2: mul has gradient 1; it passes 3 to x and 2 to add."
    assert [c["grad"] for c in at_add["cards"]] == ["3 + 2 = 5", "2", "2", "1"]
    assert sorted(at_add["labels"])[:2] == [["add", "x", "2"], ["add", "y", "2"]]
    assert again == at_mul
    assert slid == mul
    assert end == everything
    assert everything["cards"][0]["aria"] == "input x, value 2, grad 3 + 2 = 5"


@in_a_browser
def test_the_numbers_that_are_shown_are_those_of_the_graph(tmp_path):
    traced = graph.trace(PUBLISHED)(-4.0, 2.0)
    seen = look(graph.page(traced), tmp_path, """
      const all = cards();
      const panels = all.map(card => {
        click(one(`[data-item="${card.item}"]`));
        const panel = one("#panel").innerText;
        press("Escape", document.body);
        return panel;
      });
      return { all, panels, labels: labels(), title: one("#title").textContent, frames: frames() };
    """)  # fmt: skip
    assert seen["title"] == "published = 24.7041"
    by_item = {card["item"]: card for card in seen["all"]}
    assert set(by_item) == set(range(-len(traced.leaves), len(traced.nodes)))
    for node in traced.nodes:
        assert ascii_number(by_item[node.id]["value"]) == float(number(node.value))
        assert ascii_number(by_item[node.id]["grad"]) == float(number(node.gradient))
    assert {text.replace("−", "-") for _, _, text in seen["labels"]} == {
        number(part) for node in traced.nodes for part in node.passed if part is not None
    }
    for card, panel in zip(seen["all"], seen["panels"], strict=True):
        if card["item"] >= 0:
            node = traced.nodes[card["item"]]
            assert f"graph_micrograd.py:{node.line}" in panel
            assert node.rule in panel
            assert re.sub(r", (?=δ\S* =)", "\n", node.formula) in panel
            assert not node.note or node.note in panel
    assert_apart(seen["frames"])


def assert_apart(frames):
    """No two cards overlap: [name, left, top, width, height] of each."""
    assert frames
    for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in itertools.combinations(frames, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay, (a, b)


@in_a_browser
def test_groups_fold_and_unfold(small, tmp_path):
    seen = look(graph.page(small, most=1), tmp_path, """
      const states = [];
      const open = () => every(".boxhead").map(g => g.dataset.name);
      const note = () => states.push({
        cards: cards(), frames: frames(), open: open(), max: Number(one("#slider").max),
        shapes: every("#view path.edge").map(path => path.getAttribute("d")),
      });
      note();
      click(named("dense_0")); note();
      press("ArrowRight", document.body); press("Home", document.body); press("ArrowRight", document.body);
      const stepped = cards().find(card => card.now).name;
      press("End", document.body);
      press("Enter", one(".boxhead")); note();
      click(one("#unfold")); note();
      click(one("#fold")); note();
      return { states, stepped };
    """)  # fmt: skip
    folded, one, again, unfolded, last = seen["states"]
    assert folded["open"] == again["open"] == last["open"] == []
    assert folded["cards"] == again["cards"] == last["cards"]
    assert one["open"] == ["dense_0"]
    names = {card["name"] for card in one["cards"]} - {card["name"] for card in folded["cards"]}
    assert {"dot_general", "add"} <= names
    assert "params['dense_0']['w']" in names
    assert seen["stepped"] in ("dot_general", "broadcast_in_dim")
    assert len([card for card in unfolded["cards"] if card["item"] >= 0]) == len(small.nodes)
    assert {"dense_0", "residual_0"} <= set(unfolded["open"])
    assert folded["max"] < one["max"] < unfolded["max"]
    for state in seen["states"]:
        assert_apart(state["frames"])
        for shape in state["shapes"]:  # edges point down
            ys = [float(y) for y in re.findall(r"[ V](-?[\d.]+)(?=[CV]|$)", shape)]
            assert ys == sorted(ys)
    (card,) = [card for card in folded["cards"] if card["name"] == "dense_0"]
    (exit_,) = subgraphs(small)[card["item"] - len(small.nodes)].exits
    assert card["grad"] == f"norm {number(np.linalg.norm(small.at(exit_)[1]))}"


@in_a_browser
def test_what_is_not_finite_is_marked(tmp_path):
    page = graph.page(graph.trace(trapped)(jnp.array([1.0, -2.0, 0.0])))
    seen = look(page, tmp_path, "return { cards: cards(), panel: one('#panel').innerText };")
    wrong = {card["name"] for card in seen["cards"] if card["wrong"]}
    assert wrong == {"x", "sqrt"}
    (root,) = [card for card in seen["cards"] if card["name"] == "sqrt"]
    assert root["value"] == "⚠ 1 of 3 not finite"
    assert "not finite: 1 operations" in seen["panel"]


@in_a_browser
def test_names_are_shown_as_they_are(tmp_path):
    name = "</script><script>failures.push(1)</script><b>&amp;"
    seen = look(
        graph.page(chain(3, name), title=name), tmp_path, "return [one('#title').textContent, cards()[0].name];"
    )
    assert seen == [f"{name} = 1", name]


@in_a_browser
def test_loops_are_entered(tmp_path):
    traced = graph.trace(recurrent)(jnp.ones((4, 3)) / 3, jnp.eye(3) / 2)
    seen = look(graph.page(traced), tmp_path, """
      click(named("scan"));
      const buttons = every(".inside button").map(b => b.textContent);
      click(every(".inside button")[2]);
      const inside = { title: one("#title").textContent, names: cards().map(card => card.name) };
      click(one("#trail button"));
      return { buttons, inside, back: one("#title").textContent };
    """)  # fmt: skip
    assert seen["buttons"] == [f"scan[{t}]" for t in range(4)]
    assert seen["inside"]["title"] == "scan[2]"
    assert {"tanh", "dot_general", "add"} <= set(seen["inside"]["names"])
    assert seen["back"].startswith("recurrent = ")


@in_a_browser
def test_long_graphs_open_folded_and_are_walked(long, tmp_path):
    seen = look(graph.page(long), tmp_path, """
      const before = cards();
      click(every(".card.group")[1]);
      const inside = cards().length;
      press("Home", document.body);
      for (let i = 0; i < 3; i++) press("ArrowRight", document.body);
      const now = cards().find(card => card.now);
      click(one("#unfold"));
      return { before, inside, now, drawn: cards().length, status: one("#status").textContent };
    """)  # fmt: skip
    assert len(seen["before"]) <= MOST + 1
    assert seen["before"][-1]["value"] == number(long.value)
    assert seen["inside"] > len(seen["before"]) + 50
    assert seen["now"]["item"] == 72  # the first group, then two operations of the second
    assert seen["drawn"] < 2000
    assert "groups remain folded" in seen["status"]


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_step_of_the_backward_pass_is_seen(scheme, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    page, path = graph.page(graph.trace(product)(2.0, 1.0)), tmp_path / "page.html"
    go = "press('Home', document.body); for (let i = 0; i < 4; i++) press('ArrowRight', document.body);"
    run = f"<script>addEventListener('load', () => setTimeout(() => {{ {TOOLS} {go} }}, 100));</script></body>"
    path.write_text(page.html.replace("</body>", run), encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(path, "--virtual-time-budget=2000", *dark, f"--screenshot={tmp_path}/page.png")
    pixels = np.round(image.imread(tmp_path / "page.png")[..., :3] * 255).astype(int)
    highlight = {"light": (0xFD, 0xEA, 0xDE), "dark": (0x47, 0x29, 0x0F)}[scheme]  # --backward-soft in page.css
    assert (pixels == highlight).all(-1).sum() > 2000  # the card of the step
    assert (pixels.mean() < 128) == (scheme == "dark")


@in_a_browser
def test_a_tie_is_marked_on_its_card(tmp_path):
    for y, marks in ((2.0, ["∧"]), (1.0, [])):
        traced = graph.trace(lambda x, y: jnp.maximum(x, y) * 3)(2.0, y)
        seen = look(graph.page(traced), tmp_path, """
          return { tags: [...document.querySelectorAll(".tagtext")].map(tag => tag.textContent) };
        """)  # fmt: skip
        assert seen["tags"] == [*marks, "output"]
