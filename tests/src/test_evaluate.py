"""`python -m src.evaluate`: a run's models or a model by name, and how it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from src import results
from src.evals import running
from src.evals.running import Evaluated
from src.evals.suite import EvaluationError
from src.results import PerplexityResults, ShortResults, TaskModel
from src.settings import loading, strict
from src.settings.config import EvaluateConfig
from src.settings.strict import ConfigError
from src.training import launch
from src.training.launch import World
from tests.ranks import on_ranks

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "short"
SUITE = [
    "eval=perplexity",
    "eval.perplexity.windows=[16,64]",
    "eval.perplexity.headline=64",
    "eval.perplexity.tokens=256",
]


@pytest.fixture(scope="module")
def finished(train_fake: Callable[..., Path]) -> Path:
    return train_fake()


def test_a_runs_models_are_scored_on_its_own_held_out_text(
    finished: Path, run_here: Callable[..., subprocess.CompletedProcess]
) -> None:
    done = run_here("src.evaluate", f"run={finished}", *SUITE)
    assert done.returncode == 0, done.stderr
    results = json.loads((finished / "evals" / "perplexity.json").read_text())
    names = [model["name"] for model in results["models"]]
    assert names == ["native", "scaled", "after ard", "after cpt"]
    assert results["dataset"]["documents"] == ["held-a", "held-b"]
    roles = ["native", "scaled", "stage", "final"]
    assert [model["role"] for model in results["models"]] == roles
    assert [bool(model["scores"]) for model in results["models"][2:]] == [True, True]
    native, scaled = (model["perplexity"]["64"] for model in results["models"][:2])
    assert native != scaled
    for name in names:
        assert name in done.stdout


@pytest.mark.parametrize(
    ("stages", "names"),
    [("last", ["native", "scaled", "after cpt"]), ("last_alone", ["after cpt"])],
)
def test_models_can_be_left_out(
    stages: str, names: list[str], finished: Path, compose_plain: Callable[..., dict]
) -> None:
    asked = compose_plain(f"run={finished}", *SUITE, f"stages={stages}", name="evaluate")
    found = running.evaluate(strict.load_plain(EvaluateConfig, asked))
    assert [model.name for model in found.records["perplexity"].models] == names


def test_a_model_by_name(
    prose: Path, tmp_path: Path, run_here: Callable[..., subprocess.CompletedProcess]
) -> None:
    data = ["data=files", f"data.sources.files.paths=[{prose}]", "data.held_out=[held-*]"]
    done = run_here("src.evaluate", "model=tiny", *data, *SUITE, f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout
    results = json.loads((tmp_path / "perplexity.json").read_text())
    assert [model["name"] for model in results["models"]] == ["tiny"]


SHORT = [
    "eval=short",
    "eval.short.source=folder",
    f"eval.short.folder={FIXTURES}",
    "eval.short.tasks=[arc_easy,lambada,gsm8k_bpb]",
    "eval.short.resamples=100",
]


def test_the_short_suite_of_a_run_beside_another_run(
    finished: Path, tmp_path: Path, run_here: Callable[..., subprocess.CompletedProcess]
) -> None:
    other = shutil.copytree(finished, tmp_path / "other")
    done = run_here("src.evaluate", f"run={finished}", *SHORT, "limit=2", f"compare=[{other}]")
    assert done.returncode == 0, done.stderr
    results = json.loads((finished / "evals" / "short.json").read_text())
    names = [model["name"] for model in results["models"]]
    assert names == ["native", "scaled", "after ard", "after cpt", "linearard"]
    assert results["limit"] == 2
    assert results["failures"] == {}
    scored = results["models"][3]["scores"]
    assert scored["tasks"]["gsm8k_bpb"]["recovery_vs_best"] == pytest.approx(100)
    lines = (finished / "evals" / "short.items.jsonl").read_text().splitlines()
    assert len(lines) == len(names) * 3
    assert "a quick look" in done.stdout


def rank_of_evaluation(world: World, request: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # As it would be in an interpreter that `launch.spawn` has started.
        patch.setattr(launch, "run_rank", lambda work, logs: work(world))
        running.rank(Path(request))


@pytest.mark.integration
def test_processes_share_the_work_and_find_the_same(
    tmp_path: Path,
    run_here: Callable[..., subprocess.CompletedProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spawn(program: list[str], *, nproc: int, logs: Path) -> None:
        assert program[:2] == ["-m", "src.evals.rank"]
        on_ranks(nproc, rank_of_evaluation, program[2])

    monkeypatch.setattr(launch, "spawn", spawn)
    found = []
    for nproc in (1, 2):
        out = tmp_path / str(nproc)
        done = run_here(
            "src.evaluate", "model=tiny", *SHORT, f"nproc={nproc}", f"out={out}", "cache=false"
        )
        assert done.returncode == 0, done.stderr
        lines = (out / "short.items.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    assert len(found[0]) == 3
    for alone, shared in zip(*found, strict=True):
        assert shared["score"] == pytest.approx(alone["score"], rel=1e-5)
        assert shared["predicted"] == alone["predicted"]


def test_what_fails_is_named_after_the_results_of_the_rest(
    tmp_path: Path, run_here: Callable[..., subprocess.CompletedProcess]
) -> None:
    asked = [*SHORT, "eval.short.tasks=[arc_easy,lambada,humaneval,mbpp]", f"out={tmp_path}"]
    done = run_here("src.evaluate", "model=tiny", *asked)
    assert done.returncode == 2
    assert "eval short: humaneval: 'humaneval' runs generated code: allow it" in done.stderr
    assert "Traceback" not in done.stderr
    results = json.loads((tmp_path / "short.json").read_text())
    assert set(results["models"][0]["results"]) == {"arc_easy", "lambada"}
    assert set(results["failures"]) == {"humaneval", "mbpp"}
    assert "arc_easy" in done.stdout


def test_a_misspelt_task_is_one_error_and_leaves_nothing(
    tmp_path: Path, run_here: Callable[..., subprocess.CompletedProcess]
) -> None:
    asked = [*SHORT, "eval.short.tasks=[arc_easy,lambadda]", f"out={tmp_path / 'out'}"]
    done = run_here("src.evaluate", "model=tiny", *asked)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: eval.short: tasks=['arc_easy', 'lambadda']: unknown task 'lambadda'; did you mean "
        "'lambada'? there are: "
    )
    assert not (tmp_path / "out").exists()


def test_equal_failures_share_a_line() -> None:
    failures = {"short": {"mmlu, a": "too long", "mmlu, b": "too long", "piqa": "no file"}}
    failures |= {"positions": {"all": "no length"}}
    with pytest.raises(EvaluationError) as refusal:
        Evaluated({}, {**failures, "ruler": {"all": "no length"}}).check()
    assert str(refusal.value).splitlines() == [
        "eval short: mmlu, a; mmlu, b: too long",
        "eval short: piqa: no file",
        "eval positions; eval ruler: no length",
    ]


def everything(*more: str) -> list[str]:
    """`eval=all` on small files, without the long suite."""
    own = [part for part in SHORT if not part.startswith("eval=")]
    return ["model=tiny", "eval=all", "eval.long=null", "limit=1", *own, *SUITE[1:], *more]


def test_data_that_cannot_be_had_leaves_the_other_suites(
    compose_plain: Callable[..., dict], tmp_path: Path
) -> None:
    data = ["data=files", f"data.sources.files.paths=[{tmp_path / 'none'}]"]
    plain = compose_plain(*everything(*data, f"out={tmp_path}"), name="evaluate")
    found = running.evaluate(strict.load_plain(EvaluateConfig, plain))
    assert found.records.keys() == {"short"}
    assert found.failures.keys() == {"perplexity"}
    assert "does not exist" in found.failures["perplexity"]["all"]
    assert (tmp_path / "short.json").is_file()


def test_suites_that_need_a_run_are_left_out_for_a_model_alone(
    compose_plain: Callable[..., dict],
    prose: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["data=files", f"data.sources.files.paths=[{prose}]", "data.held_out=[held-*]"]
    plain = compose_plain(*everything(*data, f"out={tmp_path}"), name="evaluate")
    found = running.evaluate(strict.load_plain(EvaluateConfig, plain))
    found.check()
    assert found.records.keys() == {"perplexity", "short"}
    found.print(Console())
    printed = capsys.readouterr().out
    for name in ("drift", "inheritance"):
        assert f"eval={name} is left out: it compares the models of a run" in printed


def test_a_model_by_name_is_evaluated_with_a_scaling_too(
    compose_plain: Callable[..., dict], prose: Path, tmp_path: Path
) -> None:
    data = ["data=files", f"data.sources.files.paths=[{prose}]", "data.held_out=[held-*]"]
    scaling = ["rope=linear"]
    plain = compose_plain("model=tiny", *scaling, *SUITE, *data, f"out={tmp_path}", name="evaluate")
    running.evaluate(strict.load_plain(EvaluateConfig, plain)).check()
    record = results.read(tmp_path, PerplexityResults)
    assert record is not None
    assert [model.role for model in record.models] == ["native", "scaled"]
    native, scaled = record.models
    assert native.perplexity != scaled.perplexity


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["run=/no/such/run"], "run=/no/such/run is not a run folder", id="no-run"),
        pytest.param(["run=R", "data=sotu"], "data=sotu is for model=NAME", id="texts"),
        pytest.param([], "give either run=RUN_DIR or model=NAME", id="neither"),
        pytest.param(["model=tiny", "eval=drift"], "give run=RUN_DIR instead", id="needs-a-run"),
        pytest.param(
            ["model=tiny", "eval=inheritance"],
            "eval=inheritance: it compares a run's models with the native one, and model=tiny",
            id="also-needs-a-run",
        ),
        pytest.param(["model=tiny", "eval=none"], "no suite is chosen", id="no-suite"),
        pytest.param(["model=tiny", "compare=[x]"], "compare is for run=RUN_DIR", id="compare"),
        pytest.param(["run=R", "rope=yarn"], "rope=yarn is for model=NAME: run=R has", id="rope"),
        pytest.param(
            ["model=tiny", "rope=yarn", "rope.target_length=8"], "give at least that", id="target"
        ),
        pytest.param(
            ["model=tiny", "model.name=scaled", "rope=yarn"],
            "model.name=scaled: results call the model with another scaling so",
            id="name",
        ),
        pytest.param(["run=R", "out=x"], "out=x is for model=NAME: results of run=R", id="out"),
        pytest.param(
            ["model=tiny", "eval=perplexty"],
            "eval=perplexty: no such choice; did you mean 'perplexity'",
            id="typo",
        ),
    ],
)
def test_mistakes_are_one_message(
    run_here: Callable[..., subprocess.CompletedProcess],
    run_command: Callable[..., subprocess.CompletedProcess],
    arguments: list[str],
    message: str,
) -> None:
    # One is typed as a user does.
    refused = (run_here if arguments else run_command)("src.evaluate", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_without_a_model_is_refused(
    finished: Path, tmp_path: Path, run_here: Callable[..., subprocess.CompletedProcess]
) -> None:
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_text((finished / name).read_text())
    refused = run_here("src.evaluate", f"run={tmp_path}", *SUITE)
    assert refused.returncode == 2
    assert "has no exported model: finish it with resume=" in refused.stderr


def _with_model(finished: Path, target: Path, **changes: object) -> Path:
    """A run's folder as if it had begun with another model."""
    other = Path(shutil.copytree(finished, target))
    file = other / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["model"] |= changes
    file.write_text(yaml.safe_dump(settings))
    return other


def test_a_run_of_another_model_is_not_compared(
    finished: Path, tmp_path: Path, compose_plain: Callable[..., dict]
) -> None:
    def asked(other: Path) -> EvaluateConfig:
        typed = [f"run={finished}", *SUITE, f"compare=[{other}]"]
        return strict.load_plain(EvaluateConfig, compose_plain(*typed, name="evaluate"))

    other = _with_model(finished, tmp_path / "other", name="tiny_too", weights_seed=7)
    with pytest.raises(ConfigError, match=r"'tiny_too'.*'tiny'.*differ in weights_seed"):
        running.evaluate(asked(other))
    one = Path(shutil.copytree(finished, tmp_path / "one"))
    with pytest.raises(ConfigError, match=r"compare: .*/one is given twice; leave one"):
        running._check(replace(asked(one), compare=(str(one), f"{one}/../one")))
    renamed = _with_model(finished, tmp_path / "renamed", name="tiny_too", attention="eager")
    running._check(asked(renamed))
    moved = []
    for name in ("here", "there"):
        # Neither folder is there: nobody can say that they are the same.
        source = {"type": "folder", "path": str(tmp_path / name)}
        target = tmp_path / f"moved-{name}"
        moved.append(_with_model(finished, target, source=source, random_weights=False))
    with pytest.raises(ConfigError, match="differ in source"):
        running._check(replace(asked(moved[1]), run=str(moved[0])))


@pytest.mark.parametrize(
    ("overrides", "cuda", "fused"),
    [
        ([], True, True),
        ([], False, False),
        (["dtype=float32"], True, False),
        (["dtype=float32", "fused_kernels=true"], True, True),
        (["fused_kernels=false"], True, False),
        (["model=tiny_gemma3"], True, False),
    ],
)
def test_kernels_are_fused_in_half_precision_on_a_gpu(
    overrides: list[str], cuda: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "uses_cuda", lambda device: cuda)
    settings = loading.compose(EvaluateConfig, "evaluate", ["model=tiny", *overrides])
    assert running._evaluation(settings, World()).fused is fused


def test_a_quick_look_does_not_take_the_place_of_whole_results(tmp_path: Path) -> None:
    def write(limit: int | None) -> None:
        model = TaskModel(name="m", role="native")
        running._write(tmp_path, ShortResults(limit=limit, models=(model,)), [{"of": limit}])

    def limits() -> dict[str, int | None]:
        return {f.name: json.loads(f.read_text())["limit"] for f in tmp_path.glob("*.json")}

    write(2)
    assert limits() == {"short.json": 2}
    write(None)
    assert limits() == {"short.json": None}
    write(3)
    assert limits() == {"short.json": None, "short.limit_3.json": 3}
    assert json.loads((tmp_path / "short.items.jsonl").read_text()) == {"of": None}
    assert json.loads((tmp_path / "short.limit_3.items.jsonl").read_text()) == {"of": 3}
    (tmp_path / "short.json").write_text("{cut o")
    write(4)
    assert limits()["short.json"] == 4


def test_results_of_halves_have_files_of_their_own(tmp_path: Path) -> None:
    for split, limit in ((None, None), ("validation", None), ("test", None), ("test", 3)):
        record = ShortResults(
            split=split, limit=limit, models=(TaskModel(name="m", role="native"),)
        )
        running._write(tmp_path, record, [{"of": split}])
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "short.json",
        "short.test.json",
        "short.test.limit_3.json",
        "short.validation.json",
    ]
    for split in (None, "validation", "test"):
        read = results.read(tmp_path, ShortResults, split=split)
        assert read is not None
        assert read.split == split
        assert read.limit is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nproc=100000", "nproc: 100000 processes on this machine; give at most"),
        ("out=/dev/null/x", "out=/dev/null/x: it cannot be made, because /dev/null is no folder"),
        ("fused_kernels=true", "fused_kernels: true, but this is a CPU; use auto or false"),
        (
            "fused_kernels=true model=tiny_gemma3",
            "fused_kernels: true, but models of family gemma3 have other formulas than LLaMA's",
        ),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    override: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if override == "fused_kernels=true":
        monkeypatch.setattr(running, "uses_cuda", lambda device: False)
    settings = loading.compose(
        EvaluateConfig, "evaluate", ["model=tiny", "eval=perplexity", *override.split()]
    )
    with pytest.raises(ValueError, match=said):
        running.evaluate(settings)


def test_models_that_are_compared_have_names_of_their_own(finished: Path, tmp_path: Path) -> None:
    """Copies of a run have its method and its id."""
    others = [shutil.copytree(finished, tmp_path / name) for name in ("one", "two", "three")]
    typed = [f"run={finished}", "stages=last_alone", f"compare=[{','.join(map(str, others))}]"]
    settings = loading.compose(EvaluateConfig, "evaluate", [*typed, "eval=perplexity"])
    names = [candidate.name for candidate in running._evaluation(settings, World()).candidates]
    run_id = json.loads((finished / "run.json").read_text())["run_id"]
    expected = ["after cpt", "linearard", f"linearard {run_id}", f"linearard {others[2]}"]
    assert names == expected
