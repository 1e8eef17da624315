"""The house: imports only go down and never in a circle, functions and lines stay short.

What must be imported late says why.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glasscluster"
LONGEST_LINE, LONGEST_FUNCTION = 110, 90

# Imports inside functions: libraries that are slow to load, or absent on some machines, each when first used.
LATE = {
    "torch": "two seconds; `glass --help` and reading a stored run need none",
    "ray": "by its backend alone, when actors start",
    "plotly": "by a figure, when it is drawn",
    "numba": "compiles at import",
    "triton": "on NVIDIA GPUs alone",
    "rich": "for a terminal alone",
    "safetensors": "for weights in Hugging Face's layout alone",
    "transformers": "for tests alone",
    "networkx": "for topologies alone",
    "jinja2": "for a page alone",
}
# Our own modules loaded by name: the body of a command, of a scenario, of a figure, when it is asked for.
REGISTRIES = {
    "glasscluster.cli": "loads the commands when one is called; a person may end the program before",
    "glasscluster": "names of the public API, and where pictures are drawn",
    "glasscluster.base.display": "loads the module that draws what was asked for",
    "glasscluster.commands.bodies": "loads the body of a command",
    "glasscluster.scenarios.find_scenario": "loads a built-in scenario",
    "glasscluster.scenarios.lesson": "loads a lesson's program",
    "glasscluster.sim.ranks.collectives": "loads every algorithm of its folder",
    "glasscluster.strategies.folders": "loads a strategy's rows and communication hook from its folder",
    "glasscluster.strategies.pipeline.schedules": "loads every schedule of its folder",
}
# Modules of ours that are imported when first used, because of what they bring.
LATE_MODULES = {
    "glasscluster.model.kernels.flash.triton": "needs triton at import; on NVIDIA GPUs alone",
    "glasscluster.sim.ranks.backends.dry": "brings torch, which looking at a stored run needs not",
    "glasscluster.sim.ranks.backends.ray_actors": "brings torch",
    "glasscluster.sim.ranks.backends.threads": "brings torch",
    "glasscluster.sim.ranks.backends.torchrun": "brings torch",
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(node: ast.AST) -> list[str]:
    """What an import statement, or a string given to import_module, names."""
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        inside = [f"{node.module}.{a.name}" for a in node.names]
        return [name if name in modules() else node.module for name in inside]
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("glasscluster.")
    ):
        module = node.value.split(":")[0]
        return [module] if module in modules() else []
    return []


def imports(module: str) -> set[str]:
    """The package's modules that a module imports anywhere in it: types and functions included."""
    found = {name for node in ast.walk(tree(modules()[module])) for name in named(node)}
    return {name for name in found if name in modules() and name not in (module, "glasscluster")}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module."""
    import networkx as nx

    graph = nx.DiGraph([(a, b) for a, others in edges.items() for b in others])
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_at_run_time(module: str) -> set[str]:
    """Those that tie something at run time: what stands under TYPE_CHECKING does not."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if not for_types_only(child):
                found.update(named(child))
                visit(child)

    visit(tree(modules()[module]))
    return {name for name in found if name in modules() and name not in (module, "glasscluster")}


def test_no_circle_of_files_imports_inside_functions_and_by_name_included():
    edges = {m: imports_at_run_time(m) for m in modules() if m != "glasscluster"}
    assert circles(edges) == []


def test_a_planted_circle_is_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circles(edges) == [["a", "b", "c"]]


ROOMS = [  # from top to bottom; a room imports what stands below it, never what stands above
    ["glasscluster.cli", "glasscluster.__main__"],
    ["glasscluster.commands"],
    ["glasscluster.scenarios"],
    ["glasscluster.visualize", "glasscluster.strategies"],
    ["glasscluster.model", "glasscluster.sim.run"],
    ["glasscluster.sim.ranks", "glasscluster.sim.time"],
    ["glasscluster.sim.recording"],
    ["glasscluster.base"],
]
INSIDE = [  # the same inside folders
    [
        [
            "glasscluster.strategies.exchange",
            "glasscluster.strategies.preference",
            "glasscluster.strategies.serving",
        ],
        ["glasscluster.strategies.judge"],
        ["glasscluster.strategies.trainer"],
        ["glasscluster.strategies.plan"],
        [
            *(
                "glasscluster.strategies.data",
                "glasscluster.strategies.tensor",
                "glasscluster.strategies.context",
            ),
            *(
                "glasscluster.strategies.experts",
                "glasscluster.strategies.pipeline",
                "glasscluster.strategies.memory",
            ),
            "glasscluster.strategies.numerics",
        ],
        ["glasscluster.strategies.layout"],
    ],
    [
        ["glasscluster.model.decoding", "glasscluster.model.weights"],
        ["glasscluster.model.gpt"],
        ["glasscluster.model.layers"],
        ["glasscluster.model.parallel"],
        ["glasscluster.model.kernels"],
        ["glasscluster.model.config"],
    ],
    [
        ["glasscluster.scenarios.lessons"],
        ["glasscluster.scenarios.lesson"],
        ["glasscluster.scenarios.lab"],
        ["glasscluster.scenarios.jobs"],
    ],
    [["glasscluster.visualize.page"], ["glasscluster.visualize.figures"]],
]


def level(module: str, rooms: list[list[str]]) -> int | None:
    """The storey a module stands on; None for one that this list does not speak of."""
    for number, storey in enumerate(rooms):
        if any(module == room or module.startswith(room + ".") for room in storey):
            return number
    return None


@pytest.mark.parametrize(
    "rooms", [ROOMS, *INSIDE], ids=lambda rooms: rooms[0][0].removeprefix("glasscluster.")
)
def test_imports_only_go_down(rooms):
    up = []
    for module in modules():
        mine = level(module, rooms)
        for other in imports_at_run_time(module) if mine is not None else ():
            theirs = level(other, rooms)
            if theirs is not None and theirs < mine:
                up.append(f"{module} imports {other}")
    assert up == []


def inside_functions(module: str) -> list[tuple[int, str]]:
    """Line and name of every import inside a function."""
    found = {}
    for function in ast.walk(tree(modules()[module])):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    found.update({(node.lineno, name): None for name in named(node)})
    return list(found)


def test_imports_inside_functions_are_of_slow_libraries_alone():
    wrong = [
        f"{module}:{line} imports {name}"
        for module in modules()
        for line, name in inside_functions(module)
        if name.split(".")[0] not in LATE and name not in LATE_MODULES
    ]
    assert wrong == []


def test_modules_loaded_by_name_are_loaded_by_the_registries_alone():
    calls = []
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
                calls.append(module)
    assert set(calls) <= set(REGISTRIES)


def test_help_and_the_package_itself_need_no_torch():
    for statement in ("import glasscluster", "import glasscluster.cli, glasscluster.commands.answer"):
        code = f"{statement}, sys; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, statement


def test_functions_have_at_most_ninety_lines():
    long = []
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert long == []


def test_lines_fit_in_110_columns():
    long = []
    for folder in ("glasscluster", "tests", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if len(line) > LONGEST_LINE:
                    long.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert len(long) <= 50, "\n".join(long[:20])


def test_every_import_order_list_is_of_rooms_that_exist():
    for rooms in (ROOMS, *INSIDE):
        for upper, lower in pairwise(rooms):
            assert not set(upper) & set(lower)
        for room in (r for storey in rooms for r in storey):
            assert room in modules(), f"{room} is no room of this house"
