"""`kernels` beside Hugging Face's distribution of the same name, which transformers looks for.

Each test runs a fresh interpreter from the repository's root. The distribution is a stand-in: its
metadata carries a version that the installed transformers accepts, and its package the names that
transformers imports.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE_TRANSFORMERS = """
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.import_utils import is_kernels_available
import torch

config = LlamaConfig(
    vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
)
model = AutoModelForCausalLM.from_config(config)
assert isinstance(model, LlamaForCausalLM)
assert model(torch.arange(4)[None]).logits.shape == (1, 4, 16)
"""


def run(code: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def run_well(code: str, *, path: Path | None = None) -> str:
    finished = run(code, path=path)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="session")
def transformers_folder() -> Path:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def accepted_version(transformers_folder: Path) -> str:
    source = (transformers_folder / "utils/import_utils.py").read_text()
    found = re.search(r'^KERNELS_MIN_VERSION = "(.+)"', source, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture(scope="session")
def names_transformers_imports(transformers_folder: Path) -> list[str]:
    tree = ast.parse((transformers_folder / "integrations/hub_kernels.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return sorted({a.name for node in imports if node.module == "kernels" for a in node.names})


@pytest.fixture
def stand_in(tmp_path: Path, accepted_version: str, names_transformers_imports: list[str]) -> Path:
    """A folder for the path, holding an installed `kernels` distribution."""
    metadata = tmp_path / f"kernels-{accepted_version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {accepted_version}\n"
    )
    layer = tmp_path / "kernels" / "layer"
    layer.mkdir(parents=True)
    definitions = [
        f"class {name}: pass" if name[0].isupper() else f"def {name}(*_): return lambda x: x"
        for name in names_transformers_imports
    ]
    (layer / "device.py").write_text("\n".join(definitions))
    (layer / "__init__.py").write_text("from .device import *\nfrom ..tools import GREETING\n")
    (tmp_path / "kernels" / "tools.py").write_text(
        "GREETING = 'hello'\ndef version():\n    from kernels import __version__ as v; return v\n"
    )
    (tmp_path / "kernels" / "cycle.py").write_text("from kernels import EARLY\n")
    (tmp_path / "kernels" / "bench.py").write_text("THEIRS = True\n")
    (tmp_path / "kernels" / "__init__.py").write_text(
        '"""Theirs."""\nimport importlib.metadata\n'
        '__version__ = importlib.metadata.version("kernels")\n'
        'EARLY = "early"\nfrom kernels.cycle import EARLY\n'
        "from kernels.layer import *\nfrom .layer import GREETING\n"
        "print('their init')\n"
    )
    return tmp_path


def test_import_brings_in_nothing_heavy() -> None:
    heavy = "{'torch', 'triton', 'transformers', 'numpy'}"
    run_well(f"import kernels, sys; assert not {heavy} & set(sys.modules)")


def test_transformers_works_without_the_distribution() -> None:
    """In this process, whose path has `kernels` in it, as every test does."""
    from transformers.utils.import_utils import is_kernels_available

    try:
        importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        assert "kernels" in sys.modules
        exec(USE_TRANSFORMERS, {})
        assert not is_kernels_available()
    else:
        pytest.skip("Hugging Face's kernels is installed here")


def test_transformers_works_with_the_distribution(stand_in: Path) -> None:
    checks = "assert is_kernels_available()\nfrom kernels.relation_kl import relation_kl"
    run_well(USE_TRANSFORMERS + checks, path=stand_in)


def test_distribution_keeps_its_names_and_submodules(stand_in: Path, accepted_version: str) -> None:
    code = (
        "import kernels\n"
        f"from kernels import get_kernel, layer, __version__; assert __version__ == "
        f"'{accepted_version}'\n"
        "from kernels.layer.device import Mode\n"
        "assert kernels.Mode is Mode and layer.GREETING == kernels.GREETING == 'hello'\n"
    )
    assert run_well(code, path=stand_in).count("their init") == 1


def test_submodule_may_be_imported_first(stand_in: Path, accepted_version: str) -> None:
    code = (
        "from kernels.layer import Mode\n"
        "from kernels.tools import version\n"
        f"assert version() == '{accepted_version}'\n"
        "import kernels; assert kernels.Mode is Mode\n"
    )
    run_well(code, path=stand_in)


def test_own_modules_win_and_leave_the_distribution_alone(stand_in: Path) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "from kernels import bench, relation_kl, tune\n"
        "import kernels.relation_kl, inspect\n"
        "inspect.unwrap(kernels); hasattr(kernels, '__wrapped__')\n"
        "folder = find_spec('kernels').submodule_search_locations[0]\n"
        "assert all(x.__file__.startswith(folder) for x in (bench, relation_kl, tune))\n"
    )
    assert "their init" not in run_well(code, path=stand_in)


def test_a_name_that_neither_has_is_an_attribute_error(stand_in: Path) -> None:
    for path in (None, stand_in):
        finished = run("import kernels; kernels.no_such_name", path=path)
        assert "AttributeError" in finished.stderr
        assert "no_such_name" in finished.stderr


def test_their_failing_init_raises_each_time(stand_in: Path) -> None:
    (stand_in / "kernels" / "__init__.py").write_text("import a_missing_dependency\n")
    code = (
        "for _ in range(2):\n"
        "    try:\n"
        "        from kernels import get_kernel\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error.name)\n"
    )
    assert run_well(code, path=stand_in).split() == ["a_missing_dependency"] * 2


def test_metadata_without_files_is_explained(stand_in: Path) -> None:
    (stand_in / "kernels" / "__init__.py").unlink()
    finished = run("from kernels import get_kernel", path=stand_in)
    assert "ImportError" in finished.stderr
    assert "install it as an ordinary wheel, or uninstall it" in finished.stderr
