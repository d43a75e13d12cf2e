"""The short suite on SmolLM2-135M, native, scaled by 4 and restored: figures, intervals, seconds.

    python -m benchmarks.short_suite --work DIR         train +experiment=linearard_32k, evaluate
    python -m benchmarks.short_suite --run RUN_DIR      evaluate a run that is there
    python -m benchmarks.short_suite --native           only what needs no run
    python -m benchmarks.short_suite --docs             write the table of docs/evaluation.md

First the fast tasks (multiple choice, LAMBADA, bits per byte) are timed on the native model with a
process and nothing cached. Then come the native, the scaled and the restored model, on the fast
tasks, then on the whole suite, and teacher inheritance. The result file is written after each part;
what has been evaluated is cached, and what has been timed is in the result file, so a second call
goes on. `python -m src.train +experiment=linearard_32k model=smollm2_135m data=books eval=short
prepare=true` fetches all of it for a machine without a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import merging
from benchmarks.merging import commit_of, measured_before
from src.evals.restoration import MIN_ITEMS
from src.evals.suites.inheritance import InheritanceResults
from src.results import ShortResults, SuiteResults, parse

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "short_suite.json"
DOCS = ROOT / "docs" / "evaluation.md"
MODEL = "smollm2_135m"
_AVERAGES = ("average", "full_average")
_Results = TypeVar("_Results", bound=SuiteResults[Any])


def run(*arguments: str) -> int:
    """Run a command of the project; returns its exit code, 0 or 2.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", *arguments]
    print("$ python", " ".join(command[1:]), flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code not in (0, 2):
        raise subprocess.CalledProcessError(code, command)
    return code


def scored(folder: Path, kind: type[_Results], *arguments: str) -> tuple[_Results, float]:
    """What an evaluation wrote into its folder, and its seconds.

    A task that cannot be evaluated takes nothing from the others, but ends the command with code 2.
    A quick look is written beside full results of the suite where there are any.

    Raises:
        SystemExit: it wrote nothing.
    """
    before = _times(folder, kind.suite)
    began = time.perf_counter()
    run("src.evaluate", *arguments)
    seconds = time.perf_counter() - began
    written = [file for file, at in _times(folder, kind.suite).items() if before.get(file) != at]
    if not written:
        sys.exit(f"{folder / kind.suite}.json was not written")
    (file,) = written
    return parse(file.read_bytes(), kind), seconds


def _times(folder: Path, suite: str) -> dict[Path, int]:
    """When a suite's result files were written."""
    files = [folder / f"{suite}.json", *folder.glob(f"{suite}.limit_*.json")]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def trained(work: Path, model: str, overrides: Sequence[str]) -> Path:
    """The run that is evaluated, trained unless it is there."""
    folder = work / "run"
    if not (folder / "export").is_dir():
        code = run(
            "src.train",
            "+experiment=linearard_32k",
            f"model={model}",
            "data=books",
            "eval=none",
            "tracking=none",
            f"run_dir={folder}",
            *overrides,
        )
        if code:
            sys.exit("the run was refused")
    return folder


def timed(
    work: Path, model: str, settings: Sequence[str], known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Seconds of the fast tasks on the native model, as a user waits for them.

    They are measured once for a model and the settings it is asked with, a limit among them.
    """
    asked = {"suite": "short_fast", "of": model, "settings": list(settings)}
    before = [dict(row) for row in known if asked.items() <= row.items()]
    if before:
        return before
    out = work / "timed"
    command = [f"model={model}", "eval=short_fast", "nproc=1", f"out={out}", *settings]
    record, seconds = scored(out, ShortResults, *command)
    if record.models[0].seconds.keys() < record.models[0].results.keys():
        # An earlier call was cut off and left some tasks in the cache.
        record, seconds = scored(out, ShortResults, *command, "cache=false")
    (native,) = record.models
    about = {**asked, "model": "native", "limit": record.limit}
    about |= {"tasks": len(native.results)}
    rows = [{"name": "suite_seconds", "value": round(seconds, 1), "unit": "s", **about}]
    return rows + [
        {"name": "task_seconds", "value": value, "unit": "s", "task": task, **about}
        for task, value in native.seconds.items()
    ]


def figures(record: ShortResults) -> list[dict[str, Any]]:
    """Rows of a short.json: values with standard errors, scores with intervals."""
    about = {"limit": record.limit, "dtype": record.dtype}
    rows: list[dict[str, Any]] = []
    for model in record.models:
        named = {"model": model.name, **about}
        for task, found in model.results.items():
            kept = found.model_dump(include={"stderr", "n", "chance", "higher_is_better"})
            row = {"name": "value", "task": task, "value": found.value, "unit": found.metric}
            rows.append(row | kept | named)
        means = {f"category {name}": mean for name, mean in model.categories.items()}
        means |= {k: m for k in _AVERAGES if (m := getattr(model, k)) is not None}
        for label, mean in means.items():
            kept = mean.model_dump(mode="json", include={"stderr", "tasks", "higher_is_better"})
            row = {"name": "value", "task": label, "value": mean.value, "unit": "mean"}
            rows.append(row | kept | named)
    for model in record.students:
        scores = model.scores
        groups = dict(scores.tasks)
        groups |= {f"category {name}": score for name, score in scores.categories.items()}
        groups |= {k: s for k in _AVERAGES if (s := getattr(scores, k)) is not None}
        for label, score in groups.items():
            plain = score.model_dump(mode="json")
            for name, unit in (("recovery", "%"), ("gap_closed", "")):
                rows.append(
                    {
                        "name": name,
                        "task": label,
                        "value": plain[name],
                        "unit": unit,
                        "interval": plain["interval"][name],
                        "significant": score.significant,
                        "discriminating": score.discriminating,
                        "model": model.name,
                        **about,
                    }
                )
    return rows


def inherited(record: InheritanceResults) -> list[dict[str, Any]]:
    """Rows of an inheritance.json: mistakes of the native model that were repeated."""
    return [
        {
            "name": "mistakes_repeated",
            "value": model.all.same,
            "unit": "share",
            "interval": model.all.model_dump(mode="json")["interval"],
            "same_of_wrong": model.all.same_of_wrong,
            "native_wrong": model.all.native_wrong,
            "model": model.name,
            "limit": record.limit,
        }
        for model in record.models
    ]


def write(path: Path, rows: Sequence[Mapping[str, Any]], commit: str | None) -> None:
    """Write the result file."""
    merging.write(
        path,
        rows,
        commit=commit_of(commit),
        command=f"python -m src.evaluate run=RUN_DIR eval=short (of {MODEL}, linearard_32k)",
        script="python -m benchmarks.short_suite",
    )
    print(f"wrote {path}", flush=True)


def table(result: Mapping[str, Any]) -> str:
    """The document's table, and what stands below it."""
    rows = result["rows"]
    values = {(r["task"], r["model"]): r for r in rows if r["name"] == "value"}
    scored = {
        (r["task"], r["model"], r["name"]): r for r in rows if "interval" in r and "task" in r
    }
    models = list(dict.fromkeys(model for _, model in values))
    tasks = list(dict.fromkeys(task for task, _ in values))
    last = models[-1]
    lines = [
        f"Device: {result['device']}; code: {str(result['commit'])[:12]}. Values in percent (bits "
        "per byte: as they are) ± standard error; recovery and gap closed are those of "
        f"*{last}*, with 95% intervals. A dash: scaling has cost no more than noise there.",
        "",
        f"| task | n | {' | '.join(models)} | recovery | gap closed |",
        "|---|--:|" + "--:|" * (len(models) + 2),
    ]
    for task in tasks:
        cells = [_value(values.get((task, model))) for model in models]
        first = next(values[key] for key in values if key[0] == task)
        n = first.get("n", "")
        scores = [
            _score(scored.get((task, last, "recovery")), 1, "{:.1f}%"),
            _score(scored.get((task, last, "gap_closed")), 100, "{:.0f}%"),
        ]
        name = task.removeprefix("category ").replace("full_average", "average of all")
        mark = f"**{name}**" if "n" not in first else name
        lines.append(f"| {mark} | {n} | {' | '.join([*cells, *scores])} |")
    if any(r["stderr"] is None for r in values.values()):
        lines += ["", f"?: unknown, of fewer than {MIN_ITEMS} items."]
    quick = next((r["limit"] for r in rows if r.get("limit") is not None), None)
    if quick is not None:
        lines += ["", f"**A quick look: at most {quick} items of each task.**"]
    for row in rows:
        if row["name"] == "suite_seconds":
            lines += ["", f"The fast tasks took {row['value']:.0f} s on the native model."]
    repeated = [r for r in rows if r["name"] == "mistakes_repeated"]
    if repeated:
        lines += ["", "| model | native model's mistakes repeated | of its own mistakes there |"]
        lines.append("|---|--:|--:|")
        for r in repeated:
            share = "-" if r["same_of_wrong"] is None else f"{r['same_of_wrong']:.1%}"
            ends = "?" if r["interval"] is None else "{:.1%}, {:.1%}".format(*r["interval"])
            lines.append(
                f"| {r['model']} | {r['value']:.1%} [{ends}] of {r['native_wrong']} | {share} |"
            )
    return "\n".join(lines)


def _value(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    scale, digits = (100, 1) if row["higher_is_better"] else (1, 3)
    error = "?" if row["stderr"] is None else f"{scale * row['stderr']:.{digits}f}"
    return f"{scale * row['value']:.{digits}f} ± {error}"


def _score(row: Mapping[str, Any] | None, scale: float, form: str) -> str:
    if row is None or row["value"] is None:
        return "-"
    if row["interval"] is None:
        return f"{form.format(scale * row['value'])} [?]"
    value, low, high = (form.format(scale * x) for x in (row["value"], *row["interval"]))
    return f"{value} [{low}, {high}]" + ("" if row["discriminating"] else " (native at chance)")


def document(result: Path) -> None:
    """Put the table into the document."""
    # Drawing is not needed to measure.
    from benchmarks.figures import with_tables

    made = {"short_suite": table(json.loads(result.read_text(encoding="utf-8")))}
    DOCS.write_text(with_tables(DOCS.read_text(encoding="utf-8"), made), encoding="utf-8")


def main() -> None:
    """Pack, unpack, document, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a finished run folder of SmolLM2")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "short_suite")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--limit", type=int, help="items of each task, for a try")
    parser.add_argument("--model", default=MODEL, help="another one, such as tiny, for a try")
    parser.add_argument("--native", action="store_true", help="the native model alone, no run")
    parser.add_argument("--settings", nargs="*", default=[], help="further ones of src.evaluate")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("overrides", nargs="*", help="further settings of src.train")
    given = parser.parse_args()
    if given.docs:
        document(given.out)
        return
    measure(given)


def measure(given: argparse.Namespace) -> None:
    """All parts, each written when it is done."""
    settings = [*([f"limit={given.limit}"] if given.limit else []), *given.settings]
    known = measured_before(given.out, given.commit)
    rows = timed(given.work, given.model, settings, known)
    write(given.out, rows, given.commit)
    if given.native:
        out = given.work / "native"
        command = [f"model={given.model}", "eval=short", f"out={out}", *settings]
        record, _ = scored(out, ShortResults, *command)
        write(given.out, rows + figures(record), given.commit)
        check(record)
        return
    folder = given.run or trained(given.work, given.model, given.overrides)
    asked = [f"run={folder}", "stages=last", *settings]
    records = []
    for suite in ("short_fast", "short"):
        record, _ = scored(folder / "evals", ShortResults, f"eval={suite}", *asked)
        found = rows + figures(record)
        write(given.out, found, given.commit)
        records.append(record)
    repeated, _ = scored(folder / "evals", InheritanceResults, "eval=inheritance", *asked)
    write(given.out, found + inherited(repeated), given.commit)
    check(*records, repeated)


def check(*records: SuiteResults[Any]) -> None:
    """End with what could not be evaluated, now that the rest is written.

    Raises:
        SystemExit: there is such a thing.
    """
    failed = {what: why for record in records for what, why in record.failures.items()}
    if failed:
        sys.exit("\n".join(f"{what}: {why}" for what, why in failed.items()))


if __name__ == "__main__":
    main()
