"""Files of parts: what is found, and how a file that holds none is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from src import api, command, discovery
from src.evals.suite import Suite
from src.models.rope.base import Scaling
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

IMPORTS = """\
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from src.models.rope.base import Scaling
"""
WHOLE = """\
@dataclass(frozen=True)
class Mine(Scaling):
    type: Literal["{type}"]
    def inverse_frequencies(self, native, length=None): ...
    def rope_parameters(self, native): ...
SCALING = Mine
"""
METHODS = ("inverse_frequencies", "rope_parameters")
Find = Callable[..., list[str]]


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """Writes files into a package, and gives the names of the parts that are found in it."""
    faults: list[str] = []
    monkeypatch.setattr(discovery, "faults", faults)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "own_parts"
    folder.mkdir()
    (folder / "__init__.py").touch()

    def found(**files: str) -> list[str]:
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)

        def problem(part: object) -> str | None:
            return discovery.class_problem(part, Scaling, METHODS, named_by_type=True)

        key = discovery.type_of
        return list(
            discovery.parts("own_parts", [str(folder)], "SCALING", problem, key=key, besides="b")
        )

    yield found
    for name in [name for name in sys.modules if name.startswith("own_parts")]:
        del sys.modules[name]


def test_parts_are_found_in_the_order_of_their_files(find: Find) -> None:
    files = {name: IMPORTS + WHOLE.format(type=f"of_{name}") for name in ("c", "a")}
    assert find(**files, b="no part") == ["of_a", "of_c"]
    assert discovery.faults == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "it defines no SCALING", id="no_name"),
        pytest.param("SCALING = 3", "3 is given; a class that derives from Scaling", id="type"),
        pytest.param("\nx = (", "it cannot be imported: SyntaxError in line 2: ", id="syntax"),
        pytest.param("\n\n1 / 0", "ZeroDivisionError in line 3: division by zero", id="raises"),
        pytest.param("import not_there", "No module named 'not_there'", id="import"),
        pytest.param(
            IMPORTS + WHOLE.format(type="x").replace("@dataclass(frozen=True)", ""),
            "class Mine is no @dataclass(frozen=True)",
            id="decorator",
        ),
        pytest.param(
            IMPORTS + WHOLE.format(type="x").replace("def rope_", "def rape_"),
            "class Mine does not define rope_parameters",
            id="method",
        ),
        pytest.param(
            IMPORTS + WHOLE.format(type="x").replace('type: Literal["x"]', ""),
            'the first field of class Mine is not type: Literal["NAME"]',
            id="no_type",
        ),
        pytest.param(
            IMPORTS + WHOLE.format(type="x").replace('"]', '"]\n    other: Unknown = 3'),
            "class Mine has a field of an unknown type: name 'Unknown' is not defined",
            id="field",
        ),
        pytest.param(
            IMPORTS + WHOLE.format(type="of_a"),
            "SCALING is called 'of_a', as that of another file is",
            id="twice",
        ),
    ],
)
def test_a_file_without_a_part_is_one_fault_and_the_others_stay(
    find: Find, text: str, message: str
) -> None:
    assert find(a=IMPORTS + WHOLE.format(type="of_a"), mine=text) == ["of_a"]
    (fault,) = discovery.faults
    assert fault.startswith("own_parts/mine.py: ")
    assert message in fault
    assert fault.endswith("; mend the file (CONTRIBUTING.md says what it holds) or move it away")
    assert "\n" not in fault


def test_a_part_need_not_derive_from_a_protocol() -> None:
    @dataclass(frozen=True)
    class Mine:
        name = "mine"

    assert discovery.class_problem(Mine, Suite, ("name",)) is None
    assert discovery.class_problem(Mine, Suite, ("name", "run", "tables")) == (
        "class Mine does not define run, tables"
    )


def test_commands_and_functions_refuse_a_fault_before_anything_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "faults", ["src/objectives/mine.py: wrong", "other.py: too"])
    monkeypatch.setattr("sys.argv", ["src.train", "no_such_key=3"])
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: pytest.fail("it was started"), RunConfig)
    assert ended.value.code == command.USAGE_ERROR
    assert capsys.readouterr().err == "error: src/objectives/mine.py: wrong\nother.py: too\n"
    with pytest.raises(ConfigError, match="wrong"):
        api.compose("model=tiny")


@pytest.mark.integration
def test_every_kind_is_refused_by_a_command(tmp_path: Path) -> None:
    root = Path(discovery.__file__).parents[1]
    (tmp_path / "src").mkdir()
    kinds = {
        "objectives": "OBJECTIVE",
        "models/rope": "SCALING",
        "models/families": "FAMILY",
        "evals/suites": "SUITE",
    }
    for path in (root / "src").rglob("*"):
        copy = tmp_path / path.relative_to(root)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif path.suffix in (".py", ".yaml"):
            copy.write_bytes(path.read_bytes())
    for name in ("conf", "sweeps", "kernels"):
        (tmp_path / name).symlink_to(root / name)
    for folder, name in kinds.items():
        (tmp_path / "src" / folder / "zz_mine.py").write_text(f"{name} = 'mine'\n")
    line = [sys.executable, "-m", "src.train", "model=tiny", "dry_run=true"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == command.USAGE_ERROR
    refused = [text.removeprefix("error: ") for text in done.stderr.splitlines()]
    assert sorted(text.partition(": 'mine' is given; ")[0] for text in refused) == sorted(
        f"src/{folder}/zz_mine.py" for folder in kinds
    )
