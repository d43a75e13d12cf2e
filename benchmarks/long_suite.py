"""The long suite on SmolLM2-135M: native, scaled four times, and restored; timed.

    python -m benchmarks.long_suite --out FILE --commit HASH                    on one GPU
    python -m benchmarks.long_suite --run RUN_DIR --out FILE --commit HASH      with a run's models

RULER's 13 tasks at 4K and 8K (100 samples each), the needle-depth grid, questions on papers,
perplexity by position, and drift. Where there is a network,

    python -m benchmarks.long_suite --prepare

fetches and makes everything that is needed, for a machine without one that gets a copy of the
cache.

Rows: `ruler` (0 to 100, by task and length; task `mean` is over tasks), `needle_depth` (0 to 100),
`qasper_yesno`, `perplexity_last_k`, `perplexity_sliding`, `perplexity_at` (by position),
`recovery` and `gap_closed` with their intervals, drift's figures (means over layers), and
`ruler_seconds`: loading, reading and answering all of RULER's samples by the native model, which
were made before. The file is written after every part; a second call goes on, and keeps what an
earlier one has timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks import merging
from benchmarks.merging import commit_of, measured_before
from src.assets.cache import cache_dir
from src.data.config import DataConfig, PackagedText
from src.evals.cache import ResultCache
from src.evals.long import LongConfig
from src.evals.retrieval import RetrievalConfig
from src.evals.suite import Candidate, Evaluation
from src.evals.suites.drift import DriftSuite
from src.evals.suites.needle_depth import NeedleDepthSuite
from src.evals.suites.positions import PositionsResults, PositionsSuite
from src.evals.suites.ruler import RulerSuite
from src.models.config import ModelConfig
from src.models.rope import LinearScaling
from src.models.sources import check_available
from src.planning.devices import uses_cuda
from src.results import (
    DriftResults,
    Mean,
    NeedleDepthResults,
    PapersResults,
    RulerResults,
    SuiteResults,
    TaskResult,
    TaskResults,
)
from src.run_folder import RunFolder
from src.settings import strict
from src.settings.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2_135m"
# Text that scores perplexity and drift: a book that no corpus of this project trains on.
HELD_OUT = DataConfig(
    "moby_dick",
    {"kjv": PackagedText("package", "kjv")},
    held_out_sources={"moby_dick": PackagedText("package", "moby_dick")},
)


def suites(options: argparse.Namespace) -> LongConfig:
    """The parts that are run."""
    return LongConfig(
        lengths=tuple(options.lengths),
        ruler=RulerSuite(samples=options.samples),
        depth=NeedleDepthSuite(depths=tuple(float(d) for d in range(0, 101, 10)), samples=10),
        papers=True,
        positions=PositionsSuite(),
        retrieval=RetrievalConfig() if options.retrieval else None,
        limit=options.limit,
    )


def ruler_of(options: argparse.Namespace) -> RulerSuite:
    """RULER alone."""
    return RulerSuite(lengths=tuple(options.lengths), samples=options.samples, limit=options.limit)


def candidates(options: argparse.Namespace) -> tuple[Candidate, ...]:
    """Native and scaled by the run's own settings, or four times, and what its stages made."""
    if options.run is not None:
        folder = RunFolder.open(options.run)
        own = strict.load_plain(RunConfig, folder.config())
        *earlier, last = own.recipe.stages
        final = folder.export()
        exports = [(last, final)]
        if not options.last:
            exports = [*((s, folder.export(s)) for s in earlier), *exports]
        model, scaling = own.model, own.rope
    else:
        text = (ROOT / "conf" / "model" / f"{MODEL}.yaml").read_text(encoding="utf-8")
        model = strict.load_plain(ModelConfig, yaml.safe_load(text))
        scaling, exports, final = LinearScaling("linear", 4 * model.native_window), [], None
    return (
        Candidate("native", "native", model),
        Candidate("scaled", "scaled", model, scaling),
        *(
            Candidate(f"after {stage}", "final" if path == final else "stage", model, scaling, path)
            for stage, path in exports
        ),
    )


def evaluation(options: argparse.Namespace) -> Evaluation:
    """All models, in bfloat16 on a GPU, with nothing known beforehand but what this script did."""
    cuda = uses_cuda("auto")
    return Evaluation(
        candidates=candidates(options),
        data=HELD_OUT,
        device="cuda" if cuda else "cpu",
        dtype="bfloat16" if cuda else "float32",
        cache=ResultCache(options.work / "results"),
    )


def timed_rows(
    options: argparse.Namespace, whole: Evaluation, known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Ask the native model RULER's questions and nothing else, by the clock, unless that is known.

    The other models have its shape, so the same time.
    """
    ruler = ruler_of(options)
    native = whole.candidates[0]
    about = {
        "model": native.name,
        "lengths": options.lengths,
        "limit": options.limit,
        "samples": min(options.samples, options.limit or options.samples),
    }
    before = [
        dict(row)
        for row in known
        if row["name"] in ("ruler_seconds", "samples_seconds") and about.items() <= row.items()
    ]
    if before:
        return before
    alone = replace(whole, candidates=(native,))
    started = time.monotonic()
    problems = ruler.problems(alone)
    if problems:
        sys.exit("\n".join(problems))
    made = time.monotonic() - started
    # Cached answers would be read, not timed.
    found = ruler.run(replace(alone, cache=Renewed(whole.cache.folder)))
    seconds = time.monotonic() - started - made
    assert isinstance(found.record, RulerResults)
    names = found.record.models[0].results
    about["tasks"] = len({name.rpartition("_")[0] for name in names})
    return [
        {"name": "ruler_seconds", "value": seconds, "unit": "s", **about},
        {"name": "samples_seconds", "value": made, "unit": "s", **about},
    ]


class Renewed(ResultCache):
    """A cache that is written and not read."""

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """Nothing is known."""
        del key
        return None


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


def positions_rows(record: PositionsResults) -> Iterator[dict[str, Any]]:
    """Perplexities after longer contexts and by position."""
    for model in record.models:
        name = {"model": model.name}
        for kind, scores in (("last_k", model.last_k), ("sliding", model.sliding)):
            for length, figures in scores.items():
                about = name | {"length": length, "tokens": figures.tokens}
                value = figures.perplexity
                yield {"name": f"perplexity_{kind}", "value": value, "unit": "", **about}
        bins = model.by_position
        for edge, value in zip(bins.edges, bins.perplexity, strict=True):
            yield {"name": "perplexity_at", "value": value, "unit": "", "from": edge, **name}


def needle_rows(record: NeedleDepthResults) -> Iterator[dict[str, Any]]:
    """Cells of the grid."""
    for model in record.models:
        for cell in model.cells:
            about = {"model": model.name, "length": cell.length, "depth": cell.depth, "n": cell.n}
            yield {"name": "needle_depth", "value": 100 * cell.value, "unit": "%", **about}


def score_rows(record: TaskResults) -> Iterator[dict[str, Any]]:
    """Recovery and gap closed of every student, with their intervals."""
    for model in record.students:
        scores = model.scores
        groups = {**scores.tasks, **scores.categories, "average": scores.average}
        for group, score in groups.items():
            plain = score.model_dump(mode="json") if score is not None else {}
            for kind in ("recovery", "gap_closed"):
                if plain.get(kind) is not None:
                    about = {"of": group, "interval": plain["interval"][kind]}
                    value = {"value": plain[kind], "unit": "", "model": model.name}
                    yield {"name": kind, **value, **about}


def long_rows(record: SuiteResults[Any] | None) -> Iterator[dict[str, Any]]:
    """Figures of one of the suites."""
    match record:
        case RulerResults():
            yield from ruler_rows(record)
        case PapersResults():
            yield from papers_rows(record)
        case PositionsResults():
            yield from positions_rows(record)
        case NeedleDepthResults():
            yield from needle_rows(record)
    if isinstance(record, TaskResults):
        yield from score_rows(record)


def drift_rows(whole: Evaluation) -> Iterator[dict[str, Any]]:
    """Means over layers."""
    record = DriftSuite().run(whole).record
    assert isinstance(record, DriftResults)
    for path, value in DriftSuite.summary(record).items():
        _, model, _, name = path.split("/")
        yield {"name": f"drift_{name}", "value": value, "unit": "", "model": model}


def prepare(options: argparse.Namespace) -> None:
    """Fetch the weights and the texts, and make the samples."""
    whole = evaluation(options)
    check_available(whole.candidates[0].model)
    chosen = [*suites(options).suites(), DriftSuite()]
    if problems := [line for suite in chosen for line in suite.problems(whole)]:
        sys.exit("\n".join(problems))
    print(f"all that is asked is in {cache_dir()}")


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


def run(options: argparse.Namespace) -> None:
    """Everything, written as it comes."""
    whole = evaluation(options)
    check_available(whole.candidates[0].model)
    known = measured_before(options.out, options.commit)
    rows = timed_rows(options, whole, known)
    print(*rows, sep="\n", flush=True)
    write(options, rows)
    for number in range(1, len(whole.candidates) + 1):
        # Nothing is asked again, and what there is is written before the next model is asked.
        some = replace(whole, candidates=whole.candidates[:number])
        write(options, rows + list(long_rows(ruler_of(options).run(some).record)))
    records = []
    for suite in suites(options).suites():
        record = suite.run(whole).record
        assert record is not None
        records.append((suite, record))
        rows += long_rows(record)
        write(options, rows)
    rows += drift_rows(whole)
    write(options, rows)
    for suite, record in records:
        for table in suite.tables(record):
            print(f"\n{table.title}\n" + "\t".join(table.columns))
            for row in table.rows:
                print("\t".join(table.cells(row)))
        for what, why in record.failures.items():
            print(f"failed: {what}: {why}")
    print(f"wrote {options.out}", flush=True)


def main() -> None:
    """Prepare or run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/long_suite.json")
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--run", type=Path, help="a run folder whose exported models take part")
    parser.add_argument(
        "--last", action="store_true", help="of a run: its last stage's model alone"
    )
    parser.add_argument("--work", type=Path, default=Path("outputs/long_suite"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--limit", type=int, help="a quick look")
    parser.add_argument("--retrieval", action="store_true", help="native + BM25 (needs bm25s)")
    parser.add_argument("--prepare", action="store_true", help="fetch everything, ask nothing")
    options = parser.parse_args()
    if options.prepare:
        prepare(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
