"""How commands fail."""

from __future__ import annotations

import pytest
import yaml

from src import command
from src.settings.config import RunConfig


def test_a_file_of_settings_that_is_not_yaml_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["src.train"])
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: yaml.safe_load("tags: ["), RunConfig)
    assert ended.value.code == command.USAGE_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: a file of conf/ or sweeps/ that this command chooses is not YAML"
    )
    assert line.endswith("; mend the file")
