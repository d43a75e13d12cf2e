"""The paper's experiment on SmolLM2-135M, whole: both stages, export, perplexity up to 32K.

    python -m benchmarks.linearard_smollm2 --work DIR

The named command is run from start to end. Then the second stage is trained again from the end of
the first with other learning rates. They are compared by the mean training loss over the last half
of the stage: each block is read once, so that loss is on text the stage has not seen, and the
held-out book takes no part. Table, losses and timings go to
benchmarks/results/linearard_32k_smollm2_135m.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from src import results
from src.results import PerplexityResults

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "linearard_32k_smollm2_135m.json"
# Beside the model's own setting, model.tuning.cpt_lr.
OTHER_RATES = (2e-5, 3e-4)


def run(*arguments: str) -> None:
    """Run a command of the project, and stop where it fails."""
    command = [sys.executable, "-m", *arguments]
    print("$ python", " ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def metrics(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    """Logged steps of a stage."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for line in lines if (entry := json.loads(line))["stage"] == stage]


def branch(source: Path, target: Path, lr: float) -> None:
    """A copy of a run as it stood after its first stage, with another rate for the second."""
    step = len(metrics(source, "ard"))
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("export", "step-*", "logs", "evals", "wandb")
    )
    checkpoint = f"checkpoints/step-{step}"
    shutil.copytree(source / checkpoint, target / checkpoint)
    config = yaml.safe_load((target / "config.yaml").read_text(encoding="utf-8"))
    config["recipe"]["stages"]["cpt"]["lr"] = lr
    config |= {"run_dir": str(target), "eval": {"perplexity": None}}
    config["tracking"]["mode"] = "disabled"
    (target / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    record = json.loads((target / "run.json").read_text(encoding="utf-8"))
    interrupted = json.dumps(record | {"state": "interrupted"})
    (target / "run.json").write_text(interrupted, encoding="utf-8")


def last_half_loss(run_dir: Path) -> float:
    """Mean loss of the second half of the second stage, in nats a token."""
    losses = [entry["loss/total"] for entry in metrics(run_dir, "cpt")]
    return statistics.fmean(losses[len(losses) // 2 :])


def perplexities(run_dir: Path) -> PerplexityResults:
    """The run's evaluation."""
    record = results.read(run_dir / "evals", PerplexityResults)
    assert record is not None, f"{run_dir} was not evaluated"
    return record


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The result's rows, from the run's own files."""
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    evaluated = perplexities(run_dir)
    table: list[dict[str, Any]] = []
    for stage in record["stages"]:
        entries = metrics(run_dir, stage["name"])
        pace = statistics.median(entry["tokens_per_second"] for entry in entries)
        about = {"stage": stage["name"], "tokens": stage["tokens"], "steps": stage["steps"]}
        table += [
            {"name": "stage_seconds", "value": stage["seconds"], "unit": "s", **about},
            {"name": "tokens_per_second", "value": pace, "unit": "tokens/s, median step", **about},
            {"name": "first_loss", "value": entries[0]["loss/total"], "unit": "nats", **about},
            {"name": "last_loss", "value": entries[-1]["loss/total"], "unit": "nats", **about},
        ]
    for model in evaluated.models:
        for window, value in model.perplexity.items():
            row = {"name": "perplexity", "value": value, "unit": "", "model": model.name}
            table.append(row | {"window": window, "tokens": model.tokens[window]})
    for model in evaluated.models:
        for window, scored in model.scores.items():
            for name, value in scored.model_dump().items():
                row = {"name": name, "value": value, "unit": "", "model": model.name}
                table.append(row | {"window": window})
    return table


def loss_row(run_dir: Path) -> dict[str, Any]:
    """The figure by which learning rates of the second stage are compared."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    lr = config["recipe"]["stages"]["cpt"]["lr"]
    loss = last_half_loss(run_dir)
    print(f"second stage at {lr:g}: loss {loss:.4f} over its last half", flush=True)
    return {"name": "cpt_loss_last_half", "value": loss, "unit": "nats/token", "lr": lr}


def write(path: Path, run_dir: Path, table: list[dict[str, Any]], commit: str | None) -> None:
    """Write the result file."""
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    result = {
        "device": record["device"],
        "versions": record["versions"],
        "commit": record["git_commit"] or commit,
        "command": " ".join(w for w in record["command"].split() if not w.startswith("run_dir=")),
        "script": "python -m benchmarks.linearard_smollm2",
        "data_fingerprint": record["data_fingerprint"],
        "teacher_sha256": record["teacher_sha256"],
        "held_out": perplexities(run_dir).dataset.model_dump(mode="json"),
        "rows": table,
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


def main() -> None:
    """Run, write, then try the other rates and write again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--data", default="books")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("overrides", nargs="*", help="further settings of src.train")
    given = parser.parse_args()

    final = given.work / "final"
    run(
        "src.train",
        "+experiment=linearard_32k",
        f"model={given.model}",
        f"data={given.data}",
        "checkpoint.keep=100",
        f"run_dir={final}",
        *given.overrides,
    )
    table = [*rows(final), loss_row(final)]
    write(given.result, final, table, given.commit)
    for lr in OTHER_RATES:
        folder = given.work / f"cpt-{lr:g}"
        branch(final, folder, lr)
        run("src.train", f"resume={folder}")
        table.append(loss_row(folder))
        write(given.result, final, table, given.commit)


if __name__ == "__main__":
    main()
