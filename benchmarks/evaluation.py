"""Seconds of RULER: 13 tasks at each length, loading, reading and answering.

    python -m benchmarks.evaluation                      SmolLM2-135M, 100 samples, 4K and 8K
    python -m benchmarks.evaluation --cases fused,replayed     several ways, in one process
    python -m benchmarks.evaluation --before             and by a plain loop as well
    python -m benchmarks.evaluation --random-weights     without the model's files, texts, tokenizer
    python -m benchmarks.evaluation --quick              a smoke run: the tiny model

Samples are made before the clock starts; `sample_seconds` is what that took (next to nothing where
the cache has them). With `--random-weights` there are none: prompts are random
tokens, as long as the samples of each task, and every answer has all tokens that its task allows,
which no real model takes longer than; nothing is tokenized.

Rows: `ruler_seconds` by `model`, `T` (the longest length) and `case`:

    fused      the evaluation as `fused_kernels: auto` runs it in bfloat16 on a GPU
    replayed   `fused_kernels: false`: keys and values of fixed size, tokens replayed from a CUDA
               graph, transformers' own norms, RoPE and gates
    plain      a cache that grows, and tokens that are launched kernel by kernel

A row's `parts` says where its seconds went, `score` is the mean over all samples (0 to 100). The
first case of a process also sets up what the others find, such as compiled kernels. `equal_answers`
and `equal_scores` are the shares of samples that have the same answer, or score, as in the first
case. Rows are put into the result file as they come, each in place of an earlier one of its name,
model, T and case.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import Tensor
from transformers import DynamicCache

from benchmarks.merging import commit_of, merge
from src.data.config import DataConfig, PackagedText
from src.evals import decoding
from src.evals.cache import ResultCache
from src.evals.generation import KeptRows, continued
from src.evals.losses import SplitModel
from src.evals.ruler.tasks import TASKS
from src.evals.seconds import SECONDS
from src.evals.suite import Candidate, Evaluation
from src.evals.suites.ruler import RulerSuite
from src.models.byte_tokenizer import byte_tokenizer
from src.models.config import ModelConfig
from src.planning.devices import uses_cuda
from src.progress import meter
from src.settings import strict

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "evaluation.json"
# RULER reads no held-out text, but an evaluation has some.
DATA = DataConfig("moby_dick", {"moby_dick": PackagedText("package", "moby_dick")})


class PlainRows:
    """What `decoding.Rows` does, for models of full attention, without its means."""

    is_ahead, held = False, 0

    def __init__(self, model: Any, size: tuple[int, int], room: int, **_: Any) -> None:
        del size, room
        self._model = model

    def fits(self, rows: int, tokens: int, room: int) -> bool:
        """Every batch has rows of its own."""
        del rows, tokens, room
        return False

    def read(self, prompts: Sequence[Sequence[int]], read_at_once: int) -> None:
        """Read prompts and write the first token of each."""
        del read_at_once
        model, device = self._model, self._model.device
        longest = max(len(row) for row in prompts)
        self._lengths_b1 = torch.tensor([[len(row)] for row in prompts], device=device)
        ids_bt = torch.tensor(
            [[*row, *[0] * (longest - len(row))] for row in prompts], device=device
        )
        self._cache = DynamicCache()
        split = SplitModel.of(model)
        hidden_bth = split.decoder(
            input_ids=ids_bt, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        ends_bh = hidden_bth[torch.arange(len(prompts), device=device), self._lengths_b1[:, 0] - 1]
        self.written_bn = split.logits(ends_bh).argmax(-1)[:, None]
        positions_bs = torch.arange(longest, device=device).expand(len(prompts), -1)
        self._positions_bs = positions_bs.masked_fill(
            positions_bs >= self._lengths_b1, torch.iinfo(torch.long).max
        )

    def written(self, tokens: int) -> Callable[[], list[list[int]]]:
        """The first tokens of all answers."""
        return self.written_bn[:, :tokens].tolist

    def step(self) -> None:
        """Write the next token of every row."""
        at_b1 = self._lengths_b1 + self.written_bn.shape[1] - 1
        self._positions_bs = torch.cat([self._positions_bs, at_b1], dim=1)
        logits: Tensor = self._model(
            input_ids=self.written_bn[:, -1:],
            position_ids=at_b1,
            attention_mask=(self._positions_bs <= at_b1)[:, None, None, :],
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self.written_bn = torch.cat([self.written_bn, logits[:, -1:].argmax(-1)], dim=1)

    def keep(self, rows: Sequence[int]) -> bool:
        """Drop all other rows; returns whether there were any."""
        if len(rows) == len(self.written_bn):
            return False
        chosen = torch.tensor(rows, device=self.written_bn.device)
        self._cache.batch_select_indices(chosen)
        for name in ("_positions_bs", "_lengths_b1", "written_bn"):
            setattr(self, name, getattr(self, name)[chosen])
        return True


Answer = tuple[str, float | None]
"""An answer, and its score from 0 to 1 if it has one."""
# Answers all questions, with fused kernels or without.
Ask = Callable[[bool], list[Answer]]


def of_samples(evaluation: Evaluation, ruler: RulerSuite) -> Ask:
    """Answers to RULER's samples, which are made first."""
    if problems := ruler.problems(evaluation):
        raise SystemExit("\n".join(problems))

    def ask(fused: bool) -> list[Answer]:
        outcome = ruler.run(replace(evaluation, kept={}, fused=fused))
        assert outcome.record is not None
        if outcome.record.failures:
            raise SystemExit(str(outcome.record.failures))
        return [(item["answer"], item["score"]) for item in outcome.items]

    return ask


def of_random_tokens(evaluation: Evaluation, lengths: Sequence[int], samples: int) -> Ask:
    """Answers to random tokens, a batch of samples for each task and length."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.eos_token = None

    def tasks() -> Iterator[tuple[list[list[int]], int]]:
        draw = random.Random(0)
        for length in sorted(lengths, reverse=True):
            for task in TASKS.values():
                prompt = length - task.max_new_tokens
                yield (
                    [draw.choices(range(256), k=prompt) for _ in range(samples)],
                    (task.max_new_tokens),
                )

    asked = list(tasks())

    def ask(fused: bool) -> list[Answer]:
        answers: list[str] = []
        kept = KeptRows()
        whole = replace(evaluation, kept={})
        with (
            whole.loaded(whole.candidates[0]) as network,
            meter("answering", len(asked) * samples) as progress,
        ):
            # Nothing ends an answer.
            setattr(network, "generation_config", None)  # noqa: B010  # typed as never None
            for prompts, room in asked:
                answers += continued(
                    network,
                    tokenizer,
                    prompts,
                    [room] * samples,
                    batch_tokens="auto",
                    enough=None,
                    progress=progress,
                    kept=kept,
                    fused=fused,
                )
        return [(answer, None) for answer in answers]

    return ask


def measure(options: argparse.Namespace, command: str) -> None:
    """Measure all cases, and write their rows as they come."""
    text = (ROOT / "conf" / "model" / f"{options.model}.yaml").read_text(encoding="utf-8")
    model = strict.load_plain(ModelConfig, yaml.safe_load(text))
    if options.random_weights:
        model = replace(model, random_weights=True)
    cuda = uses_cuda("auto")
    evaluation = Evaluation(
        candidates=(Candidate("native", "native", model),),
        data=DATA,
        device="cuda" if cuda else "cpu",
        dtype=options.dtype or ("bfloat16" if cuda else "float32"),
        cache=ResultCache(None),
    )
    began = time.monotonic()
    if options.random_weights:
        ask = of_random_tokens(evaluation, options.lengths, options.samples)
    else:
        ask = of_samples(
            evaluation, RulerSuite(lengths=tuple(options.lengths), samples=options.samples)
        )
    making = time.monotonic() - began
    about = {
        "model": options.model,
        "T": max(options.lengths),
        "lengths": options.lengths,
        "samples": options.samples,
        "dtype": evaluation.dtype,
        "weights": "random" if options.random_weights else "own",
    }
    rows: list[dict[str, Any]] = []
    answers: dict[str, list[Answer]] = {}

    def add(row: dict[str, Any]) -> None:
        rows.append({**row, **about})
        merge(options.out, rows, commit=commit_of(options.commit), command=command)
        print(rows[-1], flush=True)

    cases = options.cases or ["fused" if evaluation.dtype == "bfloat16" and cuda else "replayed"]
    for case in [*cases, "plain"] if options.before else cases:
        plain = patch.object(decoding, "Rows", PlainRows) if case == "plain" else nullcontext()
        with plain:
            SECONDS.parts.clear()
            started = time.monotonic()
            with SECONDS.of("the rest"):
                answers[case] = ask(case == "fused")
            seconds = time.monotonic() - started
        parts = {name: round(spent, 2) for name, spent in SECONDS.parts.items()}
        scores = [score for _, score in answers[case] if score is not None]
        row = {"name": "ruler_seconds", "value": seconds, "unit": "s", "case": case}
        if scores:
            row["score"] = 100 * sum(scores) / len(scores)
        add({**row, "sample_seconds": round(making, 2), "parts": parts})
    first, *others = answers
    # Random tokens have no references, and so no scores.
    compared = ("equal_answers", "equal_scores")[: 1 if options.random_weights else 2]
    for case in others:
        pairs = list(zip(answers[first], answers[case], strict=True))
        for part, name in enumerate(compared):
            share = sum(one[part] == other[part] for one, other in pairs) / len(pairs)
            add({"name": name, "value": share, "unit": "share", "case": f"{first}, {case}"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2_135m", help="a name in conf/model")
    parser.add_argument("--samples", type=int, default=100, help="of each task and length")
    parser.add_argument(
        "--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[4096, 8192]
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--random-weights", action="store_true", help="download nothing")
    parser.add_argument(
        "--cases",
        type=lambda text: text.split(","),
        default=[],
        help="fused, replayed, plain; by default fused in bfloat16 on a GPU, else replayed",
    )
    parser.add_argument("--before", action="store_true", help="the case plain, too")
    parser.add_argument("--quick", action="store_true", help="the tiny model, to see that it works")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.samples, options.lengths = "tiny", 2, [256]
        options.random_weights, options.cases, options.before = True, ["replayed"], True
    if unknown := set(options.cases) - {"fused", "replayed", "plain"}:
        parser.error(f"--cases: {', '.join(unknown)}; allowed: fused, replayed, plain")
    lengths = ",".join(map(str, options.lengths))
    flags = [f"--{n.replace('_', '-')}" for n in ("random_weights", "before") if vars(options)[n]]
    flags += [f"--cases {','.join(options.cases)}"] if options.cases else []
    command = f"--model {options.model} --samples {options.samples} --lengths {lengths}"
    measure(options, " ".join(["python -m benchmarks.evaluation", command, *flags]))
    print(f"wrote {options.out}", flush=True)


if __name__ == "__main__":
    main()
