"""RULER and questions on papers on SmolLM2-135M: native, scaled by 4 and restored.

    python -m benchmarks.long_suite --work DIR         train +experiment=linearard_32k, evaluate
    python -m benchmarks.long_suite --run RUN_DIR      evaluate a run that is there

RULER's 13 tasks at 4K and 8K with 100 samples each. Rows: `ruler` (0 to 100, by task and length;
the task `mean` is over tasks) and `qasper_yesno`. The run's `evals/` has the figures of all suites
of `eval=long`. What has been evaluated is cached, so a second call goes on. `python -m
benchmarks.evaluation` times RULER.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import merging
from benchmarks.merging import commit_of
from benchmarks.short_suite import MODEL, check, scored, trained
from src.results import Mean, PapersResults, RulerResults, TaskResult

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "long_suite.json"


def ruler_rows(record: RulerResults) -> Iterator[dict[str, Any]]:
    """RULER by task and length, and the mean over tasks."""
    for model in record.models:
        name = {"model": model.name}
        for task, result in model.results.items():
            about = {"task": task.removeprefix("ruler_").rpartition("_")[0]}
            yield ruler_row(result, name | about | {"length": result.length})
        for length, mean in model.by_length.items():
            yield ruler_row(mean, name | {"task": "mean", "length": length})


def ruler_row(result: TaskResult | Mean, about: Mapping[str, Any]) -> dict[str, Any]:
    """A score with its error."""
    error = {"stderr": None if result.stderr is None else 100 * result.stderr}
    return {"name": "ruler", "value": 100 * result.value, "unit": "0 to 100", **error, **about}


def papers_rows(record: PapersResults) -> Iterator[dict[str, Any]]:
    """Accuracy on papers."""
    for model in record.models:
        for task, result in model.results.items():
            about = result.model_dump(include={"stderr", "n", "chance", "truncated"})
            value = {"value": result.value, "unit": "acc", "model": model.name}
            yield {"name": task, **value, **about}


def write(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the result file as it stands."""
    merging.write(
        options.out,
        rows,
        commit=commit_of(options.commit),
        command="python -m benchmarks.long_suite "
        f"--lengths {' '.join(map(str, options.lengths))} --samples {options.samples}",
        limit=options.limit,
    )
    print(f"wrote {options.out}", flush=True)


def table(result: Mapping[str, Any]) -> str:
    """A Markdown table: RULER's means by length and questions on papers, a model a row."""
    rows = result["rows"]
    means = {
        (r["model"], r["length"]): _with_error(r, 1)
        for r in rows
        if r["name"] == "ruler" and r["task"] == "mean"
    }
    papers = {r["model"]: _with_error(r, 100) for r in rows if r["name"] == "qasper_yesno"}
    lengths = sorted({length for _, length in means})
    head = ["model", *(f"RULER {length:,}" for length in lengths), "qasper_yesno"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for model in dict.fromkeys(model for model, _ in means):
        cells = [*(means.get((model, n), "-") for n in lengths), papers.get(model, "-")]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    if result["limit"] is not None:
        mark = f"**A quick look: at most {result['limit']} samples of each task, and papers.**"
        lines += ["", mark]
    return "\n".join(lines)


def _with_error(row: Mapping[str, Any], scale: float) -> str:
    """A value and its standard error; of too few items, that is not known."""
    error = "?" if row["stderr"] is None else f"{scale * row['stderr']:.1f}"
    return f"{scale * row['value']:.1f} ± {error}"


def measure(options: argparse.Namespace) -> None:
    """Both suites, each written when it is done."""
    folder = options.run or trained(options.work, options.model, options.overrides)
    asked = [f"run={folder}", *([f"limit={options.limit}"] if options.limit else [])]
    lengths = ",".join(map(str, options.lengths))
    settings = [f"eval.ruler.lengths=[{lengths}]", f"eval.ruler.samples={options.samples}"]
    ruler, _ = scored(folder / "evals", RulerResults, "eval=ruler", *asked, *settings)
    rows = list(ruler_rows(ruler))
    write(options, rows)
    papers, _ = scored(folder / "evals", PapersResults, "eval=papers", *asked)
    write(options, [*rows, *papers_rows(papers)])
    check(ruler, papers)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a finished run folder of SmolLM2")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "long_suite")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--limit", type=int, help="samples of each task, for a try")
    parser.add_argument("--model", default=MODEL, help="another one, such as tiny, for a try")
    parser.add_argument("overrides", nargs="*", help="further settings of src.train")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
