"""A study of a user's own model: its grid follows from the settings, and its report answers."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.study import __main__ as study
from benchmarks.study import own, phases
from benchmarks.study.grid import Grid
from benchmarks.study.running import Pool, Results
from src.settings.strict import ConfigError
from tests.benchmarks.study.test_running import Play

SMOL = ["model=smollm2_135m", "data=books"]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, compose_plain: Any) -> Play:
    monkeypatch.setattr("time.sleep", lambda _: None)
    return Play(compose_plain("+experiment=quickstart", "model=tiny"))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The template with few tokens, one method, and budgets as numbers."""
    plain = yaml.safe_load(own.TEMPLATE.read_text(encoding="utf-8"))
    plain |= {"search_budget": "16384", "budget": "16384", "proposed": 0, "seeds": [0, 1]}
    plain["methods"] = {"cpt_long": plain["methods"]["cpt_long"]}
    plain["headline"] = ["cpt_long"]
    file = tmp_path / "template.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return file


def test_rates_and_lengths_are_the_models() -> None:
    grid = own.own([*SMOL, "engine.compile=true"])
    [(name, model)] = grid.models.items()
    assert (name, model.native_window) == ("smollm2_135m", 8192)
    assert model.label == "smollm2_135m, 8,192 to 32,768 tokens"
    assert list(model.settings) == SMOL
    assert grid.settings[-1] == "engine.compile=true"
    assert "eval.ruler.lengths=[4096,16384]" in model.validation
    assert "eval.ruler.samples=[160,40]" in model.validation
    assert "eval.ruler.lengths=[4096,16384,32768]" in model.test
    ard, cpt = "recipe.stages.ard.lr", "recipe.stages.cpt.lr"
    linearard, repeat = grid.methods["linearard"], grid.methods["restore_repeat"]
    assert linearard.points == ({ard: 1e-3, cpt: 1e-4}, {ard: 5e-3, cpt: 3e-4})
    assert linearard.range == {ard: (1e-4, 3e-2), cpt: (1e-5, 3e-3)}
    share = "+recipe.stages.cpt.streams.long.repeats.share"
    assert repeat.points == ({cpt: 1e-4, share: 0.5}, {cpt: 3e-4, share: 0.25})
    assert repeat.range[share] == (0.1, 0.8)
    larger = own.own(["model=qwen2_5_coder_0_5b", "data=code"])
    assert larger.methods["cpt_long"].points[0] == {cpt: 3e-6}
    [about] = larger.models.values()
    assert "eval.ruler.lengths=[8192,65536,131072]" in about.test


def test_every_run_composes(compose_plain: Any) -> None:
    grid = own.own(SMOL, [4096, 32768])
    [model] = grid.models.values()
    assert "eval.ruler.samples=[100,40]" in model.test
    pool = Pool(grid, Results(Path("nowhere"), None), Path("nowhere"))
    jobs = list(phases.ready(grid, []))
    assert [job.scaling for job in jobs] == ["linear", "yarn", "ntk"]
    for job in jobs:
        command = pool.command(job)
        assert command is not None
        compose_plain(*command[2:], name="evaluate")
    assert own.cost(grid).startswith(
        "18 searches of 1M tokens, of which the best of 6 go on with 3 seeds"
    )


@pytest.mark.parametrize(
    ("settings", "lengths", "message"),
    [
        (["rope=yarn"], None, "--own rope=yarn: the study sets rope itself"),
        (["budget=4M"], None, "the study sets budget itself"),
        (["+experiment=linearard_32k"], None, "sets experiment itself"),
        (["eval.short.limit=10"], None, "sets eval.short.limit itself"),
        (["model.path=/nowhere"], None, "model.path=/nowhere has no config.json"),
        (["rope.target_length=4096"], None, "below the model's native window"),
        ([], [65536], "--lengths: 65536 is beyond the target of 32768 tokens"),
        ([], [16384, 32768], "--lengths: all are beyond the native window of 8192 tokens"),
        (["student.weights=DIR"], None, "scored on the model's own weights"),
        (["model.path=tést"], None, "quote the value, 'model.path=\"tést\"'"),
    ],
)
def test_what_is_no_setting_of_a_study_is_refused(
    settings: list[str], lengths: list[int] | None, message: str
) -> None:
    model = [] if any(s.startswith("model") for s in settings) else ["model=smollm2_135m"]
    with pytest.raises(ConfigError, match=message):
        own.own([*model, *settings], lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--own", "model=tiny", "--quick"], "leave out --quick"),
        (["--own", "model=tiny", "dta=files"], "dta: unknown key 'dta'; did you mean 'data'?"),
        (["--own", "model=tiny", "seed=1"], "the study sets seed itself"),
        (["--own", "model=tiny", "--lengths", "8k"], "8k: give numbers of tokens"),
        (["--own", "model=tiny", "--methods", "none"], "--methods=none: give some of cpt_long"),
        (["--own", "model=tiny", "--methods", ""], "--methods=: give some of cpt_long"),
        (["--own", "model=tiny", "--jobs", "0"], "0: give a number of at least 1"),
        (["--quick", "--models", "none"], "--models=none: give some of tiny"),
        (["--quick", "--grid", "/nowhere"], "--grid /nowhere cannot be read"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        study.main([*arguments, "--plan"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "cannot be read: while parsing"),
        ("[1]", "holds no settings"),
        ({"samples": None}, "samples: it is missing"),
        (
            {"samples": {"validation": [0], "test": [1]}},
            "samples.validation.0: input should be greater",
        ),
        ({"samples": {"validation": [1]}}, "samples: test is missing"),
        ({"validation": "eval.short.limit=1"}, "validation: input should be"),
        ({"models": {}}, "models: the settings of --own give it"),
        ({"methods": {}}, "no such method"),
        ({"rival": "longred_c"}, "rival: longred_c: no such method; there are: cpt_long"),
        ({"headline": ["longred_c"]}, "headline: longred_c: no such method"),
        ({"scalings": {}}, r"scalings: \['linear'\] are named and not listed"),
        (
            {"methods": {"a": {"lable": "A"}}},
            "methods.a.lable: unknown key 'lable'; did you mean 'label'",
        ),
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
    ],
)
def test_what_is_no_template_is_refused(
    change: str | dict[str, Any], message: str, template: Path
) -> None:
    text = change
    if isinstance(change, dict):
        plain = yaml.safe_load(template.read_text(encoding="utf-8")) | change
        text = yaml.safe_dump({key: value for key, value in plain.items() if value is not None})
    template.write_text(str(text), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        own.own(SMOL, None, template)
    assert str(refused.value).startswith(f"--grid {template}")


def test_settings_are_chosen_within_the_window_and_beyond() -> None:
    [model] = own.own(SMOL, [2048, 4096, 16384, 32768]).models.values()
    assert "eval.ruler.lengths=[4096,16384]" in model.validation
    assert "eval.ruler.lengths=[2048,4096,16384,32768]" in model.test


def played(template: Path, play: Play, folder: Path) -> tuple[Grid, Results]:
    grid = own.own(["model=tiny", "data=sotu"], [1024, 2048], template)
    results = Results(folder, "abc")
    Pool(grid, results, folder / "work", start=play).run()
    return grid, results


def test_the_report_answers(template: Path, play: Play, tmp_path: Path) -> None:
    grid, results = played(template, play, tmp_path / "out")
    text = own.report(grid, results).read_text(encoding="utf-8")
    assert text.startswith("# Which recipe for tiny\n\nBest scaling without training on validation")
    assert "Best trained model on validation: Long-CPT on `yarn`" in text
    [command] = [line.strip() for line in text.splitlines() if "src.train" in line]
    assert "model=tiny data=sotu rope=yarn" in command
    assert command.endswith("budget=16384")
    assert "No training is above" not in text
    assert "Test half, in percent with 95% intervals" in text
    assert (tmp_path / "out" / "images" / "study_tiny_rates.png").is_file()


def test_where_training_gains_nothing_the_report_says_so(
    template: Path, play: Play, tmp_path: Path
) -> None:
    grid, results = played(template, play, tmp_path / "out")
    for row in results.rows:
        if row["phase"] == "search":
            row["validation"]["short"]["lambada"] = 0.1
    assert any(line.startswith("No training is above") for line in own.answer(grid, results.rows))
    unscored = [row for row in results.rows if row["scaling"] != "ntk"]
    assert list(own.answer(grid, unscored)) == [
        "Not all scalings are scored yet; the same command goes on."
    ]


def test_a_search_that_goes_on_says_no_more_than_it_knows(
    template: Path, play: Play, tmp_path: Path
) -> None:
    grid, results = played(template, play, tmp_path / "out")
    [first, second] = [row for row in results.rows if row["phase"] == "search"]
    scored = [row for row in results.rows if row["phase"] == "untrained"]
    first["validation"]["short"]["lambada"] = 0.1
    lines = list(own.answer(grid, [*scored, first]))
    assert lines[2].startswith("Best trained model on validation so far: Long-CPT on `yarn`")
    assert not any(line.startswith(("No training", "The tables")) for line in lines)
    assert list(own.answer(grid, scored)) == lines[:1]
    # Stopped before the floor was scored.
    results.rows = [row for row in scored if row["scaling"] == "yarn"]
    assert "Not all scalings are scored" in own.report(grid, results).read_text(encoding="utf-8")
    lost = {**second, "validation": None}
    lines = list(own.answer(grid, [*scored, {**first, "validation": None}, lost]))
    assert lines[2].startswith("Every trained model diverged")
    assert list(own.answer(grid, [*scored, lost])) == lines[:1]


def test_a_native_model_that_scores_nothing_is_no_measure(
    template: Path, play: Play, tmp_path: Path
) -> None:
    grid, results = played(template, play, tmp_path / "out")
    for row in results.rows:
        if row["phase"] == "untrained":
            row["native"]["short"]["lambada"] = 0.0
    first, *_ = own.answer(grid, results.rows)
    assert "the share of the native model in RULER, the only part" in first
    for row in results.rows:
        if row["phase"] == "untrained":
            row["native"]["ruler"] = dict.fromkeys(row["native"]["ruler"], 0.0)
    assert list(own.answer(grid, results.rows)) == [
        "The native model is no better than the floor, so that nothing can be compared."
    ]
    assert own.report(grid, results).is_file()


def test_rows_of_two_studies_are_never_mixed(template: Path, play: Play, tmp_path: Path) -> None:
    grid, results = played(template, play, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"runs.json has rows of another study; give another"):
        own.begin(grid, results)
    results.rows, rows = [], results.rows
    own.begin(grid, results)
    results.rows = rows
    own.begin(grid, results)
    other = own.own(["model=tiny", "data=books"], [1024, 2048], template)
    with pytest.raises(ConfigError, match=r"\(model and text: \['model=tiny', 'data=sotu'\]\)"):
        own.begin(other, results)
    longer = own.own(["model=tiny", "data=sotu"], [1024, 4096], template)
    with pytest.raises(ConfigError, match=r"with other settings \(validation: "):
        own.begin(longer, results)
    plain = yaml.safe_load(template.read_text(encoding="utf-8"))
    plain |= {"methods": {"new": plain["methods"]["cpt_long"]}, "rival": "new", "headline": []}
    template.write_text(yaml.safe_dump(plain), encoding="utf-8")
    changed = own.own(["model=tiny", "data=sotu"], [1024, 2048], template)
    with pytest.raises(ConfigError, match=r"with other settings \(method cpt_long: "):
        own.begin(changed, results)
    results.rows = [row for row in rows if row["method"] == "untrained"]
    own.begin(changed, results)


def test_some_methods_first_and_others_later(
    template: Path, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = yaml.safe_load(template.read_text(encoding="utf-8"))
    plain["methods"]["other"] = plain["methods"]["cpt_long"] | {"label": "Another"}
    template.write_text(yaml.safe_dump(plain | {"headline": ["cpt_long", "other"]}), "utf-8")
    monkeypatch.setattr(study.running, "preparations", lambda _: [])
    monkeypatch.setattr(study, "Pool", partial(Pool, start=play))
    command = ["--grid", str(template), "--out", str(tmp_path / "out"), "--lengths", "1024,2048"]
    for method, seen in (("other", ["Another"]), ("cpt_long", ["Another", "Long-CPT"])):
        study.main([*command, "--methods", method, "--own", "model=tiny", "data=sotu"])
        text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
        assert [name for name in ("Another", "Long-CPT") if f"| {name} | yarn |" in text] == seen
    assert "Minus Long-CPT, in points" in text


def test_what_is_stopped_leaves_a_report_and_goes_on(
    template: Path,
    play: Play,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(pool: Pool, time_limit: float | None) -> None:
        assert time_limit is None
        Pool(pool.grid, pool.results, tmp_path / "work", start=play).run()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(study.running, "preparations", lambda _: [])
    monkeypatch.setattr(study, "Pool", type("Stopping", (Pool,), {"run": run}))
    command = ["--grid", str(template), "--out", str(tmp_path / "out"), "--lengths", "1024,2048"]
    with pytest.raises(SystemExit) as ended:
        study.main([*command, "--own", "model=tiny", "data=sotu"])
    assert ended.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr()
    assert f"report: {tmp_path / 'out' / 'report.md'}" in said.out
    assert said.err.endswith("interrupted by SIGTERM; the same command goes on\n")
    assert (tmp_path / "out" / "report.md").is_file()


def test_a_folder_that_cannot_be_written_is_refused_first(
    template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        study.main(["--out", str(template), "--own", "model=tiny", "data=sotu"])
    assert f"{template} is no folder; name another" in capsys.readouterr().err


def test_what_cannot_be_prepared_ends_the_command(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failed:
        returncode = 2

    monkeypatch.setattr(study.subprocess, "run", lambda *_, **__: Failed())
    monkeypatch.setattr(study, "Pool", lambda *_, **__: pytest.fail("it was started"))
    arguments = ["--grid", str(template), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        study.main([*arguments, "--own", "model=tiny", "data=sotu"])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()
