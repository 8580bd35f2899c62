"""DOT source: it agrees with the graph, and so does what the dot program, if installed, reads from it."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import pytest

from jaxnn import dense, graph, relu, residual, serial
from jaxnn.graph.groups import fold

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz's dot program is not installed")
NET = serial(dense(3), relu, residual(serial(dense(3), relu)), dense(2))


@pytest.fixture(scope="module")
def traced():
    params, state = NET.init(jax.random.key(0), (3,))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    return graph.trace(lambda p: (NET.forward(p, state, x)[0] ** 2).sum())(params)


def drawn(source, form):
    run = subprocess.run(["dot", f"-T{form}"], input=source, capture_output=True, text=True, check=True)
    assert not run.stderr  # no warnings either
    return run.stdout


def nodes_of(source):
    """Name and label of every node, unescaped."""
    found = re.findall(r'^ *(\w+) \[.*?label="((?:[^"\\]|\\.)*)", fill', source, re.MULTILINE)
    return {name: label.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\") for name, label in found}


def test_values_gradients_and_what_is_passed():
    traced = graph.trace(lambda x, y: x * (x + y) + 0.0)(2.0, 1.0)
    source = graph.dot(traced)
    assert nodes_of(source) == {
        "leaf0": "x  f32\n2\nδ 5",
        "leaf1": "y  f32\n1\nδ 2",
        "leaf2": "0",
        "n0": "add  f32\n3\nδ 2",
        "n1": "mul  f32\n6\nδ 1",
        "n2": "add  f32\n6\nδ 1",
    }
    edges = re.findall(r"(\w+) -> (\w+) \[(?:label=\" δ (.*?)\")?", source)
    assert set(edges) == {
        ("leaf0", "n0", "2"),
        ("leaf1", "n0", "2"),
        ("leaf0", "n1", "3"),
        ("n0", "n1", "2"),
        ("n1", "n2", "1"),
        ("leaf2", "n2", ""),
    }
    assert re.findall(r"(\w+) \[.*penwidth", source) == ["n2"]  # the output


def test_what_is_used_twice_passes_a_sum():
    assert '[label=" δ 3 + 3"' in graph.dot(graph.trace(lambda x: x * x)(3.0))


def test_marks_and_whose_rule():
    source = graph.dot(graph.trace(lambda x: jax.nn.relu(x) * jnp.sqrt(x - 2) * jnp.maximum(x, 2.0))(2.0))
    labels = nodes_of(source)
    assert "✗ sub  f32" in labels["n1"]
    assert "∧ sqrt" in labels["n2"]
    assert "its own custom rule" in source
    assert "JAX passes half" in source
    assert source.count("#f8d0cc") == 2  # sub and x, whose gradients are infinite


@pytest.mark.parametrize("most", [0, 8, 100])
def test_it_folds_as_the_table_does(traced, most):
    source = graph.dot(traced, most=most, unfold="residual_0")
    folded = fold(traced, "residual_0", most=most)
    names = {f"{'g' if item.group else 'n'}{item.nodes.start}" for item in folded.items}
    assert {name for name in nodes_of(source) if not name.startswith("leaf")} == names
    assert source.count(" -> ") == len(folded.edges)
    frames = [group.path[-1] for group in folded.opened if len(group.nodes) > 1]
    assert re.findall(r'subgraph \w+ \{\n *label="(.*?)"', source) == frames
    assert source.count("{") == source.count("}")


@needs_dot
@pytest.mark.parametrize("most", [0, 100])
def test_dot_draws_every_node_once_inside_its_frame(traced, most):
    source = graph.dot(traced, most=most, unfold="residual_0")
    picture = json.loads(drawn(source, "json"))
    folded = fold(traced, "residual_0", most=most)
    objects = {thing["name"]: thing for thing in picture["objects"]}
    assert len(picture["edges"]) == len(folded.edges)
    for group in folded.opened:
        if len(group.nodes) == 1:
            continue
        low_x, low_y, high_x, high_y = map(
            float, objects[f"cluster_{len(group.path)}_{group.nodes.start}"]["bb"].split(",")
        )
        for item in folded.items:
            x, y = map(float, objects[f"{'g' if item.group else 'n'}{item.nodes.start}"]["pos"].split(","))
            inside = low_x <= x <= high_x and low_y <= y <= high_y
            assert inside == (item.nodes.start in group.nodes)


NASTY = ['"quoted"', "back\\slash\\n", "<b>&amp;</b>", "a\nb", "{|}", "\\", "δᵀ 重み", "-->", "%s {title}"]


@needs_dot
def test_any_name_is_drawn_as_it_is():
    traced = graph.trace(lambda p: sum(p.values(), start=jnp.float32(0)))(dict.fromkeys(NASTY, 1.0))
    traced = traced._replace(name='f "\\" & {title}')
    picture = ElementTree.fromstring(drawn(graph.dot(traced), "svg"))
    words = [text.text or "" for text in picture.iter() if text.tag.endswith("text")]
    shown = {word.replace("\N{NO-BREAK SPACE}", " ") for word in words}
    assert {f"{leaf.name}  f32" for leaf in traced.leaves if leaf.kind == "input"} <= shown
    assert any('f "\\" & {title} = 9' in word for word in words)


@needs_dot
def test_a_scope_of_any_name_is_a_frame():
    def f(x):
        with jax.named_scope('a "b" \\ c'):
            return jnp.sin(jnp.cos(x))

    picture = drawn(graph.dot(graph.trace(lambda x: f(x) * 2)(1.0)), "svg")
    words = [text.text for text in ElementTree.fromstring(picture).iter() if text.tag.endswith("text")]
    assert 'a "b" \\ c' in words


def test_odd_graphs():
    assert "leaf0" in graph.dot(graph.trace(lambda x: x)(1.0))
    assert graph.dot(graph.trace(lambda x: (x, x > 0), backward=False)(1.0)).count("penwidth") == 2
    with pytest.raises(ValueError, match="no group 'nowhere' to unfold"):
        graph.dot(graph.trace(jnp.sin)(1.0), unfold="nowhere")
