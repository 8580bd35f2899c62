"""The arithmetic of scale: what a step of three networks computes and sends, on 8 to 4,096 devices.

    python benchmarks/scaling.py            # the tables of CLUSTERS.md
    python benchmarks/scaling.py --write    # into CLUSTERS.md
    python benchmarks/scaling.py --count    # FLOPs and bytes, counted again by XLA from jaxnn's train_step

Nothing is measured here: FLOPs and bytes are counted by XLA, links and peaks are the vendors', the rest is division. A
step of b examples on a device takes T(b) = max(F(b) / (SHARE · peak), M(b) / (MEMORY_SHARE · memory bandwidth)), with F
FLOPs and M bytes, both linear in b. A ring all-reduce of S bytes among n devices sends 2 (n − 1)/n · S from each
(Patarasuk & Yuan 2009), and takes that over the bandwidth and 2 ⌈log₂ n⌉ latencies, those of trees, which are taken for
few bytes.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "CLUSTERS.md"
SHARE, MEMORY_SHARE = 0.4, 0.7  # of the peaks, as well-tuned programs reach them
DEVICES = (8, 64, 512, 4096)
CRITICAL = (1_000, 8_000, 64_000)  # critical batch sizes, for the table


class Counted(NamedTuple):
    """What XLA counts of a training step with sgd in float32 on a CPU: constant + per example."""

    parameters: int
    flops: tuple[float, float]
    memory: tuple[float, float]  # bytes

    def step(self, b, machine):
        """Seconds of a step of b examples."""
        flops, memory = (constant + each * b for constant, each in (self.flops, self.memory))
        return max(flops / (SHARE * machine.peak), memory / (MEMORY_SHARE * machine.memory))


class Machine(NamedTuple):
    """A device and its links; bytes are those that it sends a second while it receives as many."""

    peak: float  # FLOP/s, bfloat16 products
    memory: float  # bytes/s
    inside: int  # devices of a machine
    near: float  # bytes/s within a machine
    far: float  # between machines
    latency: tuple[float, float]  # seconds, within and between

    def all_reduce(self, size, n, passes=2):
        """Seconds of an all-reduce of that many bytes; of half of it, all-gather or reduce-scatter, with passes=1."""
        if n == 1:
            return 0.0
        near = n <= self.inside
        speed, latency = (self.near, self.latency[0]) if near else (self.far, self.latency[1])
        return passes * ((n - 1) / n * size / speed + math.ceil(math.log2(n)) * latency)


NETWORKS = {  # the batch of each device for weak scaling, of all for strong
    "perceptron": ("perceptron 784-1024-1024-10", 256, 32_768),
    "lenet": ("LeNet, 28×28 (`networks.lenet()`)", 256, 32_768),
    "lstm": ("LSTM language model, 35 words, 2 × 650 units, vocabulary 10,000", 64, 8_192),
}
WORDS = 35  # of a sequence (Zaremba et al. 2014, "medium")
COUNTS = {
    "perceptron": Counted(1_863_690, (3_725_312.0, 9_578_697.0), (41_673_116.0, 101_058.75)),
    "lenet": Counted(85_670, (21_052_224.0, 5_156_978.0), (12_004_800.0, 566_530.375)),
    "lstm": Counted(19_775_200, (269_406_208.0, 2_793_049_752.0), (4_276_975_616.0, 53_894_916.0)),
}
MACHINES = {
    "NDR": Machine(989e12, 3.35e12, 8, 450e9, 400e9, (2e-6, 5e-6)),
    "ICI": Machine(459e12, 2.765e12, 1, 600e9, 600e9, (1e-6, 1e-6)),
    "100 GbE": Machine(989e12, 3.35e12, 8, 450e9, 12.5e9, (2e-6, 30e-6)),
}


# ---------------------------------------------------------------- counting


def counted(name):
    """The counts of a network, by XLA."""
    import jax
    import jax.numpy as jnp

    from jaxnn import dense, embedding, init_train_state, losses, lstm, mlp, networks, serial, sgd, train_step

    plain = jax.lax.scan

    def unrolled(f, init, xs=None, length=None, **settings):
        return plain(f, init, xs, length, **settings | {"unroll": True})

    def compiled(net, batch, shape, dtype, targets):
        step, optimizer = train_step(net, losses.softmax_cross_entropy, sgd(0.1)), sgd(0.1)
        one = jax.ShapeDtypeStruct(shape, dtype)
        state = jax.eval_shape(lambda: init_train_state(net, optimizer, 0, one if dtype == jnp.int32 else shape))
        x = jax.ShapeDtypeStruct((batch, *shape), dtype)
        labels = jax.ShapeDtypeStruct((batch, *targets), jnp.int32)
        costs = jax.jit(step).lower(state, x, labels).compile().cost_analysis()
        return sum(leaf.size for leaf in jax.tree.leaves(state.params)), costs["flops"], costs["bytes accessed"]

    def line(at, values):
        each = (values[1] - values[0]) / (at[1] - at[0])
        return values[0] - each * at[0], each

    if name == "lstm":  # XLA counts a loop once: it is unrolled, for 2 and 4 words, and continued linearly
        net = serial(embedding(10_000, 650), lstm(650), lstm(650), dense(10_000))
        jax.lax.scan = unrolled
        try:
            found = {(b, t): compiled(net, b, (t,), jnp.int32, (t,)) for b in (8, 16) for t in (2, 4)}
        finally:
            jax.lax.scan = plain
        ends = []
        for i in (1, 2):
            at_length = []
            for b in (8, 16):
                constant, each = line((2, 4), [found[b, t][i] for t in (2, 4)])
                at_length.append(constant + each * WORDS)
            ends.append(line((8, 16), at_length))
        return Counted(found[8, 2][0], *ends)
    net, shape = (mlp([1024, 1024, 10]), (784,)) if name == "perceptron" else (networks.lenet(), (28, 28, 1))
    found = [compiled(net, b, shape, jnp.float32, ()) for b in (64, 128)]
    return Counted(found[0][0], *(line((64, 128), [each[i] for each in found]) for i in (1, 2)))


# ---------------------------------------------------------------- tables


def efficiency(network, machine, n, b, width=4):
    """The share of n devices' work that is left: without any overlap of sending and computing, and with all of it."""
    step, sending = network.step(b, machine), machine.all_reduce(network.parameters * width, n)
    return step / (step + sending), step / max(step, sending)


def break_even(network, machine, n, width=4):
    """The batch per device at which computing takes as long as sending."""
    sending, b = machine.all_reduce(network.parameters * width, n), 1
    while network.step(b, machine) < sending:
        b *= 2
    low = b // 2
    while b - low > 1:
        middle = (low + b) // 2
        low, b = (middle, b) if network.step(middle, machine) < sending else (low, middle)
    return b


def speed_up(network, machine, n, b, critical):
    """How much sooner n devices of b examples reach the same loss than one (McCandlish et al. 2018, eq. 2.11)."""
    return n * efficiency(network, machine, n, b)[0] * (1 + b / critical) / (1 + n * b / critical)


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def bytes_of(size):
    """`7.5 MB`."""
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if size >= u)
    return f"{size / unit:.3g} {name}"


def seconds_of(time):
    """`12 µs`."""
    return f"{time * 1e6:,.0f} µs" if time < 1e-3 else f"{time * 1e3:,.3g} ms"


def steps_table():
    """What a step computes and sends."""
    rows = []
    for name, (title, b, _) in NETWORKS.items():
        network = COUNTS[name]
        size = network.parameters * 4
        rows.append(
            (
                title,
                f"{network.parameters:,}",
                f"{bytes_of(size)}, {bytes_of(size / 2)}",
                bytes_of(2 * 7 / 8 * size),
                bytes_of(2 * 4095 / 4096 * size),
                f"{network.flops[1] / 1e6:,.1f} M",
                b,
                seconds_of(network.step(b, MACHINES["NDR"])),
            )
        )
    head = ("network", "parameters", "gradient in float32, bfloat16", "sent by each of 8", "by each of 4,096")
    return table((*head, "FLOPs an example", "b", "T(b), H100"), rows)


def scaling_table(strong):
    """Efficiencies for a fixed batch of each device, or speed-ups for one of all; of all networks and links."""
    rows = []
    for name, (_, each, whole) in NETWORKS.items():
        for link, machine in MACHINES.items():
            cells = []
            one = COUNTS[name].step(whole, machine)
            for n in DEVICES:
                b = whole / n if strong else each
                without, full = efficiency(COUNTS[name], machine, n, b)
                if strong:
                    times = one / COUNTS[name].step(b, machine)
                    cells.append(f"{without * times:,.1f}–{full * times:,.1f}")
                else:
                    cells.append(f"{without:.2f}–{full:.2f}")
            rows.append((f"{name}, {f'{whole:,} in all' if strong else f'{each} each'}", link, *cells))
    return table(("network and batch", "link", *(f"{n:,}" for n in DEVICES)), rows)


def break_even_table():
    """The batch per device below which sending takes longer than computing."""
    rows = [
        (
            name,
            width_name,
            *(f"{break_even(COUNTS[name], machine, n, width):,}" for machine in MACHINES.values() for n in (8, 4096)),
        )
        for name in NETWORKS
        for width_name, width in (("float32", 4), ("bfloat16", 2))
    ]
    return table(("network", "gradient", *(f"{link}, {n:,}" for link in MACHINES for n in (8, 4096))), rows)


def critical_table():
    """Speed-ups in time to a loss, of the perceptron."""
    machine, b = MACHINES["NDR"], NETWORKS["perceptron"][1]
    rows = [
        (f"{critical:,}", *(f"{speed_up(COUNTS['perceptron'], machine, n, b, critical):,.1f}" for n in DEVICES))
        for critical in CRITICAL
    ]
    return table(("critical batch size", *(f"{n:,}" for n in DEVICES)), rows)


def sharded_table():
    """Memory and traffic of parameters that are divided among devices."""
    rows = []
    for name, (title, _, _) in NETWORKS.items():
        size = COUNTS[name].parameters * 4
        whole, part = (MACHINES["NDR"].all_reduce(size, 4096, passes) for passes in (2, 3))
        rows.append(
            (
                title,
                bytes_of(4 * size),
                bytes_of(4 * size / 8),
                bytes_of(4 * size / 4096),
                seconds_of(whole),
                seconds_of(part),
            )
        )
    head = ("network", "on every device", "divided by 8", "by 4,096", "all-reduce, 4,096", "gathered twice, scattered")
    return table(head, rows)


TABLES = {
    "steps": steps_table,
    "weak": lambda: scaling_table(strong=False),
    "strong": lambda: scaling_table(strong=True),
    "break-even": break_even_table,
    "critical": critical_table,
    "sharded": sharded_table,
}


def written(page):
    """The page with its tables computed anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{make()}\n\n{end}{rest.split(end)[1]}"
    return page


def main():
    """Prints, writes or counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="the tables into CLUSTERS.md")
    parser.add_argument("--count", action="store_true", help="count again what COUNTS says")
    given = parser.parse_args()
    if given.count:
        sys.path.insert(0, str(PAGE.parent))
        for name in NETWORKS:
            print(f'    "{name}": {counted(name)},')
    elif given.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for name, make in TABLES.items():
            print(f"{name}\n\n{make()}\n")


if __name__ == "__main__":
    main()
