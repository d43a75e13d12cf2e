"""From a command line to jobs: products, replacement, refusals, launchers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hydra.errors import HydraException

from src.multirun.composition import (
    Sweep,
    axes_of,
    expand,
    identity,
    parameters,
    question,
    register,
)
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

Compose = Callable[..., RunConfig]


def jobs_of(*arguments: str) -> Sweep:
    return expand(["+experiment=linearard_32k", "model=tiny", *arguments])


def swept(sweep: Sweep) -> list[tuple[str, ...]]:
    return [job.swept for job in sweep.jobs]


def test_every_combination_is_a_job() -> None:
    sweep = jobs_of("seed=1,2", "rope=linear,abf")
    assert swept(sweep) == [
        ("seed=1", "rope=linear"),
        ("seed=1", "rope=abf"),
        ("seed=2", "rope=linear"),
        ("seed=2", "rope=abf"),
    ]
    assert [job.number for job in sweep.jobs] == [1, 2, 3, 4]
    assert [j.settings.seed for j in sweep.jobs if j.settings] == [1, 1, 2, 2]
    assert sweep.name == "multirun"


def test_ranges_and_choices_are_listed() -> None:
    assert swept(jobs_of("seed=range(3)")) == [("seed=0",), ("seed=1",), ("seed=2",)]
    assert swept(jobs_of("seed=choice(4,5)")) == [("seed=4",), ("seed=5",)]


def test_an_override_of_a_swept_key_replaces_its_values() -> None:
    sweep = jobs_of("+sweeps=seeds", "seed=7,8")
    assert swept(sweep) == [("seed=7",), ("seed=8",)]
    assert sweep.notes == ("seed: 7,8 in place of the sweep's own values 1,2,3,4,5",)
    single = jobs_of("+sweeps=seeds", "seed=7")
    assert [j.settings.seed for j in single.jobs if j.settings] == [7]
    assert "7" in single.notes[0]


def test_a_swept_experiment_is_replaced() -> None:
    sweep = expand(["model=tiny", "+sweeps=methods", "+experiment=linearard_32k", "budget=1M"])
    assert [j.settings.experiment for j in sweep.jobs if j.settings] == ["linearard_32k"]


def test_other_overrides_hold_for_all_jobs() -> None:
    sweep = jobs_of("+sweeps=seeds", "recipe.stages.ard.lr=0.5")
    rates = {j.settings.recipe.stages["ard"].lr for j in sweep.jobs if j.settings}
    assert (len(sweep.jobs), rates, sweep.notes) == (5, {0.5}, ())


def test_an_experiment_may_be_swept() -> None:
    sweep = expand(["model=tiny", "+experiment=linearard_32k,cpt_long_32k"])
    names = [job.settings.recipe.name for job in sweep.jobs if job.settings]
    assert names == ["linearard", "cpt_long"]


def test_equal_jobs_run_once() -> None:
    sweep = jobs_of("recipe.stages.ard.lr=1e-3,0.001,2e-3")
    assert [job.number for job in sweep.jobs] == [1, 2]
    assert "is the same run as" in sweep.notes[0]


def test_a_refused_job_is_named_and_the_others_stay() -> None:
    sweep = jobs_of("recipe.stages.ard.lr=1e-3,-1", "rope=linear,nonsense")
    refusals = [job.refusal for job in sweep.jobs]
    assert refusals[0] is None
    assert "nonsense" in (refusals[1] or "")
    assert "recipe.stages.ard.lr: input should be greater than" in (refusals[2] or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["+sweeps=nonsense"], "no such sweep; there are layers,", id="name"),
        pytest.param(["+sweeps=seeds,layers"], "one value, the same for all jobs", id="two"),
        pytest.param(["run_dir=a,b"], "one value, the same for all jobs", id="run_dir"),
        pytest.param(["resume=DIR", "seed=1,2"], "sweep_resume=true", id="resume"),
        pytest.param(["sweep_resume=maybe"], "allowed: true, false", id="flag"),
        pytest.param(["seed=interval(1,2)"], "has no values to run", id="interval"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        jobs_of(*arguments)


def test_what_holds_for_the_sweep_is_not_given_to_jobs() -> None:
    sweep = jobs_of("seed=1,2", "run_dir=there", "sweep_resume=true")
    assert (str(sweep.folder), sweep.resume, sweep.dry_run) == ("there", True, False)
    for job in sweep.jobs:
        assert not {o.partition("=")[0] for o in job.overrides} & {"run_dir", "sweep_resume"}


def test_interpolations_are_shown_as_what_they_come_to() -> None:
    sweep = jobs_of("rope.target_length='${times:2,${model.native_window}}',65536")
    assert swept(sweep) == [("rope.target_length=16384",), ("rope.target_length=65536",)]


def test_launchers() -> None:
    assert "n_jobs" not in jobs_of("seed=1,2").launcher
    parallel = jobs_of("seed=1,2", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2")
    assert parallel.launcher == {"n_jobs": 2, "runs_per_gpu": 1}
    slurm = jobs_of(
        "seed=1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=p", "launch.nproc=4"
    )
    assert slurm.launcher["partition"] == "p"
    assert slurm.launcher["gpus_per_node"] == 4
    assert slurm.launcher["max_num_timeout"] == 5


def test_a_clusters_settings_are_typed() -> None:
    with pytest.raises(HydraException, match="timeout_min"):
        jobs_of("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=long")
    with pytest.raises(HydraException, match=r"hydra\.launcher\.nonsense"):
        jobs_of("hydra/launcher=submitit_slurm", "hydra.launcher.nonsense=1")


def test_the_axes_of_a_file_take_no_settings_of_the_command() -> None:
    with pytest.raises(ConfigError, match="not a setting of a single run"):
        axes_of("seeds", ["dry_run=true"])
    with pytest.raises(ConfigError, match="not a setting of a single run"):
        axes_of("seeds", ["hydra/launcher=parallel"])


def test_a_file_of_another_form_is_refused(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "bad.yaml").write_text("seed: 1,2\n")
    monkeypatch.setattr("src.multirun.composition.SWEEPS", folder)
    (folder / "cut.yaml").write_text("hydra: [\n")
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params"):
        parameters("bad")
    with pytest.raises(ConfigError, match=r"cut\.yaml is not YAML: .*; mend the file$"):
        parameters("cut")
    (folder / "latin.yaml").write_bytes("# größer\n".encode("latin-1"))
    for read in (parameters, question):
        with pytest.raises(ConfigError, match=r"latin\.yaml is not UTF-8: .*; save it as UTF-8$"):
            read("latin")
    (folder / "open.yaml").write_text('hydra: {sweeper: {params: {seed: "1,("}}}\n')
    with pytest.raises(ConfigError, match=r"open\.yaml: mismatched input .* such as seed: 1,2$"):
        axes_of("open", [])
    (folder / "a_folder.yaml").mkdir()
    # Commands that choose none of them go on.
    stored: list[str] = []
    store = SimpleNamespace(store=lambda name, **_: stored.append(name))
    monkeypatch.setattr("src.multirun.composition.ConfigStore.instance", lambda: store)
    register()
    assert stored == ["bad", "cut", "latin", "open"]


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "dry_run=true",
        "tracking=none",
        "tracking.group=g",
        "tags=[a]",
        "allow_oversubscribe=true",
        "seed=0",
        "recipe.stages.ard.lr=0.001",
        "budget=4.25M",
    ],
)
def test_the_same_run_has_the_same_hash(compose_run: Compose, override: str) -> None:
    one, other = (compose_run("model=tiny", *more) for more in ((), (override,)))
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    "override",
    ["seed=1", "recipe.stages.ard.lr=2e-3", "budget=1M", "rope=abf", "eval=perplexity_32k"],
)
def test_another_run_has_another(compose_run: Compose, override: str) -> None:
    assert identity(compose_run("model=tiny")) != identity(compose_run("model=tiny", override))


def test_what_a_run_folder_keeps_has_the_same_hash(compose_run: Compose) -> None:
    import yaml

    from src.settings import strict

    settings = compose_run("model=tiny", "budget=1M")
    kept = strict.load_plain(
        RunConfig, yaml.safe_load(yaml.safe_dump(strict.to_containers(settings)))
    )
    assert identity(kept) == identity(settings)


@pytest.mark.parametrize(
    "swept",
    [["seed=range(1,10000000000)"], ["seed=range(1,99)", "recipe.stages.cpt.tokens=range(1,99)"]],
)
def test_more_jobs_than_anybody_plans_are_refused_at_once(swept: list[str]) -> None:
    with pytest.raises(ConfigError, match="more than 1,000 jobs; sweep over fewer values"):
        expand(["model=tiny", *swept])
