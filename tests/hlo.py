"""What a compiled program communicates: its collectives, by how many loops are around each."""

import re

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def collectives(text):
    """(loops around it, name) of every collective in the text of a compiled program, `compiled.as_text()`."""
    found, calls, entry, name = {}, {}, None, None
    for line in text.splitlines():
        if begins := re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = begins[2]
            entry = name if begins[1] else entry
            continue
        here = calls.setdefault(name, [])
        here += [(body, 1) for body in re.findall(r"body=%?([\w.\-]+)", line)]
        here += [(called, 0) for called in re.findall(r"(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)", line)]
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            here += [(branch.strip().lstrip("%"), 0) for branch in branches.split(",")]
        if op := re.search(rf" ({COLLECTIVES})(?:-start)?\(", line):
            found.setdefault(name, []).append(op[1])

    def within(name, depth):
        inner = [one for called, loops in calls.get(name, []) for one in within(called, depth + loops)]
        return [(depth, op) for op in found.get(name, [])] + inner

    return within(entry, 0)
