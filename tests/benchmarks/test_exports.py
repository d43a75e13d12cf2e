"""The page on exports says what was measured, and every reader agrees."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import pytest

from benchmarks.exports import RESULTS, ROOT, page
from src.models.rope import SCALINGS

RESULT = json.loads(RESULTS.read_text(encoding="utf-8"))
ROWS = [row for row in RESULT["rows"] if row["name"] == "scaling"]
MODELS = [row for row in RESULT["rows"] if row["name"] == "model"]


def test_the_page_is_written_from_the_results() -> None:
    assert (ROOT / "docs" / "exports.md").read_text(encoding="utf-8") == page(RESULT)


@pytest.mark.parametrize("reader", ["transformers 5", "transformers 4.57", "vLLM", "llama.cpp"])
def test_every_reader_reads_every_scaling_as_it_is_meant(reader: str) -> None:
    """llama.cpp multiplies by weights in f16, and has no dynamic scaling.

    `own` is no scaling of its own: it keeps a model's, one of the others.
    """
    rows = [row for row in ROWS if row["reader"].startswith(reader)]
    expected = {get_args(get_type_hints(kind)["type"])[0] for kind in SCALINGS} - {"own"}
    assert {row["scaling"] for row in rows} == expected - (
        {"dynamic"} if reader == "llama.cpp" else set()
    )
    for row in rows:
        assert row["value"] < 1e-6 if "transformers" not in reader else row["value"] < 2e-6
        assert row["attention_factor"] == pytest.approx(row["expected_attention_factor"], rel=1e-6)
        native = row["scaling"] == "dynamic" and "transformers" in reader
        assert row["window"] == (64 if native else 256)
        if row["logits"] is not None:
            assert row["logits"] < (0.03 if reader == "llama.cpp" else 2e-5)


def test_real_models_keep_their_perplexity() -> None:
    assert {row["model"] for row in MODELS} >= {"smollm2_135m"}
    for row in MODELS:
        bound = 0.5 if row["reader"].endswith("f16") else 2.0
        assert abs(row["change_percent"]) < bound
        assert row["same_tokens"]
