"""What each reader makes of an export with each scaling, and real models that go through.

    python -m benchmarks.exports --out benchmarks/results/exports.json
    python -m benchmarks.exports --page docs/exports.md

Small models with random weights are exported with every scaling and read by transformers 5, by
transformers 4.57 in an environment of its own, by vLLM's own code on a CPU (config, window and
RoPE; no layer runs), and as GGUF by llama.cpp's library.
Logits are compared with those of the model before the export, at 253 tokens, where the native
window has 64 and the extended one 256. With --models, packaged models are exported, read by
llama.cpp, and compared by perplexity. `--page` writes the page from the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import merging
from benchmarks.readers import PACKAGES, read
from src.models.config import ModelConfig, native_rope
from src.models.exporting.gguf import QUANTIZATIONS, write_gguf
from src.models.exporting.gguf_rope import gguf_rope
from src.models.exporting.readers import OLDEST_BY_FAMILY, OLDEST_BY_ROPE
from src.models.hf_config import resolved_shape, scaled_config
from src.models.loading import load_model, load_tokenizer
from src.models.rope import BaseFrequencyScaling, LinearScaling, Scaling
from src.models.rope.dynamic import DynamicScaling
from src.models.rope.llama3 import Llama3Scaling
from src.models.rope.longrope import LongRopeScaling
from src.models.rope.ntk import NtkScaling
from src.models.rope.per_frequency import PerFrequencyScaling
from src.models.rope.yarn import YarnScaling
from src.settings.config import RunConfig
from src.settings.loading import compose
from src.training.export import Export

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "exports.json"
WINDOW, TARGET, LENGTH = 64, 256, 253
SCALINGS: tuple[Scaling, ...] = (
    LinearScaling("linear", TARGET),
    BaseFrequencyScaling("abf", TARGET, theta=300_000.0),
    NtkScaling("ntk", TARGET),
    DynamicScaling("dynamic", TARGET),
    YarnScaling("yarn", TARGET),
    LongRopeScaling("longrope", TARGET),
    Llama3Scaling("llama3", TARGET),
    PerFrequencyScaling("per_frequency", TARGET, factors=(1.0, 1.5, 3.0, 5.0)),
)
IDS = [(7 * i + 3) % 250 for i in range(LENGTH)]


def scaling_rows(work: Path) -> Iterator[dict[str, Any]]:
    """One row for each scaling and reader."""
    run = compose(RunConfig, "train", ["model=tiny"])
    model = replace(run.model, native_window=WINDOW)
    shape = resolved_shape(model)
    rope = native_rope(model, shape)
    expected: list[np.ndarray] = []
    files: dict[str, Path] = {}
    for scaling in SCALINGS:
        network = load_model(model, scaled_config(model, scaling), dtype=torch.float32)
        with torch.no_grad():
            expected.append(network(input_ids=torch.tensor([IDS])).logits[0].numpy())
        folder = work / scaling.type
        Export(folder, model, scaling, torch.float32, card="").write(network)
        if scaling.type != "dynamic":
            files[scaling.type] = folder / "f16.gguf"
            write_gguf(
                folder,
                files[scaling.type],
                model=model,
                scaling=scaling,
                quantization="f16",
            )
    asked = {"folders": [str(work / s.type) for s in SCALINGS], "lengths": [LENGTH]}
    for reader in ("transformers 5", "transformers 4.57"):
        found = read("transformers_reader.py", PACKAGES[reader], asked, work / "read.npz")
        version = f"transformers {found['version']}"
        for number, scaling in enumerate(SCALINGS):
            key = f"{number}/{LENGTH}"
            yield row(
                scaling,
                version,
                rope,
                found[f"frequencies/{key}"],
                found[f"attention/{key}"],
                found[f"window/{number}"],
                found[f"logits/{key}"] - expected[number],
            )
    started = [{"length": TARGET, "overrides": s.vllm_overrides(rope)} for s in SCALINGS]
    asked = {"folders": [str(work / s.type) for s in SCALINGS], "started": started}
    found = read("vllm_reader.py", PACKAGES["vLLM"], asked, work / "vllm.npz")
    for number, scaling in enumerate(SCALINGS):
        yield row(
            scaling,
            f"vLLM {found['version']}",
            rope,
            found[f"frequencies/{number}"],
            found[f"attention/{number}"],
            found[f"window/{number}"],
            None,
        ) | {"default_window": int(found[f"default/{number}"])}
    asked = {"files": list(map(str, files.values())), "ids": [IDS]}
    found = read("llama_cpp_reader.py", PACKAGES["llama.cpp"], asked, work / "cpp.npz")
    for number, name in enumerate(files):
        at, scaling = next((i, s) for i, s in enumerate(SCALINGS) if s.type == name)
        form = gguf_rope(scaling, rope, "llama")
        yield row(
            scaling,
            f"llama.cpp {found['version']}, GGUF f16",
            rope,
            form.frequencies(rope.head_dim, TARGET),
            form.attention_factor(),
            found[f"window/{number}"],
            found[f"logits/{number}/0"] - expected[at],
        )


def row(
    scaling: Scaling,
    reader: str,
    rope: Any,
    frequencies: np.ndarray,
    attention: Any,
    window: Any,
    difference: np.ndarray | None,
) -> dict[str, Any]:
    """A row: `value` is the largest relative difference of frequencies."""
    # vLLM goes by the window, transformers by the sequence.
    length = TARGET if "vLLM" in reader else LENGTH
    ours = scaling.inverse_frequencies(rope, length)
    return {
        "name": "scaling",
        "scaling": scaling.type,
        "reader": reader,
        "value": float(np.abs(frequencies / ours - 1).max()),
        "unit": "largest relative difference of frequencies",
        "attention_factor": float(attention),
        "expected_attention_factor": scaling.resolved_attention_factor(rope),
        "window": int(window),
        "logits": None if difference is None else float(np.abs(difference).max()),
    }


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """exp of the mean loss of each next token."""
    values = torch.from_numpy(logits[:-1]).double()
    loss = torch.nn.functional.cross_entropy(values, torch.tensor(ids[1:]))
    return float(loss.exp())


def model_rows(work: Path, name: str, scaling: Scaling, export: Path | None) -> Iterator[dict]:
    """Perplexity of a packaged model's export: as a folder, and as GGUF in llama.cpp."""
    model: ModelConfig = compose(RunConfig, "train", [f"model={name}"]).model
    folder = export or work / name
    if export is None:
        network = load_model(model, scaled_config(model, scaling), dtype=torch.float32)
        Export(folder, model, scaling, torch.float32, card="").write(network)
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    ids = load_tokenizer(model)(text).input_ids[:512]
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        base = perplexity(network(input_ids=torch.tensor([ids])).logits[0].numpy(), ids)
    files = []
    for quantization in QUANTIZATIONS:
        files.append(work / f"{name}-{quantization}.gguf")
        write_gguf(
            folder,
            files[-1],
            model=model,
            scaling=scaling,
            quantization=quantization,
        )
    asked = {"files": list(map(str, files)), "ids": [ids], "texts": [text[:4000]]}
    found = read("llama_cpp_reader.py", PACKAGES["llama.cpp"], asked, work / "model.npz")
    same = load_tokenizer(model)(text[:4000]).input_ids
    for number, quantization in enumerate(QUANTIZATIONS):
        value = perplexity(found[f"logits/{number}/0"], ids)
        yield {
            "name": "model",
            "model": name,
            "scaling": scaling.type,
            "reader": f"llama.cpp {found['version']}, GGUF {quantization}",
            "value": value,
            "unit": "perplexity of 512 tokens",
            "transformers": base,
            "change_percent": 100 * (value / base - 1),
            "same_tokens": found[f"ids/{number}/0"].tolist() == same,
        }


def page(results: dict[str, Any]) -> str:
    """docs/exports.md."""
    rows = [r for r in results["rows"] if r["name"] == "scaling"]
    models = [r for r in results["rows"] if r["name"] == "model"]
    readers = list(dict.fromkeys(r["reader"] for r in rows))
    lines = [f"| scaling | {' | '.join(readers)} |", "|---" * (len(readers) + 1) + "|"]
    for kind in dict.fromkeys(r["scaling"] for r in rows):
        cells = []
        for reader in readers:
            found = [r for r in rows if (r["scaling"], r["reader"]) == (kind, reader)]
            cells.append(_cell(found[0]) if found else "refused before the run")
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    through = [
        "| model, scaling | reader | perplexity | transformers 5 | change | same tokens |",
        "|---|---|---|---|---|---|",
    ]
    through += [
        f"| {r['model']}, {r['scaling']} | {r['reader']} | {r['value']:.3f} | "
        f"{r['transformers']:.3f} | {r['change_percent']:+.3f}% | "
        f"{'yes' if r['same_tokens'] else 'no'} |"
        for r in models
    ]
    oldest = ["| | oldest transformers |", "|---|---|"]
    oldest += [f"| `{k}` RoPE | {v} |" for k, v in OLDEST_BY_ROPE.items()]
    oldest += [f"| family `{k}` | {v} |" for k, v in OLDEST_BY_FAMILY.items()]
    template = (ROOT / "benchmarks" / "exports_page.md").read_text(encoding="utf-8")
    return template.format(
        scalings="\n".join(lines), models="\n".join(through), oldest="\n".join(oldest)
    )


def _cell(found: dict[str, Any]) -> str:
    logits = "" if found["logits"] is None else f"; logits {found['logits']:.1e}"
    return f"{found['value']:.0e}; {found['attention_factor']:.4g}; {found['window']}{logits}"


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--models", nargs="*", default=[], help="NAME or NAME=EXPORT_FOLDER")
    options = parser.parse_args()
    if options.page:
        results = json.loads(options.out.read_text(encoding="utf-8"))
        options.page.write_text(page(results), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="exports-") as work:
        rows = list(scaling_rows(Path(work)))
        for named in options.models:
            name, _, folder = named.partition("=")
            target = 131_072 if name.startswith("gemma") else 32_768
            scaling = LinearScaling("linear", target) if folder else YarnScaling("yarn", target)
            rows += model_rows(Path(work), name, scaling, Path(folder) if folder else None)
    merging.write(
        options.out,
        rows,
        commit=merging.commit_of(None),
        command=f"python -m benchmarks.exports --models {' '.join(options.models)}",
        script=Path(sys.argv[0]).name,
    )


if __name__ == "__main__":
    main()
