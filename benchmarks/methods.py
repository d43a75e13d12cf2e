"""Every method at the same budget on SmolLM2-135M: a learning-rate search each, then one table.

    python -m benchmarks.methods --out FILE --work DIR
    python -m benchmarks.methods --out FILE --table

For each case: short runs of `--search-budget` tokens at the rates in CASES, compared by what a
stage minimises over the last half of its steps (each block is read once, so it is on text not seen;
the held-out book takes no part); then the whole budget at the best, to an exported model, with its
perplexity of the held-out book and its LAMBADA accuracy. Both stages of LinearARD are searched:
first the first one's rate, with the middle one of the second's, then the second's.

Everything is the project's own command. The result file is written after every run, and a call goes
on from it: what it has of the same budgets is not run again, and a run that was cut off is resumed
from its newest checkpoint in `--work`, whose folders CASE keep the exported models. `--quick` does
all that with the tiny model in a few minutes of a CPU, to try it out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src import results
from src.multirun import process
from src.results import PerplexityResults, ShortResults
from src.run_folder import RunFolder, whole_checkpoints, write_json

ROOT = Path(__file__).resolve().parents[1]
TRAINING = (3e-4, 1e-3, 3e-3)
DISTILLING = (1e-3, 3e-3, 1e-2)
# After a distillation the weights are near the native ones.
REPAIRING = (1e-4, 3e-4, 1e-3)
# Rates that are tried, by case and stage, in the order of the stages.
CASES: dict[str, dict[str, tuple[float, ...]]] = {
    "linearard_32k": {"ard": DISTILLING, "cpt": REPAIRING},
    "longred_c_32k": {"mix": TRAINING},
    "longred_u_32k": {"mix": TRAINING},
    "cpt_long_32k": {"cpt": TRAINING},
    "cpt_mix_32k": {"mix": TRAINING},
    "logit_kd_32k": {"kd": DISTILLING, "cpt": REPAIRING},
}
NAMED = tuple(CASES)[:5]
# A checkpoint about every half minute of an H100.
STEPS_BETWEEN_CHECKPOINTS = {"ard": 40, "kd": 40, "cpt": 40, "mix": 10}
# Four 4K blocks at once: a step's result is the same, and a GPU is filled better. A mixture would
# have four of 32K.
FURTHER = {case: ["engine.student.micro_batch=4"] for case in ("linearard_32k", "logit_kd_32k")}
# The tiny model on blocks an eighth as long: settings of every run, and by stage.
QUICK = [
    *("model=tiny", "model.native_window=1024", "rope.target_length=4096", "engine=cpu"),
    *("eval.perplexity.windows=[64,256]", "eval.perplexity.tokens=512"),
    *("eval.perplexity.headline=64", "+eval.short.limit=4"),
]
QUICK_STAGES = {
    "ard": {"tokens_per_step": 2048, "streams.short.length": 512},
    "kd": {"tokens_per_step": 2048, "streams.short.length": 512},
    "cpt": {"tokens_per_step": 4096, "streams.long.length": 4096},
    "mix": {
        "tokens_per_step": 8192,
        "slot_tokens": 4096,
        "streams.long.length": 4096,
        "streams.short.length": 128,
    },
}
QUICK_BUDGETS = {"budget": "65536", "search_budget": "32768"}

Row = dict[str, Any]
Rates = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One run of the project's command.

    Attributes:
        case: the experiment.
        rates: by stage.
        budget: tokens of all stages.
        search: whether it is a short one, of which only its losses are kept.
    """

    case: str
    rates: Rates
    budget: str
    search: bool

    @property
    def name(self) -> str:
        """Of its folder."""
        if not self.search:
            return self.case
        return "-".join([self.case, "search", *(f"{rate:g}" for rate in self.rates.values())])


@dataclass(frozen=True)
class Running:
    """A run's process, and its GPU."""

    run: Run
    gpu: str | None
    process: subprocess.Popen[bytes]
    log: Path
    began: float


def losses_of(
    rows: Sequence[Row], case: str, stage: str, rates: Rates, budget: str
) -> dict[float, Row]:
    """Rows of the searches of a budget that differ in one stage's rate from these, by that rate."""
    others = {k: v for k, v in rates.items() if k != stage}
    return {
        row["rates"][stage]: row
        for row in rows
        if (row["name"], row["case"], row.get("stage")) == ("search_loss", case, stage)
        and row["budget"] == budget
        and {k: v for k, v in row["rates"].items() if k != stage} == others
    }


def decided(
    rows: Sequence[Row], case: str, searched: Mapping[str, Sequence[float]], budget: str
) -> tuple[list[Rates], Rates | None]:
    """Rates whose search is still to be run, and once there are none, those that were best.

    One stage after the other, later ones at their middle rate until it is their turn. Searches of
    another budget than this one don't count.

    Raises:
        SystemExit: a stage diverges at every rate.
    """
    rates = {stage: tried[(len(tried) - 1) // 2] for stage, tried in searched.items()}
    for stage, tried in searched.items():
        known = losses_of(rows, case, stage, rates, budget)
        missing = [rates | {stage: rate} for rate in tried if rate not in known]
        if missing:
            return missing, None
        finite = [rate for rate in tried if known[rate]["value"] is not None]
        if not finite:
            sys.exit(f"{case}: stage {stage} diverges at every rate of {list(tried)}")
        rates[stage] = min(finite, key=lambda rate: known[rate]["value"])
    return [], rates


def last_half_loss(folder: RunFolder, stage: str) -> float | None:
    """Mean of what a stage minimises over the last half of its steps; None where it diverged."""
    losses = [e["loss/total"] for e in folder.metrics() if e["stage"] == stage]
    half = losses[len(losses) // 2 :]
    if not half or None in half:
        return None
    value = statistics.fmean(half)
    return value if math.isfinite(value) else None


def visible_gpus() -> list[str | None]:
    """This process's GPUs, as CUDA_VISIBLE_DEVICES names each; one None where there is none."""
    if not torch.cuda.is_available():
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*given.split(",")] if given else [str(i) for i in range(torch.cuda.device_count())]


class Bench:
    """Rows so far, the file they are written to, and the runs that are going on."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.began = time.monotonic()
        self.gpus = visible_gpus()
        self.running: list[Running] = []
        self.failed: dict[str, str] = {}
        self.result: dict[str, Any] = {
            "commit": given.commit,
            "search_budget": given.search_budget,
            "budget": given.budget,
            "rows": [],
        }
        if given.out.is_file():
            self.result = json.loads(given.out.read_text(encoding="utf-8"))

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return self.result["rows"]

    def run(self) -> None:
        """All cases, as far as time goes; whatever ends this ends its runs."""
        try:
            while (ready := list(self._ready())) or self.running:
                free = len(self.gpus) * self.given.jobs - len(self.running)
                for run in ready[:free]:
                    self._start(run)
                time.sleep(0.2)
                for job in [job for job in self.running if job.process.poll() is not None]:
                    self.running.remove(job)
                    self._ended(job)
                limit = self.given.time_limit
                if limit is not None and time.monotonic() - self.began > limit:
                    print(f"stopped after {limit:.0f} s; the same command goes on", flush=True)
                    return
        finally:
            process.stop([job.process for job in self.running])

    def _ready(self) -> Iterator[Run]:
        """Runs that could begin now, those of the first cases first."""
        given = self.given
        busy = {job.run.name for job in self.running} | self.failed.keys()
        for case in given.cases:
            if self.find("train_seconds", case=case, budget=given.budget):
                continue
            missing, best = decided(self.rows, case, CASES[case], given.search_budget)
            runs = [Run(case, rates, given.search_budget, search=True) for rates in missing]
            if best is not None and not given.search_only:
                runs = [Run(case, best, given.budget, search=False)]
            yield from (run for run in runs if run.name not in busy)

    def find(self, name: str, **settings: Any) -> list[Row]:
        """Rows of one name with these settings."""
        about = settings | {"name": name}
        return [row for row in self.rows if about.items() <= row.items()]

    def _start(self, run: Run) -> None:
        folder = RunFolder(self.given.work / run.name)
        typed = self._typed(run, folder)
        if folder.path.exists() and not _began_with(folder, typed):
            print(f"{folder.path} is of other settings or an earlier start: removed", flush=True)
            shutil.rmtree(folder.path)
        arguments = [f"resume={folder.path}"] if whole_checkpoints(folder) else typed
        log = self.given.work / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"$ python -m src.train {shlex.join(arguments)} >> {log}", flush=True)
        gpu = min(self.gpus, key=[job.gpu for job in self.running].count)
        with log.open("ab") as output:
            started = subprocess.Popen(
                [sys.executable, "-m", "src.train", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=None if gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
                preexec_fn=process.Binding(os.getpid(), None),
            )
        self.running.append(Running(run, gpu, started, log, time.monotonic()))

    def _typed(self, run: Run, folder: RunFolder) -> list[str]:
        """What `python -m src.train` is given for a new run."""
        every = min(STEPS_BETWEEN_CHECKPOINTS[stage] for stage in run.rates)
        return [
            f"+experiment={run.case}",
            *(() if self.given.quick else (f"model={self.given.model}",)),
            f"data={self.given.data}",
            f"budget={run.budget}",
            *(f"recipe.stages.{stage}.lr={rate:g}" for stage, rate in run.rates.items()),
            f"run_dir={folder.path}",
            "tracking=none",
            f"checkpoint.every_steps={every}",
            "checkpoint.keep=1",
            *(["eval=none"] if run.search else ["+eval.short.tasks=[lambada]"]),
            *FURTHER.get(run.case, ()),
            *(self._quick(run) if self.given.quick else ()),
            *self.given.overrides,
        ]

    def _quick(self, run: Run) -> Iterator[str]:
        for setting in QUICK:
            if not (run.search and "eval." in setting):
                yield setting
        for stage in run.rates:
            for key, value in QUICK_STAGES[stage].items():
                yield f"recipe.stages.{stage}.{key}={value}"

    def _ended(self, job: Running) -> None:
        """Take the rows of a run that has finished; remember one that has not."""
        run, folder = job.run, RunFolder(self.given.work / job.run.name)
        record = folder.record() if folder.record_file.is_file() else {"error": None}
        diverged = (record["error"] or "").startswith("FloatingPointError")
        if job.process.returncode and not (run.search and diverged):
            code = job.process.returncode
            self.failed[run.name] = f"{run.name}: exit code {code}; see {job.log}"
            print(self.failed[run.name], flush=True)
            return
        self._describe(record)
        about = {"case": run.case, "rates": run.rates, "budget": run.budget}
        about |= {"commit": self._commit(record)}
        if run.search:
            for stage in run.rates:
                row = {"name": "search_loss", "value": last_half_loss(folder, stage)}
                self.rows.append(row | {"unit": "nats", "stage": stage} | about)
        else:
            # Of models that no budget has trained.
            known = {row["case"] for row in self.find("perplexity") if "budget" not in row}
            self.rows.extend(final_rows(folder, about, known))
        write_json(self.given.out, self.result)
        # Only now: cut off before, its rows are taken from its files again.
        shutil.rmtree(folder.path if run.search else folder.checkpoints)
        print(f"{run.name} took {time.monotonic() - job.began:.0f} s", flush=True)

    def _commit(self, record: Mapping[str, Any]) -> str | None:
        """Of the code that made a run."""
        return self.given.commit or record["git_commit"]

    def _describe(self, record: Mapping[str, Any]) -> None:
        """Where it was measured and on what, from a run's record."""
        fingerprints = {
            f"{record['experiment']}/{k}": v for k, v in record["data_fingerprint"].items()
        }
        self.result |= {
            "device": record["device"],
            "versions": record["versions"],
            "commit": self._commit(record),
            "command": "python -m benchmarks.methods",
            "gpus": len(self.gpus),
            "jobs_at_once": self.given.jobs,
            "search_budget": self.given.search_budget,
            "budget": self.given.budget,
            "rates": {case: CASES[case] for case in self.given.cases},
            "data_fingerprint": self.result.get("data_fingerprint", {}) | fingerprints,
        }


def _began_with(folder: RunFolder, typed: Sequence[str]) -> bool:
    """Whether a folder holds a run of this command that can be gone on with."""
    if not folder.record_file.is_file():
        return False
    return folder.record()["command"] == shlex.join(["python", "-m", "src.train", *typed])


def final_rows(folder: RunFolder, about: Row, known: set[str]) -> Iterator[Row]:
    """Figures of a whole run; of its native and scaled model where they are not known yet."""
    record = folder.record()
    about = about | {"tokens": record["tokens"]}
    yield {"name": "train_seconds", "value": record["seconds"], "unit": "s", **about}
    for stage in record["stages"]:
        row = {"name": "stage_seconds", "value": stage["seconds"], "unit": "s"}
        yield row | {"stage": stage["name"], "steps": stage["steps"]} | about
    perplexity = results.read(folder.evals, PerplexityResults)
    short = results.read(folder.evals, ShortResults)
    assert perplexity is not None
    assert short is not None
    code = {"commit": about["commit"]}
    labels: dict[str, tuple[str, Row]] = {
        "native": ("native", code),
        "scaled": ("scaled", code),
        "final": (about["case"], about),
    }
    for model in perplexity.models:
        label, extra = labels.get(model.role, (None, {}))
        if label is not None and label not in known:
            for window, value in model.perplexity.items():
                row = {"name": "perplexity", "value": value, "unit": "", "window": window}
                yield row | extra | {"case": label}
    for model in short.models:
        label, extra = labels.get(model.role, (None, {}))
        if label is not None and label not in known:
            found = model.results["lambada"]
            row = {"name": "lambada_accuracy", "value": found.value, "unit": "share"}
            yield row | {"stderr": found.stderr, "items": found.n} | extra | {"case": label}


def table(result: Mapping[str, Any]) -> str:
    """A Markdown table of the last budget: a model a row; perplexity, LAMBADA, the chosen rates."""
    # Native and scaled model have no budget.
    rows = [r for r in result["rows"] if r.get("budget") in (None, result["budget"])]
    labels = list(dict.fromkeys(r["case"] for r in rows if r["name"] == "perplexity"))
    if not labels:
        return "No whole run has been measured yet."
    labels.sort(key=[*("native", "scaled"), *CASES].index)
    windows = sorted({r["window"] for r in rows if r["name"] == "perplexity"})
    head = ["model", "rates", *(f"{w:,}" for w in windows), "LAMBADA"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for label in labels:
        own = [r for r in rows if r.get("case") == label]
        rates = next((r["rates"] for r in own if r["name"] == "train_seconds"), {})
        values = {r["window"]: f"{r['value']:.2f}" for r in own if r["name"] == "perplexity"}
        asked = next(r for r in own if r["name"] == "lambada_accuracy")
        # A quick look has too few items for an error.
        error = "?" if asked["stderr"] is None else f"{asked['stderr']:.1%}"
        accuracy = f"{asked['value']:.1%} ± {error}"
        chosen = ", ".join(f"{rate:g}" for rate in rates.values())
        lines.append(
            f"| {label} | {chosen} | {' | '.join(values[w] for w in windows)} | {accuracy} |"
        )
    return "\n".join(lines)


def search_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of the last search budget: a stage a row, the best rate in bold."""
    lines = ["| method | stage | other rates | loss at each rate |", "|---|---|---|---|"]
    budget = result["search_budget"]
    for case, searched in CASES.items():
        sought = ("search_loss", case, budget)
        own = [r for r in result["rows"] if (r["name"], r["case"], r.get("budget")) == sought]
        for stage in searched:
            others = [
                {k: v for k, v in row["rates"].items() if k != stage}
                for row in own
                if row["stage"] == stage
            ]
            # What was searched is where more than one rate was tried.
            for fixed in [x for i, x in enumerate(others) if x not in others[:i]]:
                known = losses_of(own, case, stage, fixed, budget)
                if others.count(fixed) < 2:
                    continue
                finite = {rate: r["value"] for rate, r in known.items() if r["value"] is not None}
                best = min(finite, key=finite.__getitem__, default=None)
                cells = [
                    f"{'**' * (rate == best)}{rate:g}: {finite[rate]:.3f}{'**' * (rate == best)}"
                    if rate in finite
                    else f"{rate:g}: diverged"
                    for rate in sorted(known)
                ]
                beside = ", ".join(f"{k} {v:g}" for k, v in fixed.items())
                lines.append(f"| {case} | {stage} | {beside} | {', '.join(cells)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="the result file; gone on from")
    made.add_argument("--work", type=Path, default=Path("outputs/methods"), help="run folders")
    made.add_argument("--commit", help="commit of the code, where there is no repository")
    made.add_argument("--cases", nargs="+", default=list(NAMED), choices=list(CASES))
    made.add_argument("--budget", default="4.25M")
    made.add_argument("--search-budget", default="1M")
    made.add_argument("--search-only", action="store_true")
    made.add_argument("--jobs", type=int, default=1, help="runs at once on each GPU")
    made.add_argument("--time-limit", type=float, help="seconds after which runs are stopped")
    made.add_argument("--model", default="smollm2_135m")
    made.add_argument("--data", default="books")
    made.add_argument("--quick", action="store_true", help="the tiny model, to try this out")
    made.add_argument("--table", action="store_true", help="print the tables of --out and stop")
    made.add_argument("--overrides", nargs="*", default=[], help="further settings of src.train")
    return made


def main() -> None:
    """Run the cases, or print the table."""
    given = parser().parse_args()
    if given.quick:
        vars(given).update(QUICK_BUDGETS)
    bench = Bench(given)
    if not given.table:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        bench.run()
    print(search_table(bench.result), table(bench.result), sep="\n\n")
    if bench.failed:
        sys.exit("\n".join(bench.failed.values()))


if __name__ == "__main__":
    main()
