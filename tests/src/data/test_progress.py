"""Quiet where there is no terminal."""

from __future__ import annotations

import pytest

from src.data.progress import Progress


@pytest.mark.parametrize("total", [None, 10])
def test_one_line_without_a_terminal(capsys: pytest.CaptureFixture[str], total: int | None) -> None:
    with Progress("toy", total) as progress:
        progress.update(4)
        progress.update(6)
    captured = capsys.readouterr()
    assert captured.err == "tokenizing corpus toy\n"
    assert captured.out == ""


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("toy", 10) as progress:
        progress.update(10)
    assert "100%" in capsys.readouterr().err
