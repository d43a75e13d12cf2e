"""The doctor: each check on machines that have and lack what it looks for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from src import doctor
from src.planning.devices import DeviceFacts


def test_every_check_answers_here_and_says_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    shown = capsys.readouterr().out
    findings = doctor.examine()
    assert ended.value.code == any(f.state == "missing" for f in findings.values())
    assert list(findings) == list(doctor.CHECKS)
    for name, finding in findings.items():
        assert finding.text
        assert (finding.state == "works") == (not finding.remedy), name
        assert name in shown


def test_what_it_does_not_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main(["model=tiny"])
    assert "unrecognized arguments: model=tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("present", "state"), [(True, "works"), (False, "limited")], ids=["there", "absent"]
)
def test_tools_on_the_path(present: bool, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/bin/{tool}" if present else None)
    assert doctor.compilers().state == state
    assert doctor.browsers().state == state


def test_missing_packages_end_the_checks_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(doctor.CHECKS, "hub", lambda: pytest.fail("asked without packages"))
    findings = doctor.examine()
    assert findings["packages"].state == "missing"
    assert findings["packages"].remedy == "make setup"
    assert "GPU" not in findings


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = DeviceFacts("NVIDIA H100 80GB HBM3", 80 * 2**30)
    monkeypatch.setattr(doctor, "gpus", lambda: (facts,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (doctor.gpu().state, doctor.gpu().remedy) == ("limited", "update NVIDIA's driver")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor.gpu().state == "works"
    assert "H100" in doctor.gpu().text


def test_full_disks_and_folders_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LEAST_DISK", 2**60)
    assert doctor.disk().state == "missing"
    assert doctor.caches().state == "limited"
    (tmp_path / "file").touch()
    monkeypatch.setenv("LINEARARD_CACHE", str(tmp_path / "file" / "cache"))
    assert doctor.caches().state == "missing"
    assert "LINEARARD_CACHE=DIR" in doctor.caches().remedy


def test_logins_are_found_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor.wandb().state == "limited"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert doctor.wandb().state == "works"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai s3cret\n")
    assert doctor.wandb().state == "limited"
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    assert doctor.wandb().state == "works"
    assert "s3cret" not in str(doctor.wandb())


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> socket.socket:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert doctor.hub().state == "limited"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.create_connection", refused)
    assert "no route" in doctor.hub().text
    monkeypatch.setattr("socket.create_connection", lambda *_: socket.socket())
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert doctor.hub().remedy == "hf auth login"
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "s3cret")
    assert doctor.hub().state == "works"
