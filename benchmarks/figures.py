"""Pictures and tables of the documents, made from benchmarks/results/*.json.

python -m benchmarks.figures                       docs/images/*.png and the documents' tables
python -m benchmarks.figures --check               only say whether the tables are up to date
python -m benchmarks.figures --kernel kernel.json  pictures beside a result of kernels.bench
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import long_suite, plans, short_suite
from src.report.charts import DASHES, GRAY, LIGHT_GRAY, Axis, Chart, Point, Series, token_ticks
from src.report.groups import grouped
from src.report.tables import Cell, Column, Row, Section, Table, markdown
from src.report.to_matplotlib import pictures

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
SIZE = (7.6, 4.2)  # inches

Picture = tuple[Chart, str]  # a chart and its title
Rows = dict[str, list[Mapping[str, Any]]]


@dataclass(frozen=True)
class Bars:
    """A bar for each row, with a label above it."""

    name: str
    slot: int
    rows: Sequence[Mapping[str, Any]]
    heights: Sequence[float]
    labels: Sequence[str]


def load(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _markdown(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column and those that say so are texts."""
    first, *others = columns
    made = [Column(str(first), "text")]
    made += [column if isinstance(column, Column) else Column(column) for column in others]
    lines = tuple(Row(tuple(map(Cell, texts))) for texts in rows)
    return markdown(Table(tuple(made), (Section(lines),))).rstrip()


def kernel_table(result: Mapping[str, Any]) -> str:
    """A Markdown table: a shape a row, times in milliseconds and what they are compared with."""
    lines = [line for line in result["rows"] if "H" in line]
    shapes = grouped(lines, lambda line: tuple(line[axis] for axis in "BHTD"))
    columns = ["[B, H, T, D]", "forward (of 2 units)", "backward (of 4 units)", "both"]
    columns += ["SDPA by cuDNN, both", "ratio", "SDPA by flash"]
    rows = []
    for shape, kin in sorted(shapes.items()):
        measured = {line["name"]: line for line in kin}
        if sdpa := measured.get("fwd_bwd_time_over_sdpa"):
            parts = [measured.get(f"{part}_fraction_of_floor") for part in ("fwd", "bwd")]
            cells = [f"{p['milliseconds']:.3f} ({p['value']:.2f})" if p else "" for p in parts]
            both, cudnn, flash = (
                f"{sdpa[key]:.3f}"
                for key in ("milliseconds", "cudnn_milliseconds", "flash_milliseconds")
            )
            ratio = f"{sdpa['value']:.2f}"
            rows.append((", ".join(map(str, shape)), *cells, both, cudnn, ratio, flash))
    return _markdown(columns, rows)


def step_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of steps: a row for each model, case and number of GPUs."""
    columns = ["model", "case", "GPUs", "tokens", "tokens/s", "of the dense rate"]
    columns += ["peak GiB a GPU (planned)", "step s (planned)"]
    mfu = {
        (r["model"], r["case"], r["ranks"], r["device"]): f"{r['value']:.0%}"
        for r in result["rows"]
        if r["name"] == "mfu"
    }
    rows = [
        (
            m["settings"]["model"],
            m["case"],
            f"{m['ranks']} {_card(m)}",
            f"{m['settings']['tokens']:,}",
            f"{m['tokens_per_second']:,.0f}",
            mfu.get((m["settings"]["model"], m["case"], m["ranks"], m["device"]), ""),
            f"{m['peak_gib']:.1f} ({m['planned_gib']:.1f})",
            f"{m['step_seconds']:.3g} ({m['planned_seconds']:.3g})",
        )
        for m in result["measurements"]
        if m["kind"] in ("ard", "cpt")
    ]
    return _markdown(columns, rows)


def profile_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of milliseconds of a step: a kind of kernel a row, a case a column."""
    cases = [row for row in result["rows"] if row["name"] == "step_milliseconds"]
    heads = [f"{row['model']}, {row['T']:,} tokens, `{row['case']}`" for row in cases]
    largest = {
        kind: max(row["kinds"].get(kind, 0.0) for row in cases)
        for kind in dict.fromkeys(kind for row in cases for kind in row["kinds"])
    }
    lines = [
        [kind, *(f"{row['kinds'][kind]:.1f}" if kind in row["kinds"] else "-" for row in cases)]
        for kind in sorted(largest, key=lambda kind: -largest[kind])
    ]
    lines.append(["a step", *(f"{row['value']:.1f}" for row in cases)])
    head = f"| milliseconds | {' | '.join(heads)} |\n|---|{'---:|' * len(cases)}"
    return "\n".join([head, *(f"| {' | '.join(line)} |" for line in lines)])


def ruler_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of RULER's seconds: a case a row, with its largest parts."""
    parts = ("reading prompts", "writing answers", "loading models", "tokenizing prompts")
    rows = [
        (
            f"`{row['case']}`",
            f"{row['value']:.1f}",
            *(f"{row['parts'].get(part, 0):.1f}" for part in parts),
            f"{row['score']:.2f}" if "score" in row else "-",
        )
        for row in result["rows"]
        if row["name"] == "ruler_seconds"
    ]
    return _markdown(["case", "seconds", *parts, "mean score"], rows)


def with_tables(text: str, tables: Mapping[str, str], mark: str = "table") -> str:
    """The text with every `<!-- MARK: NAME -->` ... `<!-- end -->` filled anew.

    Raises:
        ValueError: a table that has no place, or several.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- {mark}: {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the document has {count} places for table {name!r}, not 1")
    return text


def step_picture(result: Mapping[str, Any]) -> Picture:
    """Peak memory against speed of each case on one GPU, measured and planned."""
    on_one = (m for m in result["measurements"] if m["kind"] == "ard" and _is_whole(m))
    planned_too = [m for m in on_one if m["planned_seconds"]]
    # One model on one kind of card: others are of another size. The table has them all.
    of = statistics.mode((m["settings"]["model"], m["device"]) for m in planned_too)
    cases = [m for m in planned_too if (m["settings"]["model"], m["device"]) == of]
    measured = [Point(m["tokens_per_second"], m["peak_gib"], label=m["case"]) for m in cases]
    planned = [Point(_planned_speed(m), m["planned_gib"]) for m in cases]
    chart = Chart(
        Axis("tokens a second", from_zero=True),
        Axis("peak memory a rank (GiB)", from_zero=True),
        (
            Series("measured", tuple(measured), mode="dots"),
            Series("planned", tuple(planned), mode="dots", symbol="circle-open"),
        ),
    )
    return chart, f"A step of attention restoration, {', '.join(of)}"


def _card(measured: Mapping[str, Any]) -> str:
    """A device's short name: H200 of NVIDIA H200."""
    return measured["device"].removeprefix("NVIDIA ").split()[0]


def _is_whole(measured: Mapping[str, Any]) -> bool:
    """Whether it was one GPU with all weights."""
    return measured["ranks"] == 1 and measured["settings"]["zero_stages"][0] < 3


def _planned_speed(measured: Mapping[str, Any]) -> float:
    return measured["settings"]["tokens_per_step"] / measured["planned_seconds"]


def kernel_pictures(result: Mapping[str, Any]) -> dict[str, Picture]:
    """Pictures of what `python -m kernels.bench` measured, by name: those it has rows for.

    Raises:
        ValueError: it has rows for none.
    """
    rows: Rows = grouped(result["rows"], lambda row: row["name"])
    makers = {
        "fwd_bwd_time_over_sdpa": ("kernel_time", _time_beside_attention),
        "fwd_fraction_of_floor": ("kernel_floor", _fractions_of_floor),
        "extra_bytes_per_token": ("kernel_memory", _memory_by_tokens),
        "chunked_speedup_over_dense": ("kernel_time", _time_beside_dense),
        "chunked_memory_over_dense": ("kernel_memory", _memory_beside_dense),
    }
    if not rows.keys() & makers.keys():
        raise ValueError(f"no rows to draw: pictures are of {', '.join(makers)}")
    return {
        name: make(rows, result["device"]) for row, (name, make) in makers.items() if row in rows
    }


def _time_beside_attention(rows: Rows, device: str) -> Picture:
    """As multiples of the faster attention's time; labels are milliseconds."""
    measured = rows["fwd_bwd_time_over_sdpa"]

    def bars_of(name: str, slot: int, key: str) -> Bars:
        times = [row[key] for row in measured]
        heights = [row[key] / row["milliseconds"] * row["value"] for row in measured]
        return Bars(name, slot, measured, heights, [f"{_short(time)} ms" for time in times])

    bars = [
        bars_of("relation KL", 0, "milliseconds"),
        bars_of("attention by cuDNN", GRAY, "cudnn_milliseconds"),
        bars_of("attention by flash", LIGHT_GRAY, "flash_milliseconds"),
    ]
    chart = _by_shape("time, as a multiple of cuDNN's attention", bars)
    return chart, f"Relation KL beside attention, forward and backward, {device}"


def _fractions_of_floor(rows: Rows, device: str) -> Picture:
    forward, backward = rows["fwd_fraction_of_floor"], rows["bwd_fraction_of_floor"]

    def bars_of(name: str, slot: int, measured: Sequence[Mapping[str, Any]]) -> Bars:
        shares = [row["value"] for row in measured]
        return Bars(name, slot, measured, shares, [f"{share:.0%}" for share in shares])

    bars = [
        bars_of("forward, 2 causal products", 0, forward),
        bars_of("backward, 4 causal products", GRAY, backward),
    ]
    chart = _by_shape("share of a large matrix product's rate", bars)
    return chart, f"Relation KL beside one large matrix product, {device}"


def _memory_by_tokens(rows: Rows, device: str) -> Picture:
    measured = rows["extra_bytes_per_token"]
    names = {"extra_bytes_per_token": "relation KL", "dense_bytes_per_token": "dense torch"}
    series = tuple(
        Series(
            name,
            tuple(
                Point(row["T"], row["value"] / 1000, label=f"{_short(row['value'] / 1000)} KB")
                for row in rows[key]
            ),
            slot,
        )
        for slot, (key, name) in zip((0, GRAY), names.items(), strict=True)
        if key in rows
    )
    x = Axis("tokens", log=True, ticks=token_ticks([row["T"] for row in measured]))
    # Dense torch needs memory by the square of the tokens, a thousand times ours.
    y = Axis("kilobytes a token", log=len(series) > 1, from_zero=len(series) == 1)
    missing = "" if len(series) > 1 else "\n(dense torch was not measured)"
    title = f"Memory beyond the inputs, one head of {measured[0]['D']}, {device}{missing}"
    return Chart(x, y, series), title


def _time_beside_dense(rows: Rows, device: str) -> Picture:
    measured = rows["chunked_speedup_over_dense"]
    chart = _beside_dense(measured, "milliseconds", 1, "time (milliseconds)")
    return chart, f"Relation KL beside dense torch, forward and backward, {device}"


def _memory_beside_dense(rows: Rows, device: str) -> Picture:
    measured = rows["chunked_memory_over_dense"]
    chart = _beside_dense(measured, "bytes", 1e6, "memory (megabytes)")
    return chart, f"Memory beyond the inputs, {device}"


def _beside_dense(
    measured: Sequence[Mapping[str, Any]], key: str, unit: float, title: str
) -> Chart:
    ours, dense = ([row[column] / unit for row in measured] for column in (key, f"dense_{key}"))
    bars = [
        Bars("relation KL, in chunks", 0, measured, ours, list(map(_short, ours))),
        Bars("dense torch", GRAY, measured, dense, list(map(_short, dense))),
    ]
    return _by_shape(title, bars)


def _by_shape(title: str, bars: Sequence[Bars]) -> Chart:
    """A group of bars for each shape."""
    shapes = tuple(dict.fromkeys(_shape(row) for one in bars for row in one.rows))
    series = []
    for one in bars:
        points = tuple(
            Point(shapes.index(_shape(row)), height, label=label)
            for row, height, label in zip(one.rows, one.heights, one.labels, strict=True)
        )
        series.append(Series(one.name, points, one.slot, mode="bars"))
    return Chart(Axis("", categories=shapes), Axis(title), tuple(series))


def _shape(row: Mapping[str, Any]) -> str:
    return f"{row['T']:,} tokens\n{row['H']} head{'s' * (row['H'] > 1)} of {row['D']}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def curve_picture(result: Mapping[str, Any]) -> Picture:
    """Loss by step of the public reference's loop and of ours."""
    names = {"reference": f"the public reference ({result['kernels']} KL)", "ours": "ours"}
    losses = [row for row in result["rows"] if row["name"] == "loss"]
    points = {
        side: tuple(Point(row["step"], row["value"]) for row in losses if row["side"] == side)
        for side in names
    }
    series = tuple(
        Series(name, points[side], slot, DASHES[2 * slot])
        for slot, (side, name) in enumerate(names.items())
    )
    chart = Chart(Axis("optimizer step"), Axis("relation loss (nats)"), series)
    return chart, f"The reference's loop, step by step: {result['model']}, {result['dtype']}"


def draw(picture: Picture, target: Path) -> None:
    """Write a picture as PNG."""
    target.write_bytes(pictures(*picture, ["png"], SIZE)["png"])


def documents() -> dict[Path, dict[str, str]]:
    """Documents with tables that come from result files, and those tables."""
    return {
        ROOT / "README.md": {"gpus": plans.table()},
        short_suite.DOCS: {"short_suite": short_suite.table(load("short_suite"))},
        ROOT / "docs" / "evaluation_long.md": {
            "long_suite": long_suite.table(load("long_suite")),
            "ruler_seconds": ruler_table(load("evaluation")),
        },
        ROOT / "kernels" / "relation_kl" / "README.md": {"kernel": kernel_table(load("kernel"))},
        ROOT / "docs" / "scale.md": {
            "step": step_table(load("step")),
            "several": plans.several(),
            "profile": profile_table(load("profile")),
        },
    }


def draw_kernel(path: Path) -> None:
    """Draw a result of `python -m kernels.bench` beside its file; say what has been written."""
    try:
        figures = kernel_pictures(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: --kernel {path}: {error!r}; give a file that kernels.bench wrote")
    for name, figure in figures.items():
        target = path.with_name(f"{name}.png")
        draw(figure, target)
        print(target)


def main() -> None:
    """Write pictures and tables, or check the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="a result of kernels.bench")
    parsed = parser.parse_args()
    if parsed.kernel is not None:
        draw_kernel(parsed.kernel)
        return
    for path, tables in documents().items():
        text = path.read_text(encoding="utf-8")
        filled = with_tables(text, tables)
        if filled != text and parsed.check:
            sys.exit(f"{path.relative_to(ROOT)}: tables differ from benchmarks/results")
        path.write_text(filled, encoding="utf-8")
    if parsed.check:
        return
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, figure in {
        "step": step_picture(load("step")),
        **kernel_pictures(load("kernel")),
        "kernel_memory_cpu": kernel_pictures(load("kernel_cpu"))["kernel_memory"],
        "reference_curve": curve_picture(load("reference_curve")),
    }.items():
        draw(figure, IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
