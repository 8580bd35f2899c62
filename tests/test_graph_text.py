"""The table of a graph: it shows the graph's contents, fits the terminal, and counts what is missing."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_texts import columns

from jaxnn import dense, graph, losses, named, relu, repeat, residual, serial

NET = serial(dense(3), relu, residual(serial(dense(3), relu)), repeat(dense(3), 2), dense(2))


@pytest.fixture(scope="module")
def traced():
    params, state = NET.init(jax.random.key(0), (3,))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    labels = jnp.arange(4, dtype=jnp.int32) % 2
    return graph.trace(lambda p: losses.softmax_cross_entropy.value(NET.forward(p, state, x)[0], labels).mean())(params)


def cells(text):
    """The rows below the headings, each a dict by heading, cut at the columns where the headings begin."""
    lines = text.splitlines()
    (head,) = [i for i, line in enumerate(lines) if re.match(r"\s+#\s+operation", line)]
    found = [(match.start(), match.group()) for match in re.finditer(r"\S+(?: \S+)*", lines[head])]
    starts = [0, *(start for start, _ in found[1:]), None]
    rows = []
    for line in itertools.takewhile(lambda line: not line.startswith("not shown"), lines[head + 1 :]):
        if line.lstrip().startswith("↳"):  # a local rule that has no column
            continue
        by_column = "".join(c + ("\0" if columns(c) == 2 else "") for c in line if columns(c))
        row = [by_column[a:b].replace("\0", "").strip() for a, b in itertools.pairwise(starts)]
        rows.append(dict(zip([name for _, name in found], row, strict=True)))
    return rows


def test_it_shows_the_textbook_graph():
    shown = cells(graph.table(graph.trace(lambda x, y: x * (x + y))(2.0, 1.0), width=100))
    assert [(row["operation"], row["inputs"], row["value"], row["gradient"]) for row in shown] == [
        ("x", "", "2", "5"),
        ("y", "", "1", "2"),
        ("add", "x, y", "3", "2"),
        ("mul", "x, #0", "6", "1"),
    ]
    assert shown[3]["local rule"] == "δx = δ y, δy = δ x"
    assert shown[3]["line"] == f"test_graph_text.py:{test_it_shows_the_textbook_graph.__code__.co_firstlineno + 1}"
    assert str(graph.trace(jnp.sin)(1.0)).startswith("sin = 0.8415: 1 operation, all f32\n")


@pytest.mark.parametrize("unfold", [(), ("residual_0",), True])
@pytest.mark.parametrize("rows", [6, 25, 1000])
def test_every_operation_is_shown_folded_or_skipped_and_counted(traced, rows, unfold):
    text = graph.table(traced, width=140, rows=rows, unfold=unfold)
    shown = cells(text)
    numbers = [int(row["#"].split()[-1]) for row in shown if row["#"].split()[-1:] and row["#"].split()[-1].isdigit()]
    assert numbers == sorted(set(numbers))
    folded = [int(n) for n in re.findall(r"▸ \S+ \((\d+)\)", text)]
    skipped = re.findall(r"⋮ ([\d,]+) operations?$", text, re.MULTILINE)
    assert len(numbers) + sum(folded) + sum(map(int, skipped)) == len(traced.nodes)
    assert len(numbers) + len(folded) <= rows
    said = re.search(r"▸ folded: (\d+) groups? with (\d+) operation", text)
    assert bool(said) == bool(folded)
    if folded:
        assert [int(n) for n in said.groups()] == [len(folded), sum(folded)]
    if skipped:
        again = int(re.search(r"rows=(\d+) shows all", text)[1])
        assert "skipped" not in graph.table(traced, width=140, rows=again, unfold=unfold)


@pytest.mark.parametrize("width", [*range(1, 40, 7), 80, 100, 120, 200])
def test_no_line_is_wider_than_asked(traced, width):
    for rows, unfold in ((8, ()), (40, "residual_0"), (1000, True)):
        text = graph.table(traced, width=width, rows=rows, unfold=unfold)
        assert max(map(columns, text.splitlines())) <= width


def test_the_width_is_the_terminals(traced, monkeypatch):
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = str(traced).splitlines()
        assert width - 20 <= max(map(columns, lines)) <= width
        assert str(traced) == graph.table(traced, width=width)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_local_rules_that_have_no_column_stand_below(traced, width):
    lines = graph.table(traced, width=width, unfold=True, rows=1000).splitlines()
    for i in ("operation", "inputs", "array", "value", "gradient"):
        assert i in lines[2] or width == 60
    assert re.match(r"\s+↳ local rule +line$", lines[3])
    text = " ".join(lines)
    for node in traced.nodes:
        row = next(i for i, line in enumerate(lines) if re.match(rf".\s+{node.id}\s", line))
        below = " ".join(" ".join(lines[row + 1 : row + 4]).split())
        rule = node.formula if node.rule == "by hand" else node.rule.partition(":")[0]
        assert below.startswith(f"↳ {' '.join(rule.split())}"), below
        assert f"{node.file.rpartition('/')[2]}:{node.line}" in below
    assert "not shown" not in text
    assert "not shown at 80 columns: the operations of folded groups" in graph.table(traced, width=80)
    assert "local rule" in graph.table(traced, width=140).splitlines()[2]


BLOCKS = [named(f"transformer_block_{i}", serial(dense(3), relu)) for i in range(12)]


@pytest.fixture(scope="module")
def deep():
    """Twelve groups whose names differ at the end alone, and parameters that differ in the middle."""
    net = serial(*BLOCKS, dense(2))
    params, state = net.init(jax.random.key(0), (3,))
    x, labels = jnp.ones((4, 3)), jnp.arange(4, dtype=jnp.int32) % 2
    return graph.trace(lambda p: losses.softmax_cross_entropy.value(net.forward(p, state, x)[0], labels).mean())(params)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_names_are_cut_so_that_they_stay_distinct(deep, width):
    text = graph.table(deep, width=width)
    groups = re.findall(r"▸ (\S+ \(\d+\))", text)
    assert len(groups) == len(set(groups)) == 14  # the blocks, the last layer, and the loss
    leaves = [line.split("f32")[0] for line in text.splitlines() if line.startswith("      ") and "'" in line[:20]]
    assert len({leaf.strip() for leaf in leaves}) == len(leaves)
    opened = graph.table(deep, width=width, rows=1000, unfold=True)
    products = {str(node.id) for node in deep.nodes if node.operation == "dot_general"}
    rows = [row["inputs"] for row in cells(opened) if row["#"].split()[-1:] and row["#"].split()[-1] in products]
    assert len(set(rows)) == len(rows) == 13


def test_the_loss_is_a_group(deep):
    assert {node.group[0] for node in deep.nodes[-5:-2]} == {"softmax_cross_entropy"}
    assert [node.operation for node in deep.nodes if not node.group] == ["reduce_sum", "div"]
    text = graph.table(deep, width=80)
    assert "skipped" not in text
    assert len(text.splitlines()) < 45


def test_arrays_are_shown_by_range_and_norm():
    traced = graph.trace(lambda x: (x * x).sum())(jnp.array([3.0, -4.0]))
    x, square, total = cells(graph.table(traced, width=150))
    assert (x["array"], x["value"], x["gradient"]) == ("f32[2]", "-4…3 ‖5‖", "-8…6 ‖10‖")
    assert (square["value"], square["gradient"]) == ("9…16 ‖18.4‖", "all 1 ‖1.41‖")
    assert (total["array"], total["value"], total["gradient"]) == ("f32", "25", "1")
    (short,) = {row["value"] for row in cells(graph.table(traced, width=60)) if row["operation"] == "x"}
    assert short == "-4…3"


@pytest.mark.parametrize("width", [70, 80, 120])
def test_wide_and_combining_characters_keep_the_columns(width):
    names = {"重み": 1.0, "δᵀ": 2.0, "x̄": 3.0, "e\u0301": 4.0, "🧠": 5.0}
    traced = graph.trace(lambda p: sum(p.values(), start=jnp.float32(0)) * p["重み"])(names)
    rows = [row for row in cells(graph.table(traced, width=width)) if row["value"]]
    assert len(rows) == len(names) + len(traced.nodes)
    values = {node.id: float(node.value) for node in traced.nodes}
    assert [float(row["value"]) for row in rows if row["#"]] == list(values.values())
    assert {float(row["value"]) for row in rows if not row["#"]} == set(names.values())


def test_ties_kinks_and_what_is_not_finite_are_marked():
    text = graph.table(graph.trace(lambda x, y: jnp.maximum(x, y) * jnp.sqrt(x - 2))(2.0, 2.0), width=100)
    lines = text.splitlines()
    marks = {
        line.split()[1 if line[0] != " " else 0]: line[0] for line in lines[3:] if re.match(r".\s+\d|.\s+[xy]\b", line)
    }
    assert marks == {"x": "✗", "y": " ", "0": "∧", "1": "✗", "2": "∧", "3": " "}
    below = [line.strip() for line in lines if line.startswith("  ") and "∧" in line]
    assert len(below) == 2
    assert "tie: JAX passes half" in below[0]
    assert "✗ not finite: value or gradient of 1 operation, first #1" in lines
    assert "∧ a tie or a kink: 2 operations, first #0" in lines


def test_what_is_not_finite_shows_through_folds_and_skips():
    def f(x):
        with jax.named_scope("bad"):
            y = jnp.log(x - x)
            y = y * 2
        for _ in range(10):
            x = jnp.sin(x)
        return (x + y).sum()

    traced = graph.trace(f, backward=False)(jnp.ones(3))
    folded = graph.table(traced, width=100, rows=12)
    assert re.search(r"^✗ +▸ bad \(3\) .* 3 of 3 not finite", folded, re.MULTILINE)
    assert re.search(r"^✗ +⋮ 13 operations$", graph.table(traced, width=100, rows=2, unfold=True), re.MULTILINE)
    assert "gradient" not in folded.splitlines()[2]  # none were asked for, and no column stands empty


def test_numbers_that_the_code_writes_are_no_alarm(traced):
    assert any(np.isnan(node.values[0]).any() for node in traced.nodes)  # the loss answers a bad label with NaN
    assert "✗" not in graph.table(traced, width=100, unfold=True)
    assert "✗" not in graph.dot(traced)
    masked = graph.trace(lambda x: jnp.exp(jnp.where(x > 0, x, -jnp.inf)).sum())(jnp.array([1.0, -1.0]))
    assert "✗ not finite: value or gradient of 1 operation" in graph.table(masked, width=100)


def test_whose_rule_it_is():
    def f(x):
        return jax.nn.relu(x).sum() + jax.lax.scan(lambda c, t: (c * t, None), x[0], x)[0] + jnp.argmax(x).astype(float)

    rules = {row["operation"]: row["local rule"] for row in cells(graph.table(graph.trace(f)(jnp.ones(3)), width=200))}
    assert rules["relu"] == "its own custom rule"
    assert rules["scan"] == "jax's own vjp"
    assert rules["argmax"] == "no gradient"
    assert rules["reduce_sum"] == "δxᵢ = δ"


def test_groups_open_under_a_heading(traced):
    lines = graph.table(traced, width=120, rows=10, unfold="residual_0").splitlines()
    heading = next(i for i, line in enumerate(lines) if line.strip() == "▾ residual_0")
    assert re.match(r"\s+▸ dense_0 \(3\)", lines[heading + 1])
    assert lines[heading + 1].index("▸") == lines[heading].index("▾") + 2
    assert not any("▾" in line for line in graph.table(traced, width=120, rows=10).splitlines())


def test_many_inputs_are_counted():
    traced = graph.trace(lambda xs: sum(xs, start=jnp.float32(0)))([float(i) for i in range(30)])
    assert re.search(r"⋮ 18 more inputs and constants$", graph.table(traced, width=80), re.MULTILINE)


def test_odd_graphs():
    assert graph.table(graph.trace(lambda x: x)(1.0)).startswith("<lambda> = 1: 0 operations, all f32\n")
    two = graph.trace(lambda x: (x * 2, x.sum()), backward=False)(np.ones(3, np.float32))
    assert graph.table(two).startswith("<lambda> = 2…3 ‖4.58‖: 2 operations")
    keys = graph.trace(lambda x: jax.random.normal(jax.random.key(0), ()) * x)(1.0)
    assert "key<fry>" in graph.table(keys, width=150, unfold=True)
    empty = graph.trace(lambda x: x.sum())(jnp.ones((0, 3)))
    assert cells(graph.table(empty, width=80))[0]["value"] == "empty"
    jax.jit(lambda x: print(graph.trace(lambda x: x * x)(x)) or x)(1.0)  # no numbers to show, and no error
    with pytest.raises(ValueError, match="no group 'dense' to unfold"):
        graph.table(two, unfold="dense")
