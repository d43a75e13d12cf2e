"""What the plan says of the texts: documents and tokens of each length, and what is used."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from src.data.corpus import Corpus, DocumentInfo
from src.data.usage import StreamUse, TextUse
from src.planning.printing import show_texts

PIECES = 50, 3000


def corpus(sizes: list[int]) -> Corpus:
    infos = tuple(DocumentInfo(f"d{i}", n, f"{i}", "train") for i, n in enumerate(sizes))
    held = DocumentInfo("held", 5, "held", "held_out")
    tokens = np.zeros(sum(sizes) + 5, dtype=np.uint16)
    return Corpus("texts", "0" * 64, (*infos, held), {}, tokens)


@pytest.mark.parametrize("seed", range(5))
def test_short_files_are_used_whole(seed: int) -> None:
    """200 documents of 50 to 3000 tokens, a window of 1024, and a target of 8192."""
    draw = random.Random(seed)
    texts = corpus([draw.randint(*PIECES) for _ in range(200)])
    short = StreamUse.of("ard/short", texts.blocks(1024, seed=0, packing=None), 2304)
    long = texts.blocks(8192, seed=0, packing=None, wanted=256)
    for use in (short, StreamUse.of("cpt/long", long, 256)):
        assert use.tokens == use.tokens_read == texts.train_tokens
        assert not use.longest_first


def test_a_stage_that_reads_less_than_the_text_says_which_part() -> None:
    """Long blocks prefer long documents, so a small budget leaves out the short ones."""
    texts = corpus([100] * 50 + [3000] * 30)
    blocks = texts.blocks(8192, seed=0, packing=None, wanted=5)
    use = TextUse.of(texts, [StreamUse.of("cpt/long", blocks, 5)])
    [stream] = use.streams
    assert (stream.blocks, stream.read) == (12, 5)
    assert (stream.tokens, stream.tokens_read) == (95_000, 5 * 8192)
    assert [(c.label, c.used["cpt/long"], c.read["cpt/long"]) for c in use.classes] == [
        ("64 to 255", 5000, 0),
        ("1,024 to 4,095", 90_000, 5 * 8192),
    ]
    printed = _printed(use)
    assert "of these, read" in printed
    assert "uses 100.0% of the text; the stage reads 5 blocks, 0.417 epochs, those of" in printed
    assert "longest documents: 43.1% of the text" in printed


def test_documents_of_each_length_are_counted() -> None:
    texts = corpus([10, 63, 64, 5000, 300_000])
    blocks = texts.blocks(4096, seed=0, packing=False)
    use = TextUse.of(texts, [StreamUse.of("ard/short", blocks, 74)])
    assert [(c.label, c.documents, c.tokens) for c in use.classes] == [
        ("0 to 63", 2, 73),
        ("64 to 255", 1, 64),
        ("4,096 to 16,383", 1, 5000),
        ("262,144 or more", 1, 300_000),
    ]
    assert [c.used["ard/short"] for c in use.classes] == [0, 0, 4096, 73 * 4096]
    assert use.record()["streams"]["ard/short"]["used_tokens"] == 74 * 4096
    printed = _printed(use)
    assert "of these, read" not in printed
    assert "5 training documents and 1 held out, 305,137 tokens" in printed
    assert "74 blocks of 4,096 tokens, and uses 99.3% of the text; the stage reads 74" in printed


def _printed(use: TextUse) -> str:
    shown = Console(file=io.StringIO(), width=140)
    show_texts(use, shown)
    assert isinstance(shown.file, io.StringIO)
    return " ".join(shown.file.getvalue().split())


@pytest.mark.parametrize(
    ("sizes", "packs"),
    [
        ([4096, 41_000], False),
        ([4096, 4095], True),
        ([6000, 6000], True),
        ([100_000, 99_000], False),
    ],
    ids=["long", "one-short", "much-left-out", "little-left-out"],
)
def test_auto_packs_where_text_would_be_left_out(sizes: list[int], packs: bool) -> None:
    assert (corpus(sizes).blocks(4096, seed=0, packing=None).packed > 0) == packs


def test_a_run_records_and_uses_short_texts(
    train_fake: Callable[..., Path], tmp_path: Path
) -> None:
    """Documents shorter than every block train; the record says how much of them is read."""
    import json

    draw = random.Random(0)
    for i in range(40):
        text = "".join(draw.choices("abcdefgh ", k=draw.randint(5, 90)))
        (tmp_path / f"t{i}.txt").write_text("x" + text)
    run = train_fake(
        f"data.paths=[{tmp_path}]", "data.sources.files.paths=${data.paths}", "data.held_out=[]"
    )
    record = json.loads((run / "run.json").read_text())
    streams = record["texts"]["streams"]
    assert all(s["used_tokens"] == record["texts"]["tokens"] for s in streams.values())
    assert all(s["packed_blocks"] for s in streams.values())
