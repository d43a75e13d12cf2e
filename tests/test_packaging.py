"""What pip installs: the loss by itself, and commands that find their checkout."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
# The README's "loss by itself", on random tensors.
ALONE = """
import torch
from relation_kl import relation_kl
student = torch.randn(1, 2, 8, 4, requires_grad=True)
loss = relation_kl(student, torch.randn(1, 2, 8, 4))
loss.backward()
print(float(loss.detach()) > 0, bool(student.grad.any()))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for the path with the packages under the names that pip gives them."""
    for name, folder in FOLDERS.items():
        (tmp_path / name).symlink_to(ROOT / folder, target_is_directory=True)
    return tmp_path


def test_the_loss_needs_torch_only() -> None:
    assert [d.partition(">")[0] for d in PROJECT["project"]["dependencies"]] == ["torch"]
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(FOLDERS)
    data = PROJECT["tool"]["setuptools"]["package-data"]["relation_kl"]
    assert all((ROOT / FOLDERS["relation_kl"] / name).is_file() for name in data)


def test_the_installed_loss_works_beside_the_checkouts(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.relation_kl import relation_kl as ours

    monkeypatch.syspath_prepend(installed)
    package = importlib.import_module("relation_kl")
    # Both fused backends are registered with torch in this process.
    importlib.import_module("relation_kl.triton")
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 2, 16, 16)
    assert package.relation_kl is not ours
    for backend in ("chunked", "reference"):
        torch.testing.assert_close(
            package.relation_kl(student, teacher, backend=backend),
            ours(student, teacher, backend=backend),
        )


def run(code: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


def test_a_console_script_finds_its_checkout_from_another_folder(
    installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = "import sys; sys.argv = ['linearard-train', '+experiment=quickstart', 'dry_run=true']"
    done = run(f"{script}; import linearard_lab; linearard_lab.train()", installed, elsewhere)
    assert done.returncode == 0, done.stderr
    assert "quickstart: linearard on smollm2_135m" in done.stdout
    assert not list(elsewhere.iterdir())


def test_every_console_script_runs_a_module() -> None:
    for script, target in PROJECT["project"]["scripts"].items():
        package, _, function = target.partition(":")
        assert f"def {function}() -> None:" in (ROOT / FOLDERS[package] / "__init__.py").read_text()
        assert (ROOT / "src" / f"{function}.py").is_file(), script


@pytest.mark.thorough
def test_pip_installs_the_loss_and_a_remedy_for_the_commands(tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(ROOT)], check=True, cwd=tmp_path)
    done = run(ALONE, target, tmp_path)
    assert done.stdout.split() == ["True", "True"], done.stderr
    refused = run("import linearard_lab; linearard_lab.train()", target, tmp_path)
    assert refused.returncode == 1
    assert "pip install -e '.[framework]'" in refused.stderr


def pins(text: str) -> dict[str, str]:
    """Versions by normalized name."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_has_the_pinned_versions_each_with_hashes() -> None:
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    exact = pins(locked)
    for block in re.split(r"\n(?=\S)", locked):
        assert block.startswith("#") or "--hash=sha256:" in block, block
    constrained = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    both = exact.keys() & constrained.keys()
    assert {name: exact[name] for name in both} == {name: constrained[name] for name in both}
    # The page's packages are installed by themselves; torch brings CUDA's where there is a GPU.
    wanted = PROJECT["project"]["optional-dependencies"]
    for requirement in (*PROJECT["project"]["dependencies"], *wanted["framework"], *wanted["dev"]):
        name = re.split(r"[\[<>=; ]", requirement)[0].lower()
        assert name in exact or name == "linearard-lab", f"{name}: run make lock"


@pytest.mark.thorough
def test_pip_refuses_another_file_than_the_lock_has(tmp_path: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^filelock==.*?(?=^\S)", lock, re.M | re.S)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    pip += ["--target", str(tmp_path / "site"), "--requirement", str(tmp_path / "lock.txt")]
    (tmp_path / "lock.txt").write_text(entry)
    subprocess.run(pip, check=True)
    (tmp_path / "lock.txt").write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", entry))
    done = subprocess.run([*pip, "--upgrade"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "HASH" in done.stderr.upper()
