"""The house has floors: a module imports only from lower ones, and is short enough to read."""

import ast
import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest
from long_tests import LONG

import jaxnn

ROOT = Path(jaxnn.__file__).parent
BASE = (  # of both wings
    {"bars", "errors", "magnitudes", "records"},
    {"showing"},
    {"aliases"},
    {"spmd"},
    {"tapes"},
    {"factors"},
    {"compiled", "interfaces"},
    {"types", "wrapping"},
    {"arrays", "trees"},
    {"checks"},
    {"keys", "shapes"},
    {"mistakes"},
)
NETWORKS = (
    {"activations", "initializers", "losses", "penalties", "schedules", "stopping"}
    | {"descriptions", "parameters", "sequences", "sources", "twins"},
    {"metrics", "placement", "weighting"},
    {"layers"},
    {"combinators", "optimizers"},
    {"networks", "passes"},
    {"diagnostics"},
    {"checkpoint"},
    {"training"},
    {"summaries"},
    {"plots"},
)
FUNCTIONS = ({"jaxprs"}, {"graph"}, {"gradcheck"})  # the wing of any JAX function
STAIR = {"gradcheck/kinks.py", "gradcheck/layer_calls.py", "gradcheck/networks.py"}  # from there to the networks
FLOORS = (*BASE, *NETWORKS[:-5], FUNCTIONS[0], NETWORKS[-5], *FUNCTIONS[1:], *NETWORKS[-4:])
ROOMS = {  # a package has floors of its own; its __init__ says what is public
    "spmd": (
        {"axes", "cores", "processes"},
        {"loops", "transfers"},
        {"batches"},
        {"__init__"},
    ),
    "jaxprs": (
        {"sources"},
        {"programs"},
        {"comparison", "control", "interpreter"},
        {"__init__"},
    ),
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
        {"precision"},
        {"__init__"},
    ),
    "schedules": (
        {"shared", "times"},
        {"compositions", "decays"},
        {"__init__"},
    ),
    "optimizers": (
        {"parts"},
        {"adaptive", "averages", "descent", "scaling", "transforms"},
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
    "checkpoint": (
        {"layout", "metadata"},
        {"files", "structures"},
        {"exporting", "packing"},
        {"folders", "overview"},
        {"states"},
        {"__init__"},
    ),
    "training": (
        {"means", "monitoring", "progress", "reading", "shared"},
        {"batches", "parts", "results", "steps"},
        {"epochs", "looking"},
        {"chunks", "entry", "moments", "own_steps", "turned"},
        {"divergence", "evaluation", "saving"},
        {"driver", "run", "sweep_results"},
        {"fit", "members", "metagradients"},
        {"origin"},
        {"sweep"},
        {"replaying"},
        {"__init__"},
    ),
    "diagnostics": (
        {"measures"},
        {"diagnosis"},
        {"point"},
        {"__init__"},
    ),
    "gradcheck": (
        {"arrays", "fitting", "report", "replay", "differences", "kinks", "mixtures"},
        {"programs", "rounding", "sites", "ties"},
        {"collecting", "flat", "layer_calls", "pieces"},
        {"evidence"},
        {"measuring"},
        {"nonsmooth"},
        {"judge", "marks"},
        {"checking"},
        {"properties", "rule_slopes"},
        {"rule_checks"},
        {"auditing", "functions", "networks"},
        {"observing"},
        {"__init__"},
    ),
    "plots": (
        {"arguments", "style"},
        {"functions", "images", "layers", "sweeps", "training"},
        {"__init__"},
    ),
    "augment": (
        {"strengths"},
        {"composition", "resampling"},
        {"maps"},
        {"distortions"},
        {"__init__"},
    ),
    "processes": (
        {"child", "endings"},
        {"launcher"},
        {"__init__"},
        {"__main__"},
    ),
    "graph": (
        {"nodes", "summaries"},
        {"groups", "loops", "rules"},
        {"gradient_path", "pulls"},
        {"reverse"},
        {"record"},
        {"tracing"},
        {"flow", "nonfinite"},
        {"text"},
        {"html"},
        {"__init__"},
    ),
    "graph/rules": (
        {"rule"},
        {"elementwise", "indexing", "products", "reductions", "shapes", "windows"},
        {"__init__"},
    ),
    "graph/nonfinite": (
        {"causes", "entries"},
        {"discarded", "explanation", "patterns"},
        {"forward"},
        {"backward", "compiled", "values"},
        {"gradients"},
        {"explain"},
        {"__init__"},
    ),
    "graph/text": (
        {"arrays", "terminal"},
        {"charts", "graphviz", "tables"},
        {"__init__"},
    ),
    "graph/html": (
        {"layout"},
        {"subgraphs"},
        {"document"},
        {"__init__"},
    ),
}
SIDE = {"augment", "data", "processes"}
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


def fork(path, module):
    """The innermost package that holds both modules, and the name in it that leads to each."""
    ours, theirs = path.relative_to(ROOT).with_suffix("").parts, (*module.split(".")[1:], "__init__")
    depth = next(i for i, part in enumerate(ours) if i == len(ours) - 1 or part != theirs[i])
    return "/".join(ours[:depth]), ours[depth], theirs[depth]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    for module, at_top in imports(tree):
        package = module.split(".")[0]
        assert package in RUN_TIME or (package in OPTIONAL and not at_top), f"{path.name} imports {module}"
        if package != "jaxnn" or here == "__init__.py":
            continue
        target = module.split(".")[1]
        inside, ours, theirs = fork(path, module)
        if room(path) in SIDE and target != room(path):
            assert target in CHECKS, f"{path.name} imports {module}"
        elif inside == "layers":
            assert path.name == "__init__.py", f"{path.name} imports its sibling {module}"
        else:
            floors = ROOMS[inside] if inside else FLOORS
            level = {name: floor for floor, names in enumerate(floors) for name in names}
            assert level[theirs] < level[ours], f"{here} imports {module}, which is not on a lower floor"


def test_the_wing_of_any_function_stands_by_itself():
    """It imports the base, and of it no layer or loss; the stair alone leads to the networks."""
    own, base = set().union(*FUNCTIONS), set().union(*BASE) - {"factors", "interfaces", "mistakes", "types", "wrapping"}
    climbs = set()
    for path in MODULES:
        if room(path) in own:
            rooms = {
                module.split(".")[1] for module, _ in imports(ast.parse(path.read_text())) if module[:6] == "jaxnn."
            }
            climbs |= {path.relative_to(ROOT).as_posix()} if rooms - own - base else set()
    assert climbs == STAIR


def test_the_graph_does_not_import_its_drawings():
    for path in (ROOT / "graph").rglob("*.py"):
        part = path.relative_to(ROOT / "graph").parts[0]
        drawings = {module for module, _ in imports(ast.parse(path.read_text()))}
        drawings = {module for module in drawings if module.startswith(("jaxnn.graph.html", "jaxnn.graph.text"))}
        if part not in ("__init__.py", "html", "text"):
            assert not drawings, f"{path.name} imports {drawings}"
        if part == "text":
            assert not any(module.startswith("jaxnn.graph.html") for module in drawings), path.name


def names_in(package):
    """Modules and packages in a folder, as they are imported."""
    inner = {path.parent.name for path in package.glob("*/__init__.py")}
    return {path.stem for path in package.glob("*.py")} | inner


LAYOUT = re.compile(
    r"\b(eqns|constvars|num_carry|num_consts|ft_in|ft_out|cond_nconsts|body_nconsts|cond_jaxpr|body_jaxpr|call_jaxpr"
    r"|fun_jaxpr|ClosedJaxpr|jaxprs_in_params|jaxpr_as_fun)\b"
)
PARAMETERS = {"branches", "jaxpr", "length"}  # of a loop, a branch or a call


def keys(tree):
    """The constant keys that a module reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            yield getattr(node.slice, "value", None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            yield from (getattr(arg, "value", None) for arg in node.args)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_jaxprs_knows_how_jax_lays_out_a_program(path):
    """No other package loops over equations or reads the parameters of a call, a loop or a branch."""
    text = path.read_text(encoding="utf-8")
    if room(path) != "jaxprs":
        assert not LAYOUT.findall(text)
        assert not PARAMETERS & {key for key in keys(ast.parse(text)) if isinstance(key, str)}


def test_every_module_has_a_floor():
    for package, floors in ROOMS.items():
        assert names_in(ROOT / package) == set().union(*floors)
    assert {room(path) for path in MODULES} - {"__init__"} == set(LEVEL) | SIDE


def test_no_public_name_of_graph_hides_a_module():
    for package in ("graph", "graph/html", "graph/nonfinite", "graph/rules", "graph/text"):
        public = importlib.import_module(f"jaxnn.{package}".replace("/", ".")).__all__
        assert not set(public) & names_in(ROOT / package)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short_enough_to_read(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= house.FILE
    assert house.long_functions(tree) == []


def test_the_figures_of_the_house():
    """What must stay at nothing, or at the one place that there is."""
    figures = house.figures(ROOT.parent)
    nothing = ("comparisons of layers' kinds", "modules that are shadowed", f"files above {house.FILE} lines")
    assert {name: figures[name] for name in nothing} == dict.fromkeys(nothing, 0)
    assert figures["recursions over children"] == figures["interpreters of programs"] == 1


def test_import_brings_no_optional_package():
    """Nor does a description bring graph: jax.extend adds a setting to JAX, and everything would compile again."""
    code = (
        "import sys, jaxnn; jaxnn.describe(jaxnn.relu); print([m for m in "
        "('optax', 'flax', 'equinox', 'sklearn', 'matplotlib', 'tqdm', 'torch', 'scipy.stats', 'igraph', 'jax.extend', "
        "'jaxnn.checkpoint', 'jaxnn.graph') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before = subprocess.run(
        [sys.executable, "-c", code.replace("jaxnn; jaxnn.describe(jaxnn.relu);", "jax, chex;")],
        capture_output=True,
        text=True,
        check=True,
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
