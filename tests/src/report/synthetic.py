"""Two hundred run folders as sweeps leave them, written from a made-up law and not measured.

    python -m tests.src.report.synthetic --to DIR     write them, to look at the dashboard

Six methods at several budgets, scalings and relation weights, three seeds each; evaluations of all
suites with intervals; runs that go on, failed or were interrupted; folders with damaged files; and
one whose name and texts try to inject a script.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from src import results
from src.results import PerplexityResults

INJECTION = '<img src=x onerror="window.injected=1"><script>window.injected=1</script>'
HOSTILE_NAME = "evil <script>window.injected=1<\N{DIVISION SLASH}script>"
MIB = 2**20
ARD_TOKENS = 2_359_296
PAPER_TOKENS = ARD_TOKENS + 2 * MIB
BUDGETS = (MIB // 2, MIB, 9 * MIB // 4, PAPER_TOKENS, 16 * MIB, 64 * MIB, 256 * MIB)
LENGTHS = (4096, 8192, 16384, 32768)
LAYERS = 32
EPOCH = datetime(2025, 11, 1, 8, 0, tzinfo=UTC)
TASKS = ("arc_easy", "hellaswag", "piqa", "lambada", "winogrande")


@dataclass(frozen=True)
class Job:
    """The settings of one synthetic run."""

    method: str = "linearard"
    experiment: str = "linearard_32k"
    sweep: str | None = None
    model: str = "llama2_7b"
    tokens: int = PAPER_TOKENS
    rope: str = "linear"
    factor: int = 8
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lr: float = 2e-5
    seed: int = 0
    state: str = "finished"

    @property
    def native_window(self) -> int:
        """Tokens the model was trained at."""
        return 4096 if self.model == "llama2_7b" else 8192

    @property
    def target(self) -> int:
        """Tokens after extension."""
        return self.factor * self.native_window


# By method: gap closed at many tokens, and tokens at which half of it is reached.
LAW = {
    "linearard": (0.97, 0.25 * MIB),
    "longred_cream": (0.93, 9 * MIB),
    "longred_uniform": (0.90, 12 * MIB),
    "cpt_long": (0.76, 20 * MIB),
    "cpt_mix": (0.84, 15 * MIB),
    "logit_kd": (0.88, 4 * MIB),
}
WEIGHTS = {
    "q": (1.0, 0.0, 0.0),
    "k": (0.0, 1.0, 0.0),
    "v": (0.0, 0.0, 1.0),
    "qk": (1.0, 1.0, 0.0),
    "qv": (1.0, 0.0, 1.0),
    "kv": (0.0, 1.0, 1.0),
    "2qkv": (2.0, 1.0, 1.0),
    "qkv": (1.0, 1.0, 1.0),
}


def jobs() -> Iterator[Job]:
    """More than two hundred jobs, the interesting ones first."""
    for method in LAW:
        own = PAPER_TOKENS if method == "linearard" else 256 * MIB
        for seed in range(3):
            job = Job(method, f"{method}_32k", sweep="methods", seed=seed)
            yield replace(job, tokens=own)
            if own != PAPER_TOKENS:
                yield job
    for weights in WEIGHTS.values():
        for seed in range(3):
            yield Job(sweep="qkv_weights", weights=weights, seed=seed)
    for tokens in BUDGETS:
        for method in ("linearard", "longred_cream", "cpt_long"):
            for seed in range(2):
                experiment = f"{method}_32k"
                yield Job(method, experiment, sweep="token_budget", tokens=tokens, seed=seed)
    for factor in (2, 4, 8, 16):
        for rope in ("linear", "abf", "yarn"):
            for method in ("linearard", "cpt_long"):
                experiment = f"{method}_32k"
                yield Job(method, experiment, sweep="scaling_factor", rope=rope, factor=factor)
    for method in LAW:
        for seed in range(2):
            experiment = f"{method}_32k"
            yield Job(method, experiment, "methods", "smollm2_135m", factor=4, lr=1e-3, seed=seed)
    for lr in (1e-5, 2e-5, 1e-4, 2e-4, 1e-3):
        for seed in range(5):
            yield Job(sweep="learning_rate", lr=lr, seed=seed)
    for state in ("running", "failed", "interrupted", "running"):
        yield Job(state=state, seed=11)
    seed = 100
    while True:
        yield Job(experiment="quickstart", model="tiny", tokens=24_576, factor=4, seed=seed)
        seed += 1


def write(outputs: Path, count: int = 200, *, faulty: bool = True) -> dict[str, int]:
    """Write `count` run folders below `outputs`; how many there are of each kind.

    Without `faulty` none is corrupt or hostile.
    """
    made = {"corrupt": 0, "hostile": 0, "unfinished": 0}
    source = jobs()
    damages = _damages()
    damaged = min(len(damages), max(1, count // 20)) if faulty else 0
    for index in range(count - damaged - faulty):
        job = next(source)
        made["unfinished"] += job.state != "finished"
        write_run(outputs / job.experiment / f"20251101-{index:06d}", job, index)
    for index in range(damaged):
        folder = outputs / "damaged" / f"case-{index}"
        write_run(folder, Job(seed=50 + index, experiment="damaged"), 1000 + index)
        damages[index](folder)
        made["corrupt"] += 1
    if not faulty:
        return made
    job = Job(seed=66, experiment=INJECTION, method=INJECTION, sweep=INJECTION, model=INJECTION)
    folder = outputs / HOSTILE_NAME
    write_run(folder, job, 2000)
    made["hostile"] += 1
    return made


def _damages() -> list[Any]:
    def cut(name: str, share: float = 0.5) -> Any:
        def damage(folder: Path) -> None:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: int(len(content) * share)])

        return damage

    def put(name: str, content: bytes) -> Any:
        return lambda folder: (folder / name).write_bytes(content)

    return [
        cut("run.json"),
        put("run.json", b""),
        put("run.json", b'{"schema": 2, "run_id": "x", "state": "finished"}'),
        put("run.json", b"\xff\xfe\x00"),
        lambda folder: (folder / "run.json").unlink(),
        put("config.yaml", b"a: ["),
        cut("metrics.jsonl", 0.97),
        put("metrics.jsonl", b"\0" * 400),
        put("evals/short.json", b'{"schema": 1}'),
        cut("evals/drift.json"),
    ]


def _closed(job: Job, noise: random.Random) -> float:
    """The share of the gap that this job closes."""
    most, half = LAW.get(job.method, (0.5, MIB))
    closed = most * job.tokens / (job.tokens + half)
    closed -= 0.05 * (math.log2(job.factor) - 1) * (1.6 if job.method == "cpt_long" else 0.5)
    closed += {"linear": 0.0, "abf": 0.015, "yarn": 0.025}.get(job.rope, 0.0)
    if job.method == "linearard":
        q, k, v = job.weights
        closed -= 0.10 * (q == 0) + 0.09 * (k == 0) + 0.13 * (v == 0)
        closed -= 0.04 * abs(math.log10(job.lr / 2e-4)) if job.sweep == "learning_rate" else 0
    return max(0.02, closed + noise.gauss(0, 0.006))


def write_run(folder: Path, job: Job, number: int) -> None:
    """Write one run folder; `number` decides its noise and when it began."""
    noise = random.Random(f"{job}-{number}")
    (folder / "evals").mkdir(parents=True)
    done = 1.0 if job.state == "finished" else 0.4
    steps = 96
    rows = _metrics(job, steps, done, noise)
    started = EPOCH + timedelta(minutes=31 * number)
    seconds = job.tokens / 21_000 * (0.1 if job.model == "smollm2_135m" else 1.0) * done
    hostile = job.method == INJECTION
    record = {
        "schema": 1,
        "state": job.state,
        "error": {"failed": "RuntimeError: CUDA out of memory"}.get(job.state),
        "started_at": started.isoformat(),
        "updated_at": (started + timedelta(seconds=seconds)).isoformat(),
        "finished_at": None if job.state == "running" else started.isoformat(),
        "seconds": seconds,
        "tokens": rows[-1]["tokens"],
        "step": rows[-1]["step"],
        "stages": [],
        "run_id": folder.name,
        "experiment": job.experiment,
        "method": job.method,
        "model": job.model,
        "seed": job.seed,
        "command": INJECTION if hostile else _command(job),
        "git_commit": "3f9c2ab81d77aa0100c2d3b5",
        "git_dirty": False,
        "device": "NVIDIA H100 80GB HBM3",
        "world_size": 2 if job.model == "llama2_7b" else 1,
        "versions": {"torch": "2.13.0"},
        "sweep": job.sweep and {"name": job.sweep, "job": f"{number}", "hash": "0"},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    config = _config(job)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    if job.state == "finished" and job.model != "tiny":
        for suite in ("perplexity", "short", "ruler", "drift", "needle_depth"):
            content = evaluation(suite, job, noise)
            (folder / "evals" / f"{suite}.json").write_text(json.dumps(content), encoding="utf-8")


def evaluation(suite: str, job: Job, noise: random.Random) -> dict[str, Any]:
    """The content of `evals/SUITE.json`."""
    return {"schema": results.SCHEMA, "suite": suite, **globals()[f"_{suite}"](job, noise)}


def _model(name: str, **figures: Any) -> dict[str, Any]:
    """A model of an evaluation; its name says its role."""
    trained = {"after ard": "stage", "after cpt": "final"}
    return {"name": name, "role": trained.get(name, name), **figures}


def _command(job: Job) -> str:
    parts = ["python -m src.train"]
    parts += [f"+experiment={job.experiment} model={job.model} seed={job.seed}"]
    parts += [f"rope={job.rope} rope.target_length={job.target}"]
    return " ".join(parts)


def _config(job: Job) -> dict[str, Any]:
    """The resolved config of a run, shortened."""
    q, k, v = job.weights
    relation = {
        "type": "relation",
        "layers": "all",
        "normalization": "own_heads",
        "temperature": 1.0,
        "weights": {"qq": q, "kk": k, "vv": v},
    }
    lora = {"type": "lora", "rank": 1024, "alpha": 2048, "dropout": 0.05}
    stage = {"lr": job.lr, "warmup_steps": 4, "final_lr_fraction": 0.9, "parameters": lora}
    short = {"short": {"length": 4096, "objective": "relation"}}
    long = {"long": {"length": job.target, "objective": "language_modeling"}}
    stages: dict[str, Any] = {"cpt": {**stage, "tokens": job.tokens, "streams": long}}
    terms: dict[str, Any] = {"language_modeling": {"type": "language_modeling", "chunk": 2048}}
    if job.method not in ("cpt_long", "cpt_mix"):
        ard = min(ARD_TOKENS, job.tokens // 2)
        stages = {"ard": {**stage, "tokens": ard, "streams": short}, **stages}
        stages["cpt"]["tokens"] = job.tokens - ard
    if job.method == "linearard":
        terms["relation"] = relation
    return {
        "experiment": job.experiment,
        "model": {
            "name": job.model,
            "family": "llama",
            "native_window": job.native_window,
            "random_weights": job.model == "tiny",
            "shape": {"layers": LAYERS, "hidden": 4096, "heads": 32, "kv_heads": 32},
            "source": {"type": "hub", "repo": "somebody/model"},
        },
        "rope": {"type": job.rope, "target_length": job.target, "factor": None},
        "recipe": {"name": job.method, "stages": stages},
        "objective": {"terms": terms, "allow_beyond_native": False},
        "optim": {
            "beta1": 0.9,
            "beta2": 0.999,
            "clip_norm": 5.0,
            "eps": 1e-8,
            "weight_decay": 0.01,
        },
        "engine": {"dtype": "bfloat16", "student": {"zero_stage": 1, "micro_batch": 1}},
        "eval": {"short": {"limit": None}, "long": {}, "perplexity": {"headline": 4096}},
        "data": {"name": "pg19", "max_tokens": 8388608},
        "tracking": {"mode": "offline", "project": "linearard-lab", "entity": None, "group": None},
        "launch": {"by": "local", "nproc": 2, "nodes": 1},
        "checkpoint": {"every_steps": 50, "keep": 2},
        "tags": ["synthetic"],
        "seed": job.seed,
        "run_dir": None,
    }


def _metrics(job: Job, steps: int, done: float, noise: random.Random) -> list[dict[str, Any]]:
    rows = []
    distils = job.method not in ("cpt_long", "cpt_mix")
    stage_one = steps * 2 // 3 if distils else 0
    per_step = job.tokens / steps
    for step in range(1, int(steps * done) + 1):
        row: dict[str, Any] = {
            "step": step,
            "tokens": round(step * per_step),
            "stage": "ard" if step <= stage_one else "cpt",
            "seconds": step * per_step / 21_000,
            "lr": job.lr * min(1.0, step / 4),
            "grad_norm": 1.2 * math.exp(-step / 30) + 0.3 + noise.random() * 0.2,
            "tokens_per_second": 21_000 + noise.gauss(0, 400),
        }
        if step <= stage_one:
            decay = 3.2 * (step + 1) ** -0.55
            layers = [
                round(decay * (0.4 + layer / LAYERS) * math.exp(noise.gauss(0, 0.08)), 5)
                for layer in range(LAYERS)
            ]
            row["loss/total"] = sum(layers) / LAYERS
            for name, share, weight in zip(
                ("qq", "kk", "vv"), (0.42, 0.4, 0.18), job.weights, strict=True
            ):
                if weight:
                    row[f"loss/relation/{name}"] = share * row["loss/total"]
            row["loss/relation/by_layer"] = layers
        else:
            row["loss/total"] = 2.1 + 1.2 * step**-0.4 + noise.gauss(0, 0.04)
            row["loss/language_modeling"] = row["loss/total"]
        rows.append(row)
    return rows


def _perplexity(job: Job, noise: random.Random) -> dict[str, Any]:
    closed = _closed(job, noise)
    windows = (512, 1024, 2048, 4096, 8192, 16384, 32768)
    native = {
        w: 8.4 - 0.35 * i if w <= job.native_window else 60.0 * i for i, w in enumerate(windows)
    }
    scaled = {w: 15.8 + 0.1 * i for i, w in enumerate(windows)}
    after = {w: 15.8 - closed * (7.5 + 0.3 * i) for i, w in enumerate(windows)}

    def model(name: str, values: dict[int, float], **more: Any) -> dict[str, Any]:
        return _model(name, perplexity={str(w): v for w, v in values.items()}, **more)

    scores = {
        str(w): {"gap_closed": closed, "recovery": 100 * native[w] / after[w]}
        for w in windows
        if w <= job.native_window
    }
    return {
        "dataset": {"name": "pg19", "documents": ["a", "b"], "fingerprint": "cd", "tokens": 262144},
        "windows": list(windows),
        "headline": 4096,
        "models": [
            model("native", native),
            model("scaled", scaled),
            model("after cpt", after, scores=scores),
        ],
    }


def _short(job: Job, noise: random.Random) -> dict[str, Any]:
    closed = _closed(job, noise)
    native = dict(zip(TASKS, (0.746, 0.760, 0.781, 0.738, 0.690), strict=True))
    scaled = dict(zip(TASKS, (0.552, 0.571, 0.664, 0.371, 0.561), strict=True))
    after = {t: scaled[t] + closed * (native[t] - scaled[t]) + noise.gauss(0, 0.004) for t in TASKS}

    def mean(values: dict[str, float]) -> float:
        return sum(values.values()) / len(values)

    def model(name: str, values: dict[str, float], **more: Any) -> dict[str, Any]:
        results = {
            task: {
                "metric": "acc",
                "value": value,
                "stderr": 0.009,
                "n": 2000,
                "higher_is_better": True,
                "chance": 0.25,
            }
            for task, value in values.items()
        }
        average = {"value": mean(values), "stderr": 0.0041}
        return _model(name, weights="00", results=results, average=average, **more)

    recovery = 100 * mean(after) / mean(native)
    gap = (mean(after) - mean(scaled)) / (mean(native) - mean(scaled))
    average = {
        "recovery": recovery,
        "gap_closed": gap,
        "recovery_vs_best": recovery / 0.985,
        "interval": {
            "recovery": [recovery - 0.8, recovery + 0.7],
            "gap_closed": [gap - 0.02, gap + 0.02],
        },
        "discriminating": True,
        "significant": gap < 0.98,
    }
    return {
        "limit": 200 if job.model == "smollm2_135m" else None,
        "models": [
            model("native", native),
            model("scaled", scaled),
            model("after cpt", after, scores={"average": average}),
        ],
    }


def _ruler(job: Job, noise: random.Random) -> dict[str, Any]:
    closed = _closed(job, noise)

    def reach(length: int, name: str) -> float:
        beyond = math.log2(length / job.native_window)
        if name == "native":
            return 0.91 - 0.02 * beyond if beyond <= 0 else 0.03
        if name == "scaled":
            return 0.41 - 0.05 * beyond
        strength = closed * (1 - 0.05 * beyond)
        return max(0.02, min(0.97, 0.41 + 0.48 * strength - 0.045 * beyond + noise.gauss(0, 0.01)))

    def model(name: str) -> dict[str, Any]:
        by_length = {str(n): {"value": reach(n, name), "stderr": 0.012} for n in LENGTHS}
        average = {"value": sum(v["value"] for v in by_length.values()) / 4, "stderr": 0.006}
        return _model(name, weights="00", average=average, by_length=by_length)

    return {
        "limit": 200 if job.model == "smollm2_135m" else None,
        "models": [model("native"), model("scaled"), model("after cpt")],
    }


def _needle_depth(job: Job, noise: random.Random) -> dict[str, Any]:
    closed = _closed(job, noise)
    cells = [
        {
            "length": length,
            "depth": 10.0 * depth,
            "n": 40,
            "value": max(0.0, min(1.0, 1.15 * closed - 0.12 * i * (1.2 - abs(depth - 5) / 5))),
        }
        for i, length in enumerate(LENGTHS)
        for depth in range(0, 11, 2)
    ]
    limit = 200 if job.model == "smollm2_135m" else None
    return {"limit": limit, "models": [_model("after cpt", cells=cells)]}


def _drift(job: Job, noise: random.Random) -> dict[str, Any]:
    closed = _closed(job, noise)

    def model(name: str, left: float) -> dict[str, Any]:
        def layers(scale: float) -> list[float]:
            return [
                scale * left * (0.4 + layer / LAYERS) * math.exp(noise.gauss(0, 0.07))
                for layer in range(LAYERS)
            ]

        return _model(
            name,
            relation_kl={"qq": layers(1.3), "kk": layers(1.2), "vv": layers(0.5)},
            attention_kl=layers(0.8),
            hidden_cosine=[1 - value for value in layers(0.1)],
            logit_kl=left,
        )

    models = [
        model("scaled", 1.0),
        model("after ard", 1.1 - closed),
        model("after cpt", 1.15 - closed),
    ]
    return {"models": models}


def perplexity_results(content: dict[str, Any]) -> PerplexityResults:
    """The record of `evals/perplexity.json` with this content."""
    return results.parse(json.dumps(content), PerplexityResults)


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--whole", action="store_true", help="none corrupt, none hostile")
    given = parser.parse_args()
    print(write(given.to, given.count, faulty=not given.whole))


if __name__ == "__main__":
    main()
