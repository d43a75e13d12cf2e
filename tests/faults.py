"""Faults that the default tests must notice: one in each module.

`python -m tests.faults` puts one fault after the other into the code, runs the tests that should
notice it and restores the file. `python -m tests.faults schedule budget` takes only the modules
whose path has one of these words. Run it in a checkout of its own, without changes of yours.

It exits with 1 if a fault is not noticed, and with 2 if the text to replace is no longer there.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class FaultError(ValueError):
    """A fault that cannot be put into the code; the message says what to change in the table."""


@dataclass(frozen=True)
class Fault:
    """A change to a module that breaks it.

    Attributes:
        module: path of the file.
        before, after: the text that is replaced, once in the file, and what replaces it.
        tests: arguments of pytest: the default tests that should notice it.
    """

    module: str
    before: str
    after: str
    tests: str


FAULTS = (
    Fault(
        "kernels/cached_attention.py",
        "is_key & (at >= first)",
        "is_key & (at > first)",
        "tests/kernels/test_cached_attention.py",
    ),
    Fault(
        "kernels/cached_attention.py",
        'is_part = log > float("-inf")',
        "is_part = at < parts",
        "tests/kernels/test_cached_attention.py",
    ),
    Fault(
        "src/evals/slots.py",
        "kept[self.first_read : self.first_read + rows, :, :tokens] = new",
        "kept[:rows, :, :tokens] = new",
        "tests/src/evals/test_decoding.py tests/src/evals/test_generation.py",
    ),
    Fault(
        "src/passes/skipping.py",
        '            vars(module).pop("forward", None)',
        "            pass",
        "tests/src/passes/test_fused.py tests/src/evals/test_generation.py",
    ),
    Fault(
        "benchmarks/study/running.py",
        "if self._longest(job) <= left",
        "if True",
        "tests/benchmarks/study/test_running.py",
    ),
    Fault(
        "src/training/schedule.py",
        "return min(step * self.stage.step_tokens, self.stage.tokens)",
        "return step * self.stage.step_tokens",
        "tests/src/training/test_schedule.py",
    ),
    Fault(
        "src/training/positions.py",
        "np.arange(window - head, window, dtype=np.int64)",
        "np.arange(window - head - 1, window - 1, dtype=np.int64)",
        "tests/src/training/test_positions.py",
    ),
    Fault(
        "src/training/loop.py",
        'sums.add("loss/total", loss.detach() * stream.weight, share)',
        'sums.add("loss/total", loss.detach(), share)',
        "tests/src/test_train.py::test_a_mixture_logs_each_streams_own_loss",
    ),
    Fault(
        "src/training/sequence.py",
        "following_bt[:, :-1] = rows_bt[:, 1:]",
        "following_bt[:, :-1] = rows_bt[:, :-1]",
        "tests/src/training/test_sequence.py -k next",
    ),
    Fault(
        "src/training/run.py",
        "start = resumed.position.stage_step if resumed else 0",
        "start = 0",
        "tests/src/training/test_run.py",
    ),
    Fault(
        "src/training/checkpoint.py",
        "whole_checkpoints(folder)[:-keep]",
        "whole_checkpoints(folder)[: -keep - 1]",
        "tests/src/training/test_run.py",
    ),
    Fault(
        "src/training/launch.py",
        "output = None if rank == 0 else log",
        "output = None",
        "tests/src/training/test_launch.py -k talk",
    ),
    Fault(
        "src/training/stage.py",
        "base = load(scaled, weights=weights, sharding=sharded)",
        "base = load(native, weights=weights, sharding=sharded)",
        "tests/src/test_train.py -k 'golden or starts_at_zero'",
    ),
    Fault(
        "src/training/engine/student.py",
        'group["lr"] = lr',
        'group["lr"] = 2 * lr',
        "tests/src/test_train.py -k golden",
    ),
    Fault(
        "src/training/start.py",
        "if data.fingerprints() != folder.record()",
        "if not data.fingerprints() and folder.record()",
        "tests/src/test_train.py -k other_texts",
    ),
    Fault(
        "src/run_folder.py",
        "all_redacted(_finite(metrics)), allow_nan=False)",
        "all_redacted(metrics))",
        "tests/src/test_run_folder.py",
    ),
    Fault(
        "src/objectives/language_modeling.py",
        "(b * (t * batch.parts - 1) / batch.parts)",
        "(b * (t * batch.parts) / batch.parts)",
        "tests/src/objectives/test_language_modeling.py",
    ),
    Fault(
        "src/objectives/logit_distillation.py",
        "return _kl(teacher_logp, student_logp)",
        "return _kl(student_logp, teacher_logp)",
        "tests/src/objectives/test_logit_distillation.py",
    ),
    Fault(
        "src/objectives/longred.py",
        "ranked[: self.drift_count - 1]",
        "ranked[: self.drift_count]",
        "tests/src/objectives/test_longred.py",
    ),
    Fault(
        "src/objectives/weighted_sum.py",
        "losses.append(weight * value)",
        "losses.append(value)",
        "tests/src/objectives/test_weighted_sum.py",
    ),
    Fault(
        "src/objectives/relation.py",
        "return stacked.mean(), metrics",
        "return stacked.sum(), metrics",
        "tests/src/objectives/test_relation.py",
    ),
    Fault(
        "src/passes/skipping.py",
        "for index in range(min(stops) + 1, len(layers)):",
        "for index in range(min(stops) + 2, len(layers)):",
        "tests/src/passes",
    ),
    Fault(
        "src/models/rope/linear.py",
        "native.inverse_frequencies(length=length) / self.resolved_factor(native.window)",
        "native.inverse_frequencies(length=length) * self.resolved_factor(native.window)",
        "tests/src/models/rope/test_linear.py",
    ),
    Fault(
        "src/models/rope/yarn.py",
        "1 - interpolated + interpolated / factor",
        "interpolated + (1 - interpolated) / factor",
        "tests/src/models/rope/test_yarn.py",
    ),
    Fault(
        "src/models/adapters.py",
        "lora_alpha=parameters.alpha,",
        "lora_alpha=parameters.rank,",
        "tests/src/models/test_adapters.py",
    ),
    Fault(
        "src/data/blocks.py",
        "self.packable = -(-total // self.length)",
        "self.packable = total // self.length",
        "tests/src/data/test_blocks.py",
    ),
    Fault(
        "src/settings/budget.py",
        "_UNIT = 2**20",
        "_UNIT = 10**6",
        "tests/src/settings/test_budget.py",
    ),
    Fault(
        "src/planning/cost.py",
        "setting.trainable * (8 if width == 4 else 12)",
        "setting.trainable * 8",
        "tests/src/planning/test_cost.py",
    ),
    Fault(
        "src/multirun/composition.py",
        '_NOT_IDENTITY += ("prepare", "tags", ',
        '_NOT_IDENTITY += ("prepare", ',
        "tests/src/multirun/test_composition.py -k hash",
    ),
    Fault(
        "src/multirun/local.py",
        'if code in (0, None) and task.state == "finished":',
        "if code in (0, None):",
        "tests/src/multirun/test_local.py",
    ),
    Fault(
        "src/multirun/folder.py",
        'return "running" if _held(self.run_dir) else "interrupted"',
        'return "running"',
        "tests/src/multirun/test_folder.py",
    ),
    Fault(
        "src/multirun/driver.py",
        'if state not in ("finished", "running")]',
        'if state != "running"]',
        "tests/src/multirun/test_driver.py -k only_what_failed",
    ),
    Fault(
        "src/evals/restoration.py",
        "return _ratio(value - scaled, native - scaled)",
        "return _ratio(value - scaled, native)",
        "tests/src/evals/test_restoration.py",
    ),
    Fault(
        "src/evals/suites/perplexity.py",
        "return total / (n * (t - 1))",
        "return total / (n * t)",
        "tests/src/evals/suites/test_perplexity.py",
    ),
    Fault(
        "src/results/__init__.py",
        'TRAINED: tuple[Role, ...] = ("stage", "final")',
        'TRAINED: tuple[Role, ...] = ("final",)',
        "tests/src/test_results.py",
    ),
    Fault(
        "src/report/noise.py",
        "<= math.hypot(estimate.half, best.half)",
        "<= best.half",
        "tests/src/report/test_noise.py",
    ),
    Fault(
        "src/report/to_plotly.py",
        '"showlegend": len(chart.series) > 1,',
        '"showlegend": len(chart.series) > 2,',
        "tests/src/report/test_to_plotly.py",
    ),
    Fault(
        "src/report/metrics.py",
        'reason = "is cut off" if cut_off else',
        'reason = "is cut off" if not cut_off else',
        "tests/src/report/test_metrics.py",
    ),
    Fault(
        "src/command.py",
        "USAGE_ERROR = 2",
        "USAGE_ERROR = 3",
        "tests/src/test_sweep.py",
    ),
    Fault(
        "kernels/relation_kl/reference.py",
        "visible = visible & (i - j < visibility.window)",
        "visible = visible & (i - j <= visibility.window)",
        "tests/kernels/relation_kl/test_reference.py",
    ),
    Fault(
        "kernels/relation_kl/chunked.py",
        "gap = torch.sub(teacher, student, out=student)",
        "gap = torch.sub(student, teacher, out=student)",
        "tests/kernels/relation_kl/test_chunked.py",
    ),
    Fault(
        "src/environment.py",
        "return _pattern().sub(lambda match: _written[match.group()], text)",
        "return text",
        "tests/src/test_environment.py::test_short_values_are_replaced_where_they_stand_alone",
    ),
    Fault(
        "src/manifest.py",
        "if digest != expected:",
        "if digest['bytes'] != expected['bytes']:",
        "tests/src/data/test_corpus.py::test_any_flip_and_any_cut_of_a_file_is_noticed",
    ),
    Fault(
        "src/training/tensor_files.py",
        "end, end + part.bytes",
        "end, end + part.bytes - 1",
        "tests/src/training/test_tensor_files.py",
    ),
    Fault(
        "src/training/engine/clipping.py",
        "optimizer.found_inf = (~norm.isfinite()).float()",
        "optimizer.found_inf = norm.isfinite().float()",
        "tests/src/training/engine/test_clipping.py",
    ),
    Fault(
        "src/evals/ruler/sample.py",
        "if fields.pop(_SEAL) != _seal(fields):",
        "if not fields.pop(_SEAL):",
        "tests/src/evals/ruler/test_store.py::test_a_damaged_file_is_named_and_made_again",
    ),
    Fault(
        "src/training/watch.py",
        "value > usual + _DEVIATIONS * deviation and value > _TIMES * usual",
        "value > usual + _DEVIATIONS * deviation or value > _TIMES * usual",
        "tests/src/training/test_watch.py",
    ),
    Fault(
        "src/training/repeats.py",
        "round(repeats.shortest * (repeats.longest / repeats.shortest) ** unit)",
        "round(repeats.longest ** unit)",
        "tests/src/training/test_repeats.py",
    ),
    Fault(
        "src/models/merging.py",
        "np.interp(np.arange(layers), depths, self.layers)",
        "np.interp(np.arange(layers), depths, self.layers[::-1])",
        "tests/src/models/test_merging.py",
    ),
    Fault(
        "src/data/mixing.py",
        "max(blocks.most_segments for blocks in self._list)",
        "min(blocks.most_segments for blocks in self._list)",
        "tests/src/data/test_mixing.py",
    ),
)


def put_into_code(fault: Fault) -> str:
    """Put a fault into its module; returns the module's text without it.

    Raises:
        FaultError: the module is gone, or does not hold the text exactly once.
    """
    file = ROOT / fault.module
    if not file.is_file():
        raise FaultError(f"{fault.module}: no such file; name its new place in FAULTS")
    text = file.read_text(encoding="utf-8")
    if (times := text.count(fault.before)) != 1:
        raise FaultError(
            f"{fault.module}: the text {fault.before!r} is there {times} times; give one in FAULTS "
            "that is there once"
        )
    file.write_text(text.replace(fault.before, fault.after), encoding="utf-8")
    return text


def noticed_by(fault: Fault) -> list[str]:
    """The first test that fails with the fault in the code; empty if none does."""
    whole = put_into_code(fault)
    try:
        command = [sys.executable, "-m", "pytest", "-x", "--durations=0", *shlex.split(fault.tests)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        (ROOT / fault.module).write_text(whole, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise FaultError(f"{fault.module}: pytest could not run {fault.tests}:\n{done.stdout}")
    lines = done.stdout.splitlines()
    return [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]


def main(words: Sequence[str]) -> int:
    """Print a table row for each fault; 1 if one was not noticed, 2 if one could not be made."""
    chosen = [f for f in FAULTS if not words or any(word in f.module for word in words)]
    missed = 0
    print("| module | instead of | stands | noticed by |\n|---|---|---|---|", flush=True)
    try:
        for fault in chosen:
            found = noticed_by(fault)
            missed += not found
            before, after = (text.strip() for text in (fault.before, fault.after))
            test = found[0] if found else f"NOTHING in {fault.tests}"
            print(f"| {fault.module} | `{before}` | `{after}` | {test} |", flush=True)
    except FaultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{len(chosen) - missed} of {len(chosen)} faults were noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
