"""The tables of CLUSTERS.md are those that benchmarks/scaling.py computes, from what XLA counts."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import scaling

COUNTING = 0.05  # XLA's releases fuse differently, and count what is fused differently


def test_the_tables_of_the_page_are_computed():
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.written(page) == page
    assert page.count("<!--") == 2 * len(scaling.TABLES)


def test_a_ring_sends_twice_the_bytes_less_a_share():
    machine = scaling.Machine(1.0, 1.0, 8, 10.0, 1.0, (0.0, 0.0))
    assert machine.all_reduce(40, 1) == 0
    assert machine.all_reduce(40, 8) == pytest.approx(2 * 7 / 8 * 40 / 10)
    assert machine.all_reduce(40, 16) == pytest.approx(2 * 15 / 16 * 40)
    late = machine._replace(latency=(0.0, 3.0))
    assert late.all_reduce(0, 64) == pytest.approx(2 * 6 * 3.0)


def test_the_break_even_is_where_both_take_as_long():
    network, machine = scaling.COUNTS["perceptron"], scaling.MACHINES["NDR"]
    b, sending = scaling.break_even(network, machine, 64), machine.all_reduce(network.parameters * 4, 64)
    assert network.step(b - 1, machine) < sending <= network.step(b, machine)


def test_beyond_the_critical_batch_devices_gain_nothing():
    network, machine = scaling.COUNTS["lstm"], scaling.MACHINES["ICI"]
    many = scaling.speed_up(network, machine, 4096, 64, 1_000)
    assert many == pytest.approx((1_000 + 64) / 64, rel=0.1)  # E_min of a gradient without noise, by one device
    assert scaling.speed_up(network, machine, 64, 64, math.inf) == pytest.approx(
        64 * scaling.efficiency(network, machine, 64, 64)[0]
    )


@pytest.mark.long
@pytest.mark.parametrize("name", scaling.NETWORKS)
def test_xla_counts_what_is_said(name):
    found, said = scaling.counted(name), scaling.COUNTS[name]
    assert found.parameters == said.parameters
    flops = [sum(part * b for part, b in zip(counts.flops, (1, 128), strict=True)) for counts in (found, said)]
    assert flops[0] == pytest.approx(flops[1], rel=COUNTING)
