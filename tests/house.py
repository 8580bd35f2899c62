"""The structure of the package in figures: `python tests/house.py [COMMIT]`, beside that of an earlier commit.

Everything is counted in the text of the modules; nothing is imported.
"""

import ast
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

FILE, FUNCTION = 400, 60  # lines; of a function without its docstring
OTHER_KINDS = {"graph", "gradcheck", "jaxprs"}
LAYERS = {"layer", "self", "net", "child", "of", "record", "place.layer"}


def modules(root):
    """(path below the package, source, syntax tree) of every module."""
    package = root / "jaxnn"
    for path in sorted(package.rglob("*.py")):
        source = path.read_text()
        yield path.relative_to(package), source, ast.parse(source)


def room(path):
    return path.parts[0].removesuffix(".py")


def length(function):
    """Lines of a function, without its docstring."""
    first = function.body[0]
    said = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - said


def long_functions(tree):
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [node.name for node in functions if length(node) > FUNCTION]


def arrows(root):
    """(room, room that it imports): the package's own door is none."""
    found = set()
    for path, _, tree in modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxnn":
                names = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
                found |= {(room(path), name) for name in names if name != room(path)}
    return {(a, b) for a, b in found if a != "__init__"}


def floors(pairs):
    """The rooms of the longest way down."""
    below = {}
    for a, b in pairs:
        below.setdefault(a, set()).add(b)
    known = {}

    def depth(name):
        if name not in known:
            known[name] = 0  # a circle ends here
            known[name] = 1 + max((depth(other) for other in below.get(name, ())), default=0)
        return known[name]

    return max(map(depth, below), default=0)


def shadowed(root):
    """Modules that their package's __init__ gives another meaning."""
    for path, _, tree in modules(root):
        if path.name == "__init__.py":
            beside = {other.stem for other in (root / "jaxnn" / path.parent).glob("*.py")}
            beside |= {other.parent.name for other in (root / "jaxnn" / path.parent).glob("*/__init__.py")}
            home = ".".join(["jaxnn", *path.parent.parts])
            for node in tree.body:
                if isinstance(node, ast.ImportFrom) and node.module != home:
                    yield from (f"{home}.{alias.name}" for alias in node.names if alias.name in beside)


def annotations(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns


def anys(tree):
    return sum(isinstance(part, ast.Name) and part.id == "Any" for note in annotations(tree) for part in ast.walk(note))


def compares_kinds(path, node):
    """Of layers: an equation, a leaf of a graph and a dtype have kinds as well."""
    if room(path) in OTHER_KINDS or not isinstance(node, ast.Compare):
        return False
    kinds = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Attribute) and side.attr == "kind"]
    return any(not isinstance(side.value, ast.Attribute) and ast.unparse(side.value) in LAYERS for side in kinds)


def asks_for(name, node):
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
    return called and any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node.args[1]))


def recursive_over_children(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            parts = list(ast.walk(node))
            children = any(isinstance(part, ast.Attribute) and part.attr == "children" for part in parts)
            itself = any(isinstance(part, ast.Name) and part.id == node.name for part in parts)
            yield from [node.name] if children and itself else []


def interprets(node):
    """A function that evaluates a program: it goes through its equations with the values of its variables."""
    if not isinstance(node, ast.FunctionDef):
        return False
    loops = [part.iter for part in ast.walk(node) if isinstance(part, ast.For)]
    read = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    through = any(isinstance(over, ast.Attribute) and over.attr == "eqns" for over in loops)
    return through and {"invars", "outvars"} <= read


def figures(root):
    """Every figure of the house by its name."""
    found = list(modules(root))
    nodes = [(path, node) for path, _, tree in found for node in ast.walk(tree)]
    lines = {str(path): len(source.splitlines()) for path, source, _ in found}
    pairs = arrows(root)
    page = [*(root / "jaxnn").rglob("*.js"), *(root / "jaxnn").rglob("*.css"), *(root / "jaxnn").rglob("*.html")]
    return {
        "rooms": len({room(path) for path, _, _ in found} - {"__init__"}),
        "floors": floors(pairs),
        "arrows between rooms": len(pairs),
        f"files above {FILE} lines": sum(n > FILE for n in lines.values()),
        f"functions above {FUNCTION} lines": sum(len(long_functions(tree)) for _, _, tree in found),
        "comparisons of layers' kinds": sum(compares_kinds(path, node) for path, node in nodes),
        "recursions over children": sum(len([*recursive_over_children(tree)]) for _, _, tree in found),
        "interpreters of programs": sum(interprets(node) for _, node in nodes),
        "isinstance of Sequences": sum(asks_for("Sequences", node) for _, node in nodes),
        "modules that are shadowed": len([*shadowed(root)]),
        "Any among annotations": sum(anys(tree) for _, _, tree in found),
        "lines of Python": sum(lines.values()),
        "lines of the page": sum(len(path.read_text().splitlines()) for path in page),
    }


def at(commit, folder):
    """The package as it was at a commit, below the folder."""
    archive = subprocess.run(["git", "archive", commit, "jaxnn"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return Path(folder)


def main():
    now = figures(Path(__file__).parents[1])
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            before = figures(at(sys.argv[1], folder))
        for name, figure in now.items():
            print(f"{name:30}{before[name]:>8,} -> {figure:,}")
    else:
        for name, figure in now.items():
            print(f"{name:30}{figure:>8,}")


if __name__ == "__main__":
    main()
