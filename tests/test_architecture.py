"""The house has floors: a module imports only from lower ones, and everything public is in one place and documented."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from long_tests import LONG

import jaxnn

ROOT = Path(jaxnn.__file__).parent
FLOORS = (
    {"bars", "errors", "records"},
    {"showing"},
    {"aliases"},
    {"placement"},
    {"tapes"},
    {"factors"},
    {"compiled", "interfaces"},
    {"types", "wrapping"},
    {"arrays", "trees"},
    {"checks"},
    {"keys", "shapes"},
    {"ends", "mistakes"},
    {"activations", "initializers", "jaxprs", "losses", "magnitudes", "penalties", "schedules", "stopping"}
    | {"parameters", "sequences", "twins"},
    {"metrics", "weighting"},
    {"layers"},
    {"combinators", "optimizers"},
    {"networks", "passes"},
    {"diagnostics"},
    {"gradcheck", "graph", "training"},
    {"summaries"},
    {"descriptions", "plots"},
)
ROOMS = {  # a package has floors of its own; its __init__ says what is public
    "losses": (
        {"targets"},
        {"rules"},
        {"classwise", "entrywise"},
        {"__init__"},
    ),
    "combinators": (
        {"parts"},
        {"branches", "directions", "naming", "sequence"},
        {"walk"},
        {"__init__"},
    ),
    "optimizers": (
        {"parts"},
        {"adaptive", "averages", "descent", "transforms"},
        {"__init__"},
    ),
    "layers/norm": (
        {"shared"},
        {"batch", "features"},
        {"__init__"},
    ),
    "layers/convolution": (
        {"windows"},
        {"algorithms", "pooling"},
        {"choice"},
        {"windowed"},
        {"conv"},
        {"__init__"},
    ),
    "layers/recurrent": (
        {"products", "through_time"},
        {"elman", "gru", "lstm"},
        {"__init__"},
    ),
    "data": (
        {"idx", "splitting", "values"},
        {"sets"},
        {"__init__"},
    ),
    "passes": (
        {"readings"},
        {"parts"},
        {"backprop"},
        {"__init__"},
    ),
    "training": (
        {"means"},
        {"steps"},
        {"divergence", "entry", "monitoring"},
        {"fit"},
        {"__init__"},
    ),
    "diagnostics": (
        {"measures"},
        {"diagnosis"},
        {"point"},
        {"__init__"},
    ),
    "gradcheck": (
        {"arrays", "report", "replay", "differences", "kinks", "mixtures"},
        {"programs", "rounding", "sites", "ties"},
        {"spots"},
        {"collecting", "flat", "measuring", "pieces"},
        {"evidence"},
        {"nonsmooth"},
        {"judge", "marks"},
        {"properties", "rule_slopes"},
        {"rule_checks"},
        {"auditing", "functions", "networks"},
        {"observing"},
        {"__init__"},
    ),
    "plots": (
        {"arguments", "style"},
        {"functions", "images", "layers", "training"},
        {"__init__"},
    ),
    "augment": (
        {"strengths"},
        {"composition", "resampling"},
        {"maps"},
        {"distortions"},
        {"__init__"},
    ),
    "graph": (
        {"causes", "loops", "nodes", "rule", "terminal", "values"},
        {"briefs", "folding", "layout", "rules", "shape_rules", "spots"},
        {"dot", "explanation", "formulas", "levels", "pulls", "text", "way"},
        {"forward_causes", "hiding"},
        {"backward_causes"},
        {"page"},
        {"graph"},
        {"record"},
        {"trace"},
        {"explain_values", "whole"},
        {"explain_gradients"},
        {"explain", "flow"},
        {"__init__"},
    ),
}
SIDE = {"augment", "data"}
CHECKS = {
    "arrays",
    "checks",
    "keys",
    "records",
    "shapes",
    "showing",
    "trees",
    "types",
}  # for SIDE
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
RUN_TIME = {"jax", "chex", "numpy", "jaxnn"} | set(sys.stdlib_module_names)  # numpy comes with jax
OPTIONAL = {"igraph", "matplotlib", "optax", "sklearn", "tqdm"}  # imported in the function that uses them
MODULES = sorted(ROOT.rglob("*.py"))


def imports(tree):
    """(imported module, is at the top of the file) for every import."""
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            if node.module == "jaxnn":
                yield from ((f"jaxnn.{alias.name}", node in top) for alias in node.names)
            else:
                yield node.module, node in top


def room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    tree = ast.parse(path.read_text())
    for module, at_top in imports(tree):
        package = module.split(".")[0]
        assert package in RUN_TIME or (package in OPTIONAL and not at_top), f"{path.name} imports {module}"
        if package != "jaxnn" or room(path) == "__init__":
            continue
        target = module.split(".")[1]
        if room(path) in SIDE and target != room(path):
            assert target in CHECKS, f"{path.name} imports {module}"
        elif room(path) == target == "layers" and path.parent.name != module.split(".")[2]:
            assert path.name == "__init__.py", f"{path.name} imports its sibling {module}"
        elif room(path) == target:
            floors = ROOMS[str(path.parent.relative_to(ROOT))]
            levels = {name: level for level, names in enumerate(floors) for name in names}
            imported = module.split(".")[len(path.parent.relative_to(ROOT).parts) + 1]
            assert levels[imported] < levels[path.stem], f"{path.name} imports {module}, not on a lower floor"
        else:
            assert LEVEL[target] < LEVEL[room(path)], f"{path.name} imports {module}, which is not on a lower floor"


def test_every_module_has_a_floor():
    for package, floors in ROOMS.items():
        assert {path.stem for path in (ROOT / package).glob("*.py")} == set().union(*floors)
    assert {room(path) for path in MODULES} - {"__init__"} == set(LEVEL) | SIDE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_enough_to_read(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert len(path.read_text().splitlines()) <= 700


PUBLIC = [name for name in jaxnn.__all__ if not inspect.ismodule(getattr(jaxnn, name))]


def test_all_is_what_the_package_offers():
    assert len(set(jaxnn.__all__)) == len(jaxnn.__all__)
    for name in jaxnn.__all__:
        assert hasattr(jaxnn, name)


@pytest.mark.parametrize("name", [n for n in PUBLIC if not isinstance(getattr(jaxnn, n), tuple)])
def test_public_names_are_documented(name):
    thing = getattr(jaxnn, name)
    doc = inspect.getdoc(thing)
    assert doc
    if inspect.isfunction(inspect.unwrap(thing)) or (inspect.isclass(thing) and name.islower()):
        assert ">>>" in doc, f"{name} has no example"


def annotated(record):
    return {name for base in record.__mro__ for name in inspect.get_annotations(base)}


def test_public_annotations_are_complete():
    for name in PUBLIC:
        thing = inspect.unwrap(getattr(jaxnn, name))
        if inspect.isclass(thing) and name.islower():  # a record: its fields are its arguments
            assert {field.name for field in dataclasses.fields(thing)} <= annotated(thing), name
            thing = thing.__init__
        if inspect.isfunction(thing):
            parameters = inspect.signature(thing).parameters
            assert set(parameters) - {"self"} | {"return"} == set(thing.__annotations__), name


def test_the_package_says_it_is_typed():
    assert (ROOT / "py.typed").exists()


def test_import_brings_no_optional_package():
    code = (
        "import sys, jaxnn; print([m for m in "
        "('optax', 'flax', 'equinox', 'sklearn', 'matplotlib', 'tqdm', 'torch', 'scipy.stats', 'igraph') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before = subprocess.run(
        [sys.executable, "-c", code.replace("jaxnn;", "jax, chex;")], capture_output=True, text=True, check=True
    ).stdout
    assert out == before  # chex may bring some itself


def test_every_module_imports_alone():
    for name in [*LEVEL, *SIDE]:
        assert importlib.import_module(f"jaxnn.{name}").__doc__


def test_the_table_of_long_tests_names_tests_that_are_there():
    """One that was renamed would come back into the fast suite unseen."""
    for node in itertools.chain.from_iterable(LONG.values()):
        file, _, test = node.partition("::")
        name = test.partition("[")[0]
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(), node
