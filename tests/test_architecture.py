"""The shape of the house: what may import what, who may speak for all ranks, and how large anything grows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "distloop").rglob("*.py"))
# From the ground up. A module may import from its own layer and from those below it, never from above.
LAYERS = [
    "errors partition cost units",
    "imports",
    "comm",
    "flat landing optimizers ownership placement replicas timeline courier parts under_way direct local_steps",
    "strategies",
    "learner",
    "loop",
    "data",
    "tasks models schedules evaluation",
    "run_folder",
    "report parsing config",
    "build",
    "job",
    "prediction plain_torch verb",
    "api comparing",
    "train predict plan compare",
]
LAYER_OF = {name: height for height, names in enumerate(LAYERS) for name in names.split()}
every_module = pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def part_of(path: Path) -> str:
    """The module or package directly under distloop/ that a file belongs to."""
    return path.relative_to(ROOT / "distloop").parts[0].removesuffix(".py")


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs: what is imported for type checking only is left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from nodes(child)


def imports(path: Path) -> Iterator[str]:
    """Full names, such as ``distloop.comm.World``."""
    for node in nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def identifiers(path: Path) -> set[str]:
    tree = list(ast.walk(tree_of(path)))
    names = {node.id for node in tree if isinstance(node, ast.Name)}
    return names | {node.attr for node in tree if isinstance(node, ast.Attribute)}


def test_every_module_has_a_layer():
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(LAYER_OF)


@every_module
def test_imports_point_down_only(path):
    if part_of(path) == "__init__":
        return
    own = LAYER_OF[part_of(path)]
    inside = [name.split(".")[1] for name in imports(path) if name.startswith("distloop.")]
    assert [name for name in inside if LAYER_OF.get(name, 0) > own] == []


def test_there_is_no_cycle_between_modules():
    """Layers hold modules side by side; these may know each other, though not in a circle."""
    names = {name for names in LAYERS for name in names.split()}
    knows: dict[str, set[str]] = {name: set() for name in names}
    for path in MODULES:
        if part_of(path) != "__init__":
            inside = {name.split(".")[1] for name in imports(path) if name.startswith("distloop.")}
            knows[part_of(path)] |= inside & names - {part_of(path)}
    while knows:
        ground = [name for name, known in knows.items() if not known & set(knows)]
        assert ground, f"a circle among {sorted(knows)}"
        knows = {name: known for name, known in knows.items() if name not in ground}


@every_module
def test_only_comm_names_the_world(path):
    if "COMM_WORLD" in identifiers(path):
        assert part_of(path) == "comm"


@every_module
def test_only_comm_and_reports_ask_for_rank_0(path):
    asked = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Compare) and _rank_against_0(node)]
    if part_of(path) not in ("comm", "report"):
        assert [f"{path.name}:{node.lineno}: {ast.unparse(node)}" for node in asked] == []


def _rank_against_0(node: ast.Compare) -> bool:
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
    return "0" in sides and any(side.split(".")[-1] in ("rank", "Get_rank()") for side in sides)


@every_module
def test_data_tasks_and_models_know_nothing_of_mpi(path):
    if part_of(path) in ("data", "tasks", "models", "errors", "partition"):
        assert [name for name in imports(path) if name.startswith(("mpi4py", "distloop.comm"))] == []


@every_module
def test_comm_knows_nothing_of_models(path):
    if part_of(path) == "comm":
        assert [name for name in imports(path) if name.startswith("torch.") and name != "torch.Tensor"] == []


@every_module
def test_nothing_that_is_read_is_run(path):
    assert [name for name in imports(path) if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal")] == []
    called = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    assert called & {"eval", "exec", "torch.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load"} == set()
    unpickling = {"recv", "bcast", "scatter", "allgather", "alltoall", "irecv", "sendrecv", "allreduce"}
    assert identifiers(path) & unpickling == set(), "mpi4py's lower-case methods unpickle"


@every_module
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(tree_of(path))


@every_module
def test_nothing_grows_too_large(path):
    assert len(path.read_text().splitlines()) <= 400
    functions = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f"{path.name}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}
    assert {where: length for where, length in lengths.items() if length > 60} == {}


def test_the_loop_stays_short():
    assert len((ROOT / "distloop" / "loop.py").read_text().splitlines()) < 100
