"""Imports run one way, and optional or dangerous parts stay where they belong.

Everything is read from the syntax trees, so that imports inside functions count as well.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPERATOR = "kernels.relation_kl"
ENTRIES = {
    "src.train",
    "src.evaluate",
    "src.dashboard",
    "src.sweep",
    "src.doctor",
    "src.console",
    "src.training.rank",
    "src.evals.rank",
}
CONFIG_BOUNDARY = {
    "src.settings.loading",
    "src.command",
    "src.train",
    "src.evaluate",
    "src.dashboard",
    "src.multirun.composition",
}


@dataclass(frozen=True)
class Module:
    """A source file by its import name."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def imports(self) -> frozenset[str]:
        """Absolute names imported anywhere in the file; `from a import b` gives `a.b`."""
        return frozenset(self._imports())

    def _imports(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                # The operator is also installed alone, under another name.
                relative = self.name.startswith(OPERATOR)
                where = f"{self.path}: import of level {node.level}, line {node.lineno}"
                assert node.level == (1 if relative and self._is_own(node) else 0), where
                module = (
                    ".".join(filter(None, [OPERATOR, node.module])) if node.level else node.module
                )
                yield from (f"{module}.{alias.name}" for alias in node.names)

    def _is_own(self, node: ast.ImportFrom) -> bool:
        return node.level > 0 or (node.module or "").startswith(OPERATOR)

    @property
    def roots(self) -> set[str]:
        """Top-level packages that are imported."""
        return {name.partition(".")[0] for name in self.imports}


def modules_of(package: str) -> dict[str, Module]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path)
    return found


SRC = modules_of("src")
KERNELS = modules_of("kernels")
ALL = SRC | KERNELS


def own_imports(module: Module) -> set[str]:
    """Modules of this repository that a module imports itself."""
    found = set()
    for name in module.imports:
        # A name that is no module is something defined in the module before it.
        owner = name if name in ALL else name.rpartition(".")[0]
        if owner in ALL and owner != "src":
            found.add(owner)
    return found


def reached(start: str) -> set[str]:
    """Modules of this repository that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in own_imports(ALL[waiting.pop()]) - found:
            found.add(name)
            waiting.append(name)
    return found


def importers(*roots: str) -> set[str]:
    return {name for name, module in SRC.items() if module.roots & set(roots)}


def inside(package: str) -> list[str]:
    return [name for name in ALL if name == package or name.startswith(f"{package}.")]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_import_only_torch_triton_and_themselves(name: str) -> None:
    allowed = {"torch", "triton", "kernels"} | sys.stdlib_module_names
    assert KERNELS[name].roots <= allowed


def test_deepspeed_is_imported_by_the_engine_alone() -> None:
    assert importers("deepspeed")
    assert importers("deepspeed") <= set(inside("src.training.engine"))


def test_wandb_is_imported_by_tracking_alone() -> None:
    assert importers("wandb", "wandb_workspaces") == {"src.tracking"}


def test_hydra_stays_at_the_boundary() -> None:
    assert importers("hydra", "omegaconf") <= CONFIG_BOUNDARY
    assert "src.settings.loading" in importers("omegaconf")


@pytest.mark.parametrize("name", inside("src.objectives"))
def test_objectives_see_tensors_and_facts_only(name: str) -> None:
    foreign = {"hydra", "omegaconf", "deepspeed", "wandb", "transformers", "peft"}
    for module in {name} | reached(name):
        assert not ALL[module].roots & foreign, f"{name} -> {module}"
    own = {n for n in reached(name) if n.startswith("src.")}
    assert own <= {"src.discovery", "src.models.facts", *inside("src.objectives")}


@pytest.mark.parametrize("name", SRC)
def test_entries_are_imported_by_nobody(name: str) -> None:
    assert not own_imports(SRC[name]) & ENTRIES


LEAVES = [
    "settings",
    "models",
    "data",
    "passes.capture",
    "passes.layer_pass",
    "tracking",
    "training.schedule",
    "progress",
]


@pytest.mark.parametrize("leaf", LEAVES)
def test_what_the_loop_stands_on_does_not_reach_up_to_it(leaf: str) -> None:
    above = {
        "src.training.loop",
        *inside("src.training.engine"),
        "src.training.run",
        "src.training.stage",
        "src.training.launch",
        "src.training.checkpoint",
    }
    for name in inside(f"src.{leaf}"):
        assert not reached(name) & above


def test_the_loop_knows_no_method() -> None:
    loop = SRC["src.training.loop"]
    assert own_imports(loop) & set(inside("src.objectives")) == {"src.objectives.base"}
    methods = {path.stem for path in (ROOT / "src" / "objectives").glob("[!_]*.py")}
    methods -= {"base", "chunks", "weighted_sum"}
    assert {"relation", "language_modeling"} <= methods
    text = loop.path.read_text(encoding="utf-8").lower()
    assert not [name for name in (*methods, "linearard", "longred") if name in text]


@pytest.mark.parametrize("package", ["src", "kernels"])
def test_imports_have_no_cycles(package: str) -> None:
    graph = {name: own_imports(ALL[name]) for name in inside(package)}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(graph) <= set(order)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_unpickled_and_no_remote_code_is_run(name: str) -> None:
    module = ALL[name]
    assert not module.roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert "torch.load" not in module.imports
    for node in ast.walk(module.tree):
        assert dotted(node) != "torch.load", f"{module.path}:{node.lineno}"  # type: ignore[attr-defined]
        if isinstance(node, ast.keyword):
            where = f"{module.path}:{node.value.lineno}"
            if node.arg in ("allow_pickle", "trust_remote_code"):
                assert ast.literal_eval(node.value) is False, where
        if isinstance(node, ast.Call) and any(map(loads_by_name, [node.func, *node.args])):
            # Without it transformers would ask on the terminal.
            given = {keyword.arg for keyword in node.keywords}
            assert "trust_remote_code" in given, f"{module.path}:{node.lineno}"


def loads_by_name(node: ast.AST) -> bool:
    """Whether an expression is a loader of transformers that may find code in a folder."""
    called = dotted(node)
    return called.startswith("Auto") and called.endswith((".from_pretrained", ".from_config"))


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DRAWING = PAGE.partition("```mermaid\n")[2].partition("```")[0]
# A room is written as `id["modules<br/>job"]`, the modules below `src` separated by " · "; one that
# all may import as `id(["modules<br/>job"])`.
ROOMS = {
    room: [part if part == "kernels" else f"src.{part}" for part in label.split(" · ")]
    for room, label in re.findall(r'^ *(\w+)\(?\["(.+?)<br/>.*"\]\)?$', DRAWING, re.MULTILINE)
}
ROUNDED = set(re.findall(r"^ *(\w+)\(\[", DRAWING, re.MULTILINE))
ARROWS = {
    (left, right)
    for left, rights in re.findall(r"^ *(\w+) --> (.+)$", DRAWING, re.MULTILINE)
    for right in rights.split(" & ")
}


def room_of(name: str) -> str:
    """The room of a module: the one that names it or, most closely, a package around it."""
    owners = [
        (len(part), room)
        for room, parts in ROOMS.items()
        for part in parts
        if name == part or name.startswith(f"{part}.")
    ]
    assert owners, f"{name} is in no room of the drawing in docs/architecture.md"
    return max(owners)[1]


def room_imports() -> dict[tuple[str, str], str]:
    """Pairs of rooms of which the first imports the second, each with one import as an example."""
    return {
        (room_of(name), room_of(other)): f"{name} imports {other}"
        for name in sorted(ALL.keys() - {"src"})
        for other in own_imports(ALL[name])
        if room_of(name) != room_of(other)
    }


def test_every_arrow_of_the_drawing_is_an_import() -> None:
    imported = room_imports().keys()
    assert len(ARROWS) > 10
    assert not [arrow for arrow in ARROWS if arrow not in imported]


def test_every_import_between_rooms_follows_the_arrows_of_the_drawing() -> None:
    arrows = {room: {right for left, right in ARROWS if left == room} for room in ROOMS}
    below: dict[str, set[str]] = {}
    for room in TopologicalSorter(arrows).static_order():
        below[room] = arrows[room].union(*(below[right] for right in arrows[room]))
    assert not [
        example
        for (left, right), example in room_imports().items()
        if left in ROUNDED or right not in below[left] | ROUNDED
    ]


def test_the_drawing_names_modules_that_exist() -> None:
    assert {part for parts in ROOMS.values() for part in parts} <= ALL.keys()


def test_the_page_of_the_drawing_stays_short() -> None:
    assert len(PAGE.splitlines()) <= 250


FILES = dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("room", FILES)
def test_the_table_of_rooms_names_their_files(room: str) -> None:
    below = (ROOT / "src" / room).iterdir()
    files = {p.stem if p.suffix else f"{p.name}/" for p in below if not p.name.startswith("__")}
    assert set(re.findall(r"`([a-z0-9_]+/?)`", FILES[room])) == files - {"assets/", "templates/"}
