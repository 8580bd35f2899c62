"""The benchmark of convolutions times every algorithm that there is."""

import inspect
import sys
from pathlib import Path

from jaxnn.layers.convolution import algorithms, choice

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import convolution as benchmark


def test_every_algorithm_is_a_case_and_has_a_row():
    written = {
        name
        for name, thing in inspect.getmembers(algorithms, inspect.isfunction)
        if thing.__module__ == algorithms.__name__ and name[0] != "_"
        if list(inspect.signature(thing).parameters)[2:3] == ["windows"]
    }
    cases = {case.algorithm.__name__ for which in choice.CASES.values() for case in which}
    timed = {
        algorithm.__name__
        for which in choice.CASES
        for shape in benchmark.SHAPES.values()
        for algorithm in benchmark.algorithms(which, shape)
    }
    assert written == cases == timed
    assert choice.PLAIN._fields == tuple(choice.CASES)


def test_a_row():
    shape = benchmark.Shape(2, (6, 4), 4, (3,))
    found = benchmark.convolution("kernel_gradient", shape, rounds=2)
    assert set(found) == {algorithm.__name__ for algorithm in benchmark.algorithms("kernel_gradient", shape)}
    assert all(time > 0 for times in found.values() for time in times)
    taken = choice.taken("kernel_gradient", shape.sizes).__name__.removeprefix("kernel_gradient_")
    assert any(word == taken for word in benchmark.line("kernel_gradient", shape, found).split())


def test_switching_an_algorithm_off():
    sizes = benchmark.SHAPES["lenet, first"].sizes
    with benchmark.noted() as names, benchmark.without("by_neighbours"):
        assert choice.taken("forward", sizes) is algorithms.correlate
    assert names == {"correlate"}
    assert choice.taken("forward", sizes) is algorithms.by_neighbours
