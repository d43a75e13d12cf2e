"""A whole run of an experiment, from the start of its process to its export, in parts.

    python -m benchmarks.whole                                     SmolLM2-135M on one GPU
    python -m benchmarks.whole --model llama2_7b --random --ranks 8 --kill-at 60
                                                                   killed at step 60, then resumed
    python -m benchmarks.whole --quick                             a smoke run: the tiny model
    python -m benchmarks.whole -- data=files 'data.paths=[DIR]'    with further settings

`src.train` is run as a user types it, but without evaluation and tracker. What a machine does once
(weights that are converted, texts that are tokenized, kernels that are compiled) is done before, by
a run of a few steps, unless `--cold` is given.

Rows, beside those of `benchmarks.step`, and each in place of an earlier one of its model, case,
ranks and device:

- `whole_seconds`: from the start of the process to the export's last file, with `parts`: `imports`
  (Python and libraries), those of run.json's `start_seconds`, and of each stage `build`, `warm_up`
  (what its steps took longer than their median), `steps` (the median by their number), `save`,
  `export` and `rest`; `exit` is the time after the export, which is no part of the row. After a
  kill the parts are those of the resumed process, and `killed_after` are the seconds before
- `plan_error_memory`, `plan_error_time` of each stage (in percent), where a GPU was measured
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import step
from benchmarks.merging import commit_of
from src.planning import plan
from src.run_folder import RunFolder, whole_checkpoints
from src.settings import strict
from src.settings.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
# Settings of a run of a few steps, which does what a machine does once.
FEW = ("recipe.stages.ard.tokens=65536", "recipe.stages.cpt.tokens=131072")
QUICK = (
    "recipe.stages.ard.streams.short.length=64",
    "recipe.stages.ard.tokens_per_step=512",
    "recipe.stages.ard.tokens=5120",
    "recipe.stages.cpt.streams.long.length=128",
    "recipe.stages.cpt.tokens_per_step=1024",
    "recipe.stages.cpt.tokens=10240",
    "checkpoint.every_steps=3",
)


@dataclass(frozen=True)
class Process:
    """When a process began and ended, in seconds since 1970."""

    began: float
    ended: float


def command_of(options: argparse.Namespace) -> list[str]:
    """The arguments of `src.train`, without its run folder."""
    model = "tiny" if options.quick else options.model
    arguments = [f"+experiment={options.experiment}", f"model={model}", "data=books", "eval=none"]
    arguments += ["tracking=none", f"launch.nproc={options.ranks}"]
    arguments += ["+model.random_weights=true"] if options.random else []
    return [*arguments, *(QUICK if options.quick else ()), *options.overrides]


def trained(arguments: Sequence[str], run_dir: Path, kill_at: int | None = None) -> Process:
    """Run `src.train` to its end; or kill it once a step is logged and a checkpoint is written.

    Raises:
        SystemExit: it failed, or ended before it could be killed.
    """
    began = time.time()
    process = subprocess.Popen([sys.executable, "-m", "src.train", *arguments], cwd=ROOT)
    if kill_at is None:
        if process.wait():
            sys.exit(f"error: src.train {' '.join(arguments)}: exit code {process.returncode}")
        return Process(began, time.time())
    folder = RunFolder(run_dir)
    while not (whole_checkpoints(folder) and folder.metrics()[-1]["step"] >= kill_at):
        if process.poll() is not None:
            sys.exit(f"error: --kill-at={kill_at}: the run ended before, or saved no checkpoint")
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Its ranks notice within half a second that it is gone.
    time.sleep(2)
    return Process(began, time.time())


def measured(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run, maybe killed and resumed, and make the rows."""
    arguments = command_of(options)
    if not (options.cold or options.quick):
        trained([*arguments, *FEW, f"run_dir={folder / 'few'}"], folder / "few")
        shutil.rmtree(folder / "few")
    run_dir = folder / "run"
    processes = [trained([*arguments, f"run_dir={run_dir}"], run_dir, options.kill_at)]
    if options.kill_at is not None:
        processes.append(trained([f"resume={run_dir}"], run_dir))
    run = RunFolder(run_dir)
    settings = strict.load_plain(RunConfig, run.config())
    record = run.record()
    about = {
        "case": options.experiment,
        "model": settings.model.name,
        "T": settings.rope.target_length,
        "tokens": record["tokens"],
        "ranks": options.ranks,
        "device": record["device"],
        "versions": record["versions"],
        "commit": commit_of(options.commit),
        "command": " ".join(["python -m src.train", *arguments]),
    }
    whole = {"name": "whole_seconds", "unit": "s", **about, **_seconds(run, processes)}
    return [whole, *_plan_errors(run, settings, record, about)]


def _seconds(run: RunFolder, processes: Sequence[Process]) -> dict[str, Any]:
    """The whole time of a run, and its parts in its last process."""
    first, last = processes[0], processes[-1]
    exported = (run.export() / "manifest.json").stat().st_mtime
    parts: dict[str, float] = {}
    more: dict[str, float] = {}
    record = run.record()
    if first is last:
        made = run.config_file.stat().st_mtime
        parts = {"imports": made - first.began - sum(record["start_seconds"].values())}
        parts |= record["start_seconds"]
    else:
        more = {"killed_after": first.ended - first.began}
    for stage in record["stages"]:
        parts |= _parts_of(stage, run)
    if first is last:
        parts["rest"] = exported - first.began - sum(parts.values())
    rounded = {name: round(seconds, 2) for name, seconds in parts.items()}
    whole = {"value": exported - first.began, "parts": rounded, "exit": last.ended - exported}
    return whole | more


def _step_seconds(stage: dict[str, Any], run: RunFolder) -> float:
    """The median step of a stage, of all its processes."""
    pace = statistics.median(
        line["tokens_per_second"] for line in run.metrics() if line["stage"] == stage["name"]
    )
    return stage["tokens"] / stage["steps"] / pace


def _parts_of(stage: dict[str, Any], run: RunFolder) -> dict[str, float]:
    """A stage's parts. Its steps are those of its last process, if it was resumed."""
    name = stage["name"]
    looped = stage["seconds"] - stage["save_seconds"] - stage["export_seconds"]
    steps = min(looped, _step_seconds(stage, run) * stage["steps"])
    parts = {"build": stage["build_seconds"], "steps": steps}
    parts["warm_up"] = looped - parts["steps"]
    parts |= {"save": stage["save_seconds"], "export": stage["export_seconds"]}
    return {f"{name} {part}": seconds for part, seconds in parts.items()}


def _plan_errors(
    run: RunFolder, settings: RunConfig, record: dict[str, Any], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """How far the plan was off, for each stage; none on a CPU, whose memory is not measured."""
    planned = plan.make(settings, world_size=about["ranks"])
    made: list[dict[str, Any]] = []
    for stage in record["stages"]:
        if "peak_gib" not in stage:
            continue
        of = planned.stage(stage["name"])
        kinds = {"memory": (of.peak / 2**30, stage["peak_gib"])}
        if of.seconds_per_step:
            kinds["time"] = (of.seconds_per_step, _step_seconds(stage, run))
        for kind, (foreseen, found) in kinds.items():
            row = {"name": f"plan_error_{kind}", "value": 100 * abs(foreseen / found - 1)}
            row |= {"unit": "%", **about, "stage": stage["name"]}
            made.append(row | {"planned": foreseen, "measured": found})
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and put the rows into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--experiment", default="linearard_32k")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="random weights of the shape")
    parser.add_argument("--kill-at", type=int, help="kill the run at this step, and resume it")
    parser.add_argument("--cold", action="store_true", help="with what a machine does once")
    parser.add_argument("--quick", action="store_true", help="the tiny model, to see that it works")
    parser.add_argument("--work", type=Path, help="parent of the run folders, removed in the end")
    parser.add_argument("--out", type=Path, default=step.RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("overrides", nargs="*", help="further settings of src.train")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="whole-") as folder:
        rows = measured(options, Path(folder))
    step.write(options.out, step.load(options.out), rows)
    for row in rows:
        print(json.dumps({key: row[key] for key in row if key not in ("versions", "command")}))
    print(f"wrote {options.out}", flush=True)


if __name__ == "__main__":
    main()
