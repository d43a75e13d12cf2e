"""Pictures and tables of the documents, made from benchmarks/results/*.json.

    python -m benchmarks.figures                       docs/images/*.png and the documents' tables
    python -m benchmarks.figures --check               only say whether the tables are up to date
    python -m benchmarks.figures --kernel kernel.json  pictures beside a result of kernels.bench

Pictures need a Chromium on the path.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from benchmarks import long_suite, methods
from src.report import plots
from src.report.files import PerplexityReport

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
METHODS = ROOT / "docs" / "methods.md"
LONG = ROOT / "docs" / "evaluation_long.md"
NAMED_RUN = "linearard_32k_smollm2_135m"
SIZE = (760, 420)
GREY, LIGHT_GREY = "#8a909c", "#c9cdd5"

Rows = dict[str, list[Mapping[str, Any]]]


def load(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def by_model(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[int, float]]:
    """Values of the rows of one name, by model and window."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["name"] == name:
            found.setdefault(row["model"], {})[row["window"]] = row["value"]
    return found


def perplexity_table(result: Mapping[str, Any]) -> str:
    """A Markdown table: a model a row, a window a column."""
    perplexity = by_model(result["rows"], "perplexity")
    windows = sorted(next(iter(perplexity.values())))
    lines = [
        "| model | " + " | ".join(f"{w:,}" for w in windows) + " |",
        "|---|" + "---:|" * len(windows),
    ]
    for model, values in perplexity.items():
        lines.append(f"| {model} | " + " | ".join(f"{values[w]:.1f}" for w in windows) + " |")
    return "\n".join(lines)


def stage_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of the stages: tokens, steps, seconds, pace, losses."""
    stages: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        if "stage" in row:
            stages.setdefault(row["stage"], {"tokens": row["tokens"], "steps": row["steps"]})
            stages[row["stage"]][row["name"]] = row["value"]
    lines = [
        "| stage | tokens | steps | seconds | tokens/s (median step) | loss, first to last step |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, stage in stages.items():
        lines.append(
            f"| {name} | {stage['tokens']:,} | {stage['steps']} | {stage['stage_seconds']:.0f} | "
            f"{stage['tokens_per_second']:,.0f} | "
            f"{stage['first_loss']:.2f} to {stage['last_loss']:.2f} |"
        )
    return "\n".join(lines)


def kernel_table(result: Mapping[str, Any]) -> str:
    """A Markdown table: a shape a row, times in milliseconds and what they are compared with."""
    shapes: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in result["rows"]:
        if "H" in row:
            shapes.setdefault(tuple(row[axis] for axis in "BHTD"), {})[row["name"]] = row
    lines = [
        "| [B, H, T, D] | forward (of 2 units) | backward (of 4 units) | both | "
        "SDPA by cuDNN, both | ratio | SDPA by flash |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for shape, rows in sorted(shapes.items()):
        if "fwd_bwd_time_over_sdpa" not in rows:
            continue
        sdpa, cells = rows["fwd_bwd_time_over_sdpa"], []
        for part in ("fwd_fraction_of_floor", "bwd_fraction_of_floor"):
            found = rows.get(part)
            cells.append(f"{found['milliseconds']:.3f} ({found['value']:.2f})" if found else "")
        lines.append(
            f"| {', '.join(map(str, shape))} | {cells[0]} | {cells[1]} | "
            f"{sdpa['milliseconds']:.3f} | {sdpa['cudnn_milliseconds']:.3f} | "
            f"{sdpa['value']:.2f} | {sdpa['flash_milliseconds']:.3f} |"
        )
    return "\n".join(lines)


def step_table(result: Mapping[str, Any]) -> str:
    """A Markdown table: a whole step's case on so many GPUs a row."""
    lines = [
        "| case | GPUs | tokens | tokens/s | of the dense rate | peak GiB a GPU (planned) "
        "| step s (planned) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    mfu = {
        (r["case"], r["ranks"]): f"{r['value']:.0%}" for r in result["rows"] if r["name"] == "mfu"
    }
    for m in result["measurements"]:
        if m["kind"] in ("ard", "cpt"):
            lines.append(
                f"| {m['case']} | {m['ranks']} | {m['settings']['tokens']:,} | "
                f"{m['tokens_per_second']:,.0f} | {mfu.get((m['case'], m['ranks']), '')} | "
                f"{m['peak_gib']:.1f} ({m['planned_gib']:.1f}) | "
                f"{m['step_seconds']:.2f} ({m['planned_seconds']:.2f}) |"
            )
    return "\n".join(lines)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The text with every `<!-- table: NAME -->` ... `<!-- end -->` filled anew.

    Raises:
        ValueError: a table that has no place, or several.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the document has {count} places for table {name!r}, not 1")
    return text


def perplexity_picture(result: Mapping[str, Any]) -> go.Figure:
    """Perplexity against window."""
    perplexity = by_model(result["rows"], "perplexity")
    windows = sorted(next(iter(perplexity.values())))
    report = PerplexityReport.model_validate(
        {
            "schema": 1,
            "suite": "perplexity",
            "dataset": result["held_out"],
            "windows": windows,
            "models": [
                {"name": model, "perplexity": {str(w): v for w, v in values.items()}}
                for model, values in perplexity.items()
            ],
        }
    )
    return plots.perplexity_figure(
        report, title="SmolLM2-135M, 8K to 32K: perplexity of Moby-Dick by window"
    )


def _is_whole(measured: Mapping[str, Any]) -> bool:
    """Whether it was one GPU with all weights."""
    return measured["ranks"] == 1 and measured["settings"]["zero_stages"][0] < 3


def step_picture(result: Mapping[str, Any]) -> go.Figure:
    """Peak memory against speed of each case on one GPU, measured and planned."""
    found = (m for m in result["measurements"] if m["kind"] == "ard" and _is_whole(m))
    cases = [m for m in found if m["planned_seconds"]]
    figure = go.Figure()
    for name, memory, speed, symbol in (
        ("measured", "peak_gib", lambda m: m["tokens_per_second"], "circle"),
        ("planned", "planned_gib", _planned_speed, "circle-open"),
    ):
        figure.add_scatter(
            x=[speed(m) for m in cases],
            y=[m[memory] for m in cases],
            text=[m["case"] for m in cases] if name == "measured" else None,
            textposition="top center",
            mode="markers+text" if name == "measured" else "markers",
            marker={"symbol": symbol, "size": 10, "color": plots.STUDENT_COLORS[0]},
            name=name,
        )
    _plain(
        figure,
        f"A step of attention restoration, {result['device']}",
        "tokens a second",
        "peak memory a rank (GiB)",
    )
    # Room for the last label.
    figure.update_xaxes(range=[0, 1.15 * max(m["tokens_per_second"] for m in cases)])
    return figure


def kernel_pictures(result: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Pictures of what `python -m kernels.bench` measured, by name: those it has rows for.

    Raises:
        ValueError: it has rows for none.
    """
    rows: Rows = {}
    for row in result["rows"]:
        rows.setdefault(row["name"], []).append(row)
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


def _time_beside_attention(rows: Rows, device: str) -> go.Figure:
    """In units of the faster attention."""
    measured = rows["fwd_bwd_time_over_sdpa"]
    figure = go.Figure()
    for name, key, color in (
        ("relation_kl", "milliseconds", plots.STUDENT_COLORS[0]),
        ("attention, cuDNN", "cudnn_milliseconds", GREY),
        ("attention, flash", "flash_milliseconds", LIGHT_GREY),
    ):
        base = [row["milliseconds"] / row["value"] for row in measured]
        relative = [row[key] / least for row, least in zip(measured, base, strict=True)]
        _bars(figure, name, measured, relative, color, [row[key] for row in measured])
    return _plain(figure, f"Forward and backward, {device}", "", "time (labels: ms)")


def _fractions_of_floor(rows: Rows, device: str) -> go.Figure:
    figure = go.Figure()
    for name, key, color in (
        ("forward, 2 units", "fwd_fraction_of_floor", plots.STUDENT_COLORS[0]),
        ("backward, 4 units", "bwd_fraction_of_floor", GREY),
    ):
        _bars(figure, name, rows[key], [row["value"] for row in rows[key]], color)
    return _plain(figure, f"Of the rate of a large matrix product, {device}", "", "fraction")


def _memory_by_tokens(rows: Rows, device: str) -> go.Figure:
    measured = rows["extra_bytes_per_token"]
    figure = go.Figure()
    figure.add_scatter(
        x=[row["T"] for row in measured],
        y=[row["value"] for row in measured],
        mode="lines+markers",
        marker={"size": 9, "color": plots.STUDENT_COLORS[0]},
    )
    title = f"Memory beyond inputs, one head of {measured[0]['D']}, {device}"
    _plain(figure, title, "tokens", "bytes a token")
    figure.update_xaxes(type="log", dtick=1)
    return figure


def _time_beside_dense(rows: Rows, device: str) -> go.Figure:
    measured = rows["chunked_speedup_over_dense"]
    figure = _beside_dense(measured, "milliseconds", 1)
    return _plain(figure, f"Forward and backward, {device}", "", "milliseconds")


def _memory_beside_dense(rows: Rows, device: str) -> go.Figure:
    figure = _beside_dense(rows["chunked_memory_over_dense"], "bytes", 1e6)
    return _plain(figure, f"Memory beyond inputs, {device}", "", "MB")


def _beside_dense(measured: Sequence[Mapping[str, Any]], key: str, unit: float) -> go.Figure:
    figure = go.Figure()
    for name, column, color in (
        ("relation_kl, chunked", key, plots.STUDENT_COLORS[0]),
        ("dense torch", f"dense_{key}", GREY),
    ):
        _bars(figure, name, measured, [row[column] / unit for row in measured], color)
    return figure


def _bars(
    figure: go.Figure,
    name: str,
    measured: Sequence[Mapping[str, Any]],
    heights: Sequence[float],
    color: str,
    labels: Sequence[float] | None = None,
) -> None:
    """Adds a bar a shape."""
    figure.add_bar(
        x=[
            f"{row['T']:,} tokens<br>{row['H']} head{'s' * (row['H'] > 1)} of {row['D']}"
            for row in measured
        ],
        y=heights,
        name=name,
        marker={"color": color},
        text=[f"{label:,.0f}" if label >= 100 else f"{label:.3g}" for label in labels or heights],
        textposition="outside",
    )
    figure.update_layout(barmode="group")


def _plain(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0.01},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#22252b"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_xaxes(title=x, gridcolor="#e6e8ec", automargin=True)
    figure.update_yaxes(title=y, gridcolor="#e6e8ec", rangemode="tozero", automargin=True)
    return figure


def curve_picture(result: Mapping[str, Any]) -> go.Figure:
    """Loss by step of the public reference's loop and of ours."""
    figure = go.Figure()
    for side, dash in (("reference", "solid"), ("ours", "dot")):
        rows = [r for r in result["rows"] if (r["name"], r["side"]) == ("loss", side)]
        figure.add_scatter(
            x=[r["step"] for r in rows],
            y=[r["value"] for r in rows],
            mode="lines+markers",
            line={"dash": dash},
            name=f"the public reference ({result['kernels']} KL)" if side == "reference" else side,
        )
    figure.update_layout(
        template="none",
        title={
            "text": f"The reference's loop, step by step: {result['model']}, {result['dtype']}",
            "x": 0.01,
        },
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#22252b"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_xaxes(title="optimizer step", gridcolor="#e6e8ec")
    figure.update_yaxes(title="relation loss (nats)", gridcolor="#e6e8ec")
    return figure


def _planned_speed(measured: Mapping[str, Any]) -> float:
    return measured["settings"]["tokens_per_step"] / measured["planned_seconds"]


def picture(figure: go.Figure, target: Path) -> None:
    """Draw a figure into a PNG.

    Raises:
        RuntimeError: there is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise RuntimeError("no chromium on the path: install it to draw pictures")
    figure.update_layout(width=SIZE[0], height=SIZE[1])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        subprocess.run(
            [
                chromium,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                f"--window-size={SIZE[0] + 30},{SIZE[1] + 30}",
                "--force-device-scale-factor=1.5",
                "--virtual-time-budget=4000",
                f"--screenshot={target}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def documents() -> dict[Path, dict[str, str]]:
    """Documents with tables that come from result files, and those tables."""
    named = load(NAMED_RUN)
    measured = {
        METHODS: ("methods", {"methods": methods.table, "search": methods.search_table}),
        LONG: ("long_suite", {"long_suite": long_suite.table}),
    }
    return {
        path: {table: make(load(name)) for table, make in tables.items()}
        for path, (name, tables) in measured.items()
        if (RESULTS / f"{name}.json").is_file()
    } | {
        ROOT / "README.md": {"perplexity": perplexity_table(named), "stages": stage_table(named)},
        ROOT / "kernels" / "relation_kl" / "README.md": {"kernel": kernel_table(load("kernel"))},
        ROOT / "docs" / "scale.md": {"step": step_table(load("step"))},
    }


def draw_kernel(path: Path) -> None:
    """Draw a result of `python -m kernels.bench` beside its file; say what has been written."""
    try:
        figures = kernel_pictures(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: --kernel {path}: {error!r}; give a file that kernels.bench wrote")
    for name, figure in figures.items():
        target = path.with_name(f"{name}.png")
        picture(figure, target)
        print(target)


def main() -> None:
    """Write pictures and tables, or check the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="a result of kernels.bench")
    given = parser.parse_args()
    if given.kernel is not None:
        draw_kernel(given.kernel)
        return
    for path, tables in documents().items():
        text = path.read_text(encoding="utf-8")
        filled = with_tables(text, tables)
        if filled != text and given.check:
            sys.exit(f"{path.relative_to(ROOT)}: tables differ from benchmarks/results")
        path.write_text(filled, encoding="utf-8")
    if given.check:
        return
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, figure in {
        NAMED_RUN: perplexity_picture(load(NAMED_RUN)),
        "step": step_picture(load("step")),
        **kernel_pictures(load("kernel")),
    }.items():
        picture(figure, IMAGES / f"{name}.png")
    if (RESULTS / "reference_curve.json").is_file():
        picture(curve_picture(load("reference_curve")), IMAGES / "reference_curve.png")


if __name__ == "__main__":
    main()
