"""Jobs become commands, results become rows; a call that was stopped is gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from benchmarks.study import pictures, running, tables
from benchmarks.study.__main__ import DOCUMENTS, RESULTS, main
from benchmarks.study.grid import Grid
from benchmarks.study.intervals import Scored, difference, mean, relative
from benchmarks.study.running import Pool, Results
from benchmarks.study.scores import Split
from src.evals.suites.inheritance import InheritanceModel, InheritanceResults, Repeated
from src.evals.suites.longppl import KeyScore, LongPplModel, LongPplResults
from src.multirun import local
from src.multirun.process import Share
from src.report.charts import Chart
from src.results import (
    DriftModel,
    DriftResults,
    FewShotResults,
    Mean,
    NeedleCell,
    NeedleDepthResults,
    NeedleModel,
    PapersResults,
    Role,
    RulerResults,
    ShortResults,
    TaskModel,
    TaskResult,
)
from src.run_folder import RunFolder, write_json
from src.settings.strict import ConfigError
from tests.conftest import ROOT

GRID = ROOT / "benchmarks" / "study" / "quick.yaml"
LENGTHS = (1024, 2048)


class Ended:
    """A process that has ended."""

    def __init__(self, returncode: int = 0) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    pid = 0


def write_results(folder: Path, split: Split, roles: dict[Role, float]) -> None:
    """Results of models that answer this share of 20 items."""
    folder.mkdir(parents=True, exist_ok=True)

    def model(role: Role, value: float, tasks: list[str]) -> TaskModel:
        return TaskModel(
            name=f"the {role}",
            role=role,
            results={task: TaskResult(value=value, n=20) for task in tasks},
            by_length={length: Mean(value=value) for length in LENGTHS},
        )

    ruler = [f"ruler_niah_single_1_{length}" for length in LENGTHS]
    short = ShortResults(
        split=split, models=tuple(model(r, v, ["lambada"]) for r, v in roles.items())
    )
    long = RulerResults(split=split, models=tuple(model(r, v, ruler) for r, v in roles.items()))
    write_json(folder / f"short.{split}.json", short.plain())
    write_json(folder / f"ruler.{split}.json", long.plain())
    right = {role: [float(i < 20 * value) for i in range(20)] for role, value in roles.items()}
    with (folder / f"short.{split}.items.jsonl").open("w") as lines:
        for role in roles:
            line = {"model": f"the {role}", "task": "lambada", "score": right[role]}
            lines.write(json.dumps(line) + "\n")
    with (folder / f"ruler.{split}.items.jsonl").open("w") as lines:
        for role in roles:
            for task in ruler:
                for score in right[role]:
                    line = {"model": f"the {role}", "task": task, "score": score}
                    lines.write(json.dumps(line) + "\n")


def write_measures(folder: Path) -> None:
    """LongPPL of two models, and drift of one with two layers."""
    scored = {2048: KeyScore(longppl=3.0, perplexity=20.0)}
    roles: tuple[Role, ...] = ("native", "final")
    models = tuple(LongPplModel(name=f"the {r}", role=r, by_length=scored) for r in roles)
    drifted = DriftModel(
        name="the final",
        role="final",
        attention_kl=(0.1, 0.2),
        hidden_cosine=(0.9, 0.8),
        relation_kl={"qq": (0.3, 0.4)},
        logit_kl=0.05,
    )
    write_json(folder / "longppl.json", LongPplResults(models=models, keys={2048: 40}).plain())
    write_json(folder / "drift.json", DriftResults(models=(drifted,)).plain())
    shown = tuple(
        TaskModel(name=f"the {r}", role=r, results={"sciq": TaskResult(value=v, n=4)}, by_length={})
        for r, v in zip(roles, (0.5, 0.25), strict=True)
    )
    few_shot = FewShotResults(split="test", shots=5, models=shown)
    write_json(folder / "few_shot.test.json", few_shot.plain())
    papers = PapersResults(models=shown)
    write_json(folder / "papers.json", papers.plain())
    cells = tuple(NeedleCell(length=4096, depth=d, value=d / 100) for d in (0.0, 50.0, 100.0))
    grids = tuple(NeedleModel(name=f"the {r}", role=r, cells=cells) for r in roles)
    write_json(folder / "needle_depth.json", NeedleDepthResults(models=grids).plain())
    repeated = Repeated(native_wrong=4, same=0.75)
    student = InheritanceModel(name="the final", role="final", all=repeated)
    inherited = InheritanceResults(split="test", models=(student,))
    write_json(folder / "inheritance.test.json", inherited.plain())


class Play:
    """Commands in place of processes: they write what the real ones would, and are recorded."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.commands: list[list[str]] = []
        self.diverges = False
        self.code = 0

    def __call__(self, command: list[str], log: Path, part: Share) -> Ended:
        del log, part
        self.commands.append(command)
        given = dict(word.split("=", 1) for word in command[2:] if "=" in word)
        if command[1] == "src.evaluate":
            folder = RunFolder(Path(given["run"])).evals if "run" in given else Path(given["out"])
            trained: dict[Role, float] = {"final": 0.7} if "run" in given else {}
            split: Split = "test" if "eval=test" in command else "validation"
            if "eval=measures" in command:
                write_measures(folder)
                return Ended(self.code)
            floor = 0.2 if "rope=linear" in command else 0.6
            write_results(folder, split, {"native": 0.8, "scaled": floor, **trained})
            return Ended(self.code)
        run = RunFolder.create(
            Path(given["run_dir"]),
            config=self.config | {"seed": int(given["seed"])},
            record={"step": 1},
        )
        run.update(tokens=int(given["budget"]), seconds=60.0)
        if self.diverges:
            run.end("failed", "FloatingPointError: loss is nan")
            return Ended(1)
        run.export().mkdir()
        run.end("finished")
        return Ended(self.code)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tiny_config: dict[str, Any]) -> Play:
    monkeypatch.setattr("time.sleep", lambda _: None)
    return Play(tiny_config)


@pytest.fixture
def tiny_config(compose_plain: Any) -> dict[str, Any]:
    return compose_plain("+experiment=quickstart", "model=tiny")


def test_a_whole_study(play: Play, tmp_path: Path) -> None:
    grid = Grid.load(GRID)
    results = Results(tmp_path / "results", "abc")
    Pool(grid, results, tmp_path / "work", jobs=2, start=play).run()
    assert Counter(row["phase"] for row in results.rows) == {
        "untrained": 2,
        "search": 2,
        "baseline": 2,
        "whole": 1,
        "final": 2,
    }
    for row in results.rows:
        assert row["commit"] == "abc"
        assert row["device"]
        assert len(row["config_hash"]) == 64
    trained = [command for command in play.commands if command[1] == "src.train"]
    assert len(trained) == 5, "two searched, one whole, and the best of them again with two seeds"
    tested = [command for command in play.commands if "eval=test" in command]
    assert len(tested) == 4, "the finalists, and untrained models"
    assert all("eval=validation" not in command for command in tested)
    final = results.rows[-1]
    validated = {r["seed"]: r["validation"] for r in results.rows if r["phase"] == "final"}
    assert validated[0]["short"] == {"lambada": 0.7}
    assert validated[1] is None, "nothing is chosen by a further seed"
    assert final["budget"] == "16384", "of equal numbers the first one"
    assert set(final["test"]) == {play_name(final)}
    [baseline] = [r for r in results.rows if (r["phase"], r["scaling"]) == ("baseline", "yarn")]
    assert set(baseline["test"]) == {"tiny-native", "tiny-yarn-untrained"}
    # Nothing is run twice, and a new call begins with what the file holds.
    again = Results(tmp_path / "results", "abc")
    play.commands.clear()
    Pool(grid, again, tmp_path / "work", start=play).run()
    assert play.commands == []

    comparison = tables.Comparison(grid, "tiny", again.rows, tmp_path / "results")
    assert comparison.short_tasks == ["lambada"]
    lines = list(comparison.table(comparison.lines))
    assert lines[0].startswith("| method | scaling | short average | RULER 1K | RULER 2K")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *("| native", "| untrained", "| untrained", "| Long-CPT")
    ]
    assert "| 70.0 [50.0,\u00a090.0] |" in lines[-1]
    assert lines[-1].endswith("| 16,384 | 1.0 | 2 |")
    tasks = list(comparison.by_task())
    assert (
        tasks[0] == "| task | tokens | native | untrained yarn | untrained linear | Long-CPT yarn |"
    )
    assert tasks[2:] == [
        "| niah_single_1 | 1K | 80 | 60 | 20 | 70 |",
        "| niah_single_1 | 2K | 80 | 60 | 20 | 70 |",
    ]
    goals = list(comparison.goals(native_window=1024))
    assert goals[-1].startswith("| Long-CPT | yarn | 87.5 [")
    native, linear, untrained = sorted(list(comparison.against(comparison.lines[-1]))[2:])
    assert native.startswith("| native | - | 10.0 [")
    assert linear.startswith("| untrained | linear | **-50.0 [")
    assert untrained.startswith("| untrained | yarn | -10.0 [")
    made = tables.regions(grid, again.rows, tmp_path / "results")
    both = [*again.rows, *({**r, "budget": "9M"} for r in again.rows if r["phase"] == "final")]
    labels = [
        line.label for line in tables.Comparison(grid, "tiny", both, tmp_path / "results").lines
    ]
    assert labels[-2:] == ["Long-CPT, 16384", "Long-CPT, 9M"]
    assert sorted(made["tiny differences"][2:]) == [native, linear, untrained]
    assert made["tiny gains"][-1].startswith("| Long-CPT | yarn | 10.0 [")
    assert list(tables.untrained_table(grid, "tiny", again.rows))[-1].endswith("| 0.708 |")
    assert len(list(tables.search_table(grid, "tiny", again.rows))) == 2 + 3
    by_task = list(tables.validation_tasks_table(grid, "tiny", again.rows))
    assert by_task[0] == "| method | settings | tokens | single_1 1K | single_1 2K |"
    assert len(by_task) == 2 + 1 + 2 + 3 + 1, "native, untrained, searched and whole, final"
    assert by_task[2] == "| native | | 0 | 80 | 80 |"
    assert "| Long-CPT yarn | cpt.lr 0.001 | 16384 | 70 | 70 |" in by_task


def test_searches_at_the_whole_budget_are_tested_as_they_are(play: Play, tmp_path: Path) -> None:
    grid = Grid.load(GRID)
    results = Results(tmp_path / "results", None)
    pool = Pool(replace(grid, budget=grid.search_budget), results, tmp_path / "work", start=play)
    pool.run()
    assert Counter(row["phase"] for row in results.rows) == {
        "untrained": 2,
        "search": 2,
        "baseline": 2,
        "final": 2,
    }
    trained = [command for command in play.commands if command[1] == "src.train"]
    assert len(trained) == 3, "two searched, and the better one with the second seed"


def test_the_best_models_of_some_methods_are_measured(play: Play, tmp_path: Path) -> None:
    grid = replace(Grid.load(GRID), measured=("cpt_long",), seeds=(0,))
    results = Results(tmp_path / "results", None)
    Pool(grid, results, tmp_path / "work", start=play).run()
    [row] = [row for row in results.rows if row["phase"] == "measure"]
    assert row["measures"]["longppl"] == {"native": {"2048": 3.0}, "final": {"2048": 3.0}}
    assert row["measures"]["drift"]["final"]["attention_kl"] == (0.1, 0.2)
    assert row["measures"]["few_shot"] == {"native": {"sciq": 0.5}, "final": {"sciq": 0.25}}
    assert row["config_hash"]
    [command] = [command for command in play.commands if "eval=measures" in command]
    assert "stages=last" in command
    trained = [command for command in play.commands if command[1] == "src.train"]
    assert len(trained) == 4, "two searched, one whole, one final; it is kept to be measured"
    assert len(list((tmp_path / "work").glob("*/export"))) == 1, "the whole run's is left"
    lines = list(tables.measures_table(grid, "tiny", results.rows))
    assert lines[0] == (
        "| method | scaling | LongPPL 2K, 40 keys | logits | attention | hidden states |"
    )
    assert lines[2:] == [
        "| native | - | 3.00 | - | - | - |",
        "| Long-CPT | yarn | 3.00 | 0.050 | 0.150 | 0.800 |",
    ]
    assert list(tables.answers_table(grid, "tiny", results.rows)) == [
        "| method | scaling | after examples | needles 4K | papers | native mistakes repeated |",
        "|---|---|--:|--:|--:|--:|",
        "| native | - | 50.0 | 50.0 | 50.0 | - |",
        "| Long-CPT | yarn | 25.0 | 50.0 | 25.0 | 75.0 |",
    ]
    layers, _ = dict(pictures.made(grid, results.rows))["study_tiny_drift"]
    assert isinstance(layers, Chart)
    [series] = layers.series
    assert series.name == "Long-CPT, yarn"
    assert [(point.x, point.y) for point in series.points] == [(0, 0.1), (1, 0.2)]


def play_name(row: dict[str, Any]) -> str:
    return next(name for name in row["test"] if "final" in name)


def test_a_run_that_diverges_is_a_row_and_one_that_fails_is_none(
    play: Play, tmp_path: Path
) -> None:
    play.diverges = True
    results = Results(tmp_path / "results", None)
    Pool(Grid.load(GRID), results, tmp_path / "work", start=play).run()
    trained = [row for row in results.rows if row["method"] != "untrained"]
    assert [row["validation"] for row in trained] == [None, None]
    assert all("FloatingPointError" in row["error"] for row in trained)
    play.diverges, play.code = False, 3
    other = Results(tmp_path / "other", None)
    pool = Pool(Grid.load(GRID), other, tmp_path / "fails", start=play)
    pool.run()
    assert other.rows == []
    [message] = pool.failed.values()
    assert "exit code 3" in message


def test_models_do_not_wait_for_each_others_first_question(tmp_path: Path) -> None:
    one = Grid.load(GRID)
    both = replace(one, models={"tiny": one.models["tiny"], "other": one.models["tiny"]})
    pool = Pool(both, Results(tmp_path, None), tmp_path / "work", jobs=2)
    first, second = pool._ready()
    assert [job.model for job in (first, second)] == ["tiny", "other"], "one question for each"
    pool._running = [running.Running(first, None, [], 0.0, Share())]
    assert list(pool._ready()) == [second]


def test_what_would_not_end_in_time_is_not_started(
    play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, results = Grid.load(GRID), Results(tmp_path / "results", None)
    Pool(grid, results, tmp_path / "work", start=play).run()
    assert all(row["job_seconds"] >= 0 for row in results.rows)
    first = next(row for row in results.rows if row["phase"] == "search")
    results.rows = [row for row in results.rows if row["phase"] in ("untrained", "baseline")]
    results.rows.append(first | {"job_seconds": 1000.0})
    play.commands.clear()
    Pool(grid, results, tmp_path / "short", start=play).run(time_limit=100)
    assert play.commands == []
    assert "the time is over" in capsys.readouterr().out
    Pool(grid, results, tmp_path / "long", start=play).run(time_limit=2000)
    assert any(command[1] == "src.train" for command in play.commands)


def test_a_run_that_was_cut_off_is_resumed(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    grid = Grid.load(GRID)
    pool = Pool(grid, Results(tmp_path, None), tmp_path / "work")
    job = running.Job("final", "tiny", "yarn", "cpt_long", "1M", {"recipe.stages.cpt.lr": 0.001})
    typed = pool.command(job)
    assert typed is not None
    assert typed[1] == "src.train"
    assert "budget=1M" in typed
    assert "rope=yarn" in typed
    folder = RunFolder.create(tmp_path / "work" / job.run, config=tiny_config, record={})
    assert pool.command(job) == typed, "it has no checkpoint"
    (folder.checkpoints / "step-3").mkdir(parents=True)
    assert pool.command(job) == ["-m", "src.train", f"resume={folder.path}"]
    folder.end("finished")
    folder.export().mkdir()
    chosen = pool.command(job)
    assert chosen is not None
    assert "eval=validation" in chosen
    write_results(folder.evals, "validation", {"native": 0.8, "scaled": 0.6, "final": 0.7})
    tested = pool.command(job)
    assert tested is not None
    assert tested[1:4] == ["src.evaluate", f"run={folder.path}", "stages=last_alone"]
    write_results(folder.evals, "test", {"native": 0.8, "scaled": 0.6, "final": 0.7})
    assert pool.command(job) is None
    folder.export().rmdir()
    assert pool.command(job) == typed, "a model that is gone is trained again"


def test_folders_that_hydra_would_not_read_are_quoted(tmp_path: Path, compose_plain: Any) -> None:
    work = tmp_path / "two words, é"
    pool = Pool(Grid.load(GRID), Results(tmp_path, None), work)
    untrained = pool.command(running.Job("untrained", "tiny", "yarn"))
    trained = pool.command(
        running.Job("search", "tiny", "yarn", "cpt_long", "16384", {"recipe.stages.cpt.lr": 0.001})
    )
    assert untrained is not None
    assert trained is not None
    assert compose_plain(*untrained[2:], name="evaluate")["out"].startswith(str(work))
    assert compose_plain(*trained[2:])["run_dir"].startswith(str(work))


def test_damaged_rows_and_a_second_call_are_refused(play: Play, tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text('{"rows": [')
    with pytest.raises(ConfigError, match=r"--out: .*runs.json cannot be read"):
        Results(tmp_path, None)
    (tmp_path / "runs.json").unlink()
    pool = Pool(Grid.load(GRID), Results(tmp_path, None), tmp_path / "work", start=play)
    with (
        FileLock(tmp_path / "work" / "lock"),
        pytest.raises(ConfigError, match="is being run by another call"),
    ):
        pool.run()
    assert play.commands == []
    pool.run()
    assert play.commands


def test_lengths_that_are_no_multiple_are_told_apart() -> None:
    assert [tables.thousands(n) for n in (4096, 1500, 1024, 512)] == ["4K", "1,500", "1K", "512"]


def test_the_parts_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one, two, three, four = running.parts(2, ["4", "7"])
    assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in (one, two, three, four)] == [
        *("4", "7", "4", "7")
    ]
    assert {part.environment["LINEARARD_GPU_SHARE"] for part in (one, two)} == {"0.5"}
    assert one.environment["OMP_NUM_THREADS"] == "2"
    assert [part.cores for part in (one, four)] == [{0, 1}, {6, 7}]
    [whole] = running.parts(1, [])
    assert whole.environment == {"OMP_NUM_THREADS": "8"}
    assert running.parts(9, [])[0].cores is None, "more jobs than cores"
    monkeypatch.setattr(local, "gpus", lambda: ("H200", "H200"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local.visible_gpus() == ["3", "5"]


def test_intervals_are_paired_and_know_seeds() -> None:
    items = [float(i % 2) for i in range(200)]
    better = [max(score, float(i % 10 == 0)) for i, score in enumerate(items)]
    one, other = Scored("one", ({"t": items},)), Scored("other", ({"t": better},))
    value = mean(one, ["t"])
    assert value.value == 0.5
    assert 0.42 < value.low < 0.46 < 0.54 < value.high < 0.58, "1.96 * sqrt(0.25 / 200) = 0.069"
    gain = difference(other, one, ["t"])
    assert gain.value == pytest.approx(0.1)
    assert gain.certain, "paired: 20 items better, none worse"
    assert not difference(one, one, ["t"]).certain
    assert relative(one, one, ["t"], ["t"]).low == 1.0
    lucky = Scored("seeds", ({"t": items}, {"t": [1.0] * 200}, {"t": [0.0] * 200}))
    wide = mean(lucky, ["t"])
    assert wide.low < 0.2 < 0.8 < wide.high
    assert str(value).startswith("50.0 [4")


def test_regions_of_a_document(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "a\n<!-- study: x -->\nold\n<!-- end -->\nb\n<!-- study: y -->\n<!-- end -->\n"
    )
    text = tables.fill(document, {"x": ["| new |"]})
    assert (
        text == "a\n<!-- study: x -->\n| new |\n<!-- end -->\nb\n<!-- study: y -->\n<!-- end -->\n"
    )


def test_the_documents_hold_the_tables_of_the_results() -> None:
    results = Results(RESULTS, None)
    grid = Grid.load(GRID.with_name("grid.yaml"))
    made = tables.regions(grid, results.rows, RESULTS)
    assert made
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert tables.fill(document, made) == text, "python -m benchmarks.study --docs"
    pages = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    later = list(grid.models)[1:]
    one_by_one = [n for n in made if not n.startswith(tuple(f"{model} " for model in later))]
    assert all(f"<!-- study: {name} -->" in pages for name in one_by_one)


def test_every_row_says_what_ran_where() -> None:
    rows = Results(RESULTS, None).rows
    assert len(rows) > 100
    for row in rows:
        assert len(row["config_hash"]) == 64
        assert len(row["commit"]) == 40 or row["commit"] == "cb01327"
        assert row["device"] == "NVIDIA H200"
        assert isinstance(row["seed"], int)


def test_the_plan_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--plan", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("tiny-linear-untrained-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.slow
def test_the_machinery_on_a_cpu(tmp_path: Path) -> None:
    """`make study QUICK=1`, with real processes: it needs the packages of the quickstart."""
    command = [sys.executable, "-m", "benchmarks.study", "--quick", "--jobs", "2"]
    command += ["--out", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results" / "runs.json").read_text())["rows"]
    assert [row["phase"] for row in rows].count("final") == 2
