"""Mixtures of sources: their shares, epochs of their own, and access in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.blocks import Blocks
from src.data.config import DataConfig, TextFiles
from src.data.documents import DataError
from src.data.mixing import MixedBlocks
from src.data.preparation import prepare_corpus

Write = Callable[..., TextFiles]
weight = st.floats(0.01, 100)


def mixed(weights: dict[str, float], blocks: int = 5) -> MixedBlocks:
    """Sources of so many blocks of two tokens; a source's tokens begin at its number times 1000."""
    parts = {}
    for number, name in enumerate(weights):
        tokens = np.arange(2 * blocks, dtype=np.uint16) + 1000 * number
        parts[name] = Blocks([(name, tokens)], 2, seed=0, stream=name)
    return MixedBlocks(parts, weights)


def sources(blocks: MixedBlocks, count: int) -> list[int]:
    return [int(blocks[i][0]) // 1000 for i in range(count)]


@settings(deadline=None)
@given(st.lists(weight, min_size=1, max_size=5), st.integers(1, 3000))
def test_every_stretch_has_the_sources_shares(weights: list[float], count: int) -> None:
    named = {str(n): w for n, w in enumerate(weights)}
    counts = mixed(named).counts(count)
    assert sum(counts.values()) == count
    for name, w in named.items():
        assert abs(counts[name] - count * w / sum(weights)) < 6


def test_counts_are_those_of_the_blocks() -> None:
    blocks = mixed({"a": 0.7, "b": 0.2, "c": 0.1})
    drawn = sources(blocks, 500)
    assert [drawn.count(n) for n in range(3)] == list(blocks.counts(500).values())
    assert blocks.documents(3) == ["abc"[drawn[3]]]


def test_each_source_gives_its_blocks_in_their_order() -> None:
    blocks = mixed({"a": 0.5, "b": 0.3, "c": 0.2}, blocks=4)
    for name, part in blocks.parts.items():
        mine = [blocks[i] for i in range(200) if blocks.documents(i) == [name]]
        assert len(mine) > 8, "more than an epoch"
        assert all(np.array_equal(block, part[n]) for n, block in enumerate(mine))


def test_what_there_is_is_the_sum_over_sources() -> None:
    blocks = mixed({"a": 0.5, "b": 0.3, "c": 0.2}, blocks=4)
    parts = blocks.parts.values()
    assert len(blocks) == sum(map(len, parts)) == 12
    assert blocks.packed == sum(part.packed for part in parts)
    assert blocks.packable == sum(part.packable for part in parts)
    assert blocks.available == sum(part.available for part in parts) == 12


def test_each_source_has_epochs_of_its_own() -> None:
    blocks = mixed({"a": 0.9, "b": 0.1})
    first = [int(blocks[i][0]) for i in range(60)]
    of_a = [token for token in first if token < 1000]
    assert sorted(of_a[:5]) == sorted(of_a[5:10]) == [0, 2, 4, 6, 8]


def test_a_run_may_begin_anywhere() -> None:
    later = mixed({"a": 2.0, "b": 1.0})[70_000]
    blocks = mixed({"a": 2.0, "b": 1.0})
    assert blocks[3].tolist() == mixed({"a": 2.0, "b": 1.0})[3].tolist()
    assert blocks[70_000].tolist() == later.tolist()


def test_the_order_of_sources_is_frozen() -> None:
    # A resumed run must see the blocks of the run that it resumes: never change these.
    assert sources(mixed({"a": 2.0, "b": 1.0}), 12) == [0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0]


def test_most_segments_are_those_of_the_source_with_the_shortest_documents() -> None:
    def packed(size: int) -> Blocks:
        documents = [(f"{size}-{n}", np.arange(size)) for n in range(12)]
        return Blocks(documents, 12, seed=0, stream="main", packing=True)

    parts = {"long": packed(12), "short": packed(3)}
    assert [part.most_segments for part in parts.values()] == [1, 4]
    assert MixedBlocks(parts, {"long": 1.0, "short": 1.0}).most_segments == 4


class TestCorpora:
    """Sources with weights, from settings to blocks."""

    @pytest.fixture
    def config(self, write_texts: Write) -> Callable[..., DataConfig]:
        long = write_texts({"book": "a long book " * 40}, "long")
        short = write_texts({f"note{i}": f"note {i} is short" for i in range(30)}, "short")

        def made(long_weight: float | None, short_weight: float | None, **more: object):
            named = {
                "long": TextFiles("files", long.paths, weight=long_weight),
                "short": TextFiles("files", short.paths, weight=short_weight),
            }
            return DataConfig("mixture", named, **more)

        return made

    def test_short_text_is_replayed_beside_long(
        self, config: Callable[..., DataConfig], tokenizer: object, tmp_path: Path
    ) -> None:
        settings = config(0.7, 0.3)
        corpus = prepare_corpus(settings, tokenizer, cache=tmp_path)
        blocks = corpus.blocks(64, seed=0, packing=None, weights=settings.weights)
        names = [" ".join(blocks.documents(i)) for i in range(200)]
        assert 55 <= sum("note" in name for name in names) <= 65
        assert all(("note" in name) != ("book" in name) for name in names)
        assert blocks.used().sum() == corpus.train_tokens

    def test_each_source_gives_its_share_of_the_limit(
        self, config: Callable[..., DataConfig], tokenizer: object, tmp_path: Path
    ) -> None:
        settings = config(0.5, 0.5, max_tokens=300)
        corpus = prepare_corpus(settings, tokenizer, cache=tmp_path)
        assert corpus.sources == {"long": 1, "short": 9}
        # With no weights, the first source reaches the limit alone.
        alone = prepare_corpus(config(None, None, max_tokens=300), tokenizer, cache=tmp_path)
        assert alone.sources == {"long": 1, "short": 0}

    def test_weights_leave_other_corpora_as_they_were(
        self, config: Callable[..., DataConfig], tokenizer: object, tmp_path: Path
    ) -> None:
        keys = {
            prepare_corpus(config(a, b), tokenizer, cache=tmp_path).key
            for a, b in ((None, None), (0.7, 0.3), (0.2, 0.8))
        }
        assert len(keys) == 2, "without a limit, weights read the same texts"

    def test_some_weights_are_refused(self, config: Callable[..., DataConfig]) -> None:
        with pytest.raises(DataError, match=r"sources\.short\.weight is null"):
            config(0.5, None)

    def test_a_source_that_fills_no_block_is_named(
        self, config: Callable[..., DataConfig], tokenizer: object, tmp_path: Path
    ) -> None:
        settings = config(0.5, 0.5)
        corpus = prepare_corpus(settings, tokenizer, cache=tmp_path)
        with pytest.raises(DataError, match=r"source 'long': all training documents together"):
            corpus.blocks(500, seed=0, packing=True, weights=settings.weights)
        held = config(0.5, 0.5, held_out=("book",))
        corpus = prepare_corpus(held, tokenizer, cache=tmp_path)
        with pytest.raises(DataError, match=r"sources\.long\.weight=0\.5: it has no document"):
            corpus.blocks(64, seed=0, packing=True, weights=held.weights)


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "You?"},
    {"role": "assistant", "content": "Yes."},
]


class TestChats:
    """Chats through the tokenizer's template, with the loss on answers where that is asked for."""

    def prepared(self, tmp_path: Path, tokenizer: object, chats: list, **more: object):
        file = tmp_path / "chats.jsonl"
        file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
        source = TextFiles("files", (str(file),), messages_field="messages", **more)
        config = DataConfig("chats", {"chats": source})
        return prepare_corpus(config, tokenizer, cache=tmp_path / "cache")

    @pytest.fixture
    def chatty(self, tokenizer_factory: Callable[..., object]) -> object:
        made = tokenizer_factory()
        made.chat_template = TEMPLATE
        return made

    def test_only_answers_are_learnt(self, tmp_path: Path, chatty: object) -> None:
        corpus = self.prepared(tmp_path, chatty, [CHAT], answers_only=True)
        assert corpus.learnt is not None
        text = chatty.decode(corpus.tokens.tolist())
        assert text == "[user]Who?\n[assistant]Me.\n[user]You?\n[assistant]Yes.\n"
        learnt = chatty.decode(corpus.tokens[corpus.learnt].tolist())
        assert learnt == "Me.\nYes.\n"
        blocks = corpus.blocks(16, seed=0, packing=True)
        assert blocks.marked

    def test_all_is_learnt_unless_asked(self, tmp_path: Path, chatty: object) -> None:
        assert self.prepared(tmp_path, chatty, [CHAT]).learnt is None

    def test_the_template_is_part_of_the_corpus(self, tmp_path: Path, chatty: object) -> None:
        first = self.prepared(tmp_path, chatty, [CHAT])
        chatty.chat_template = TEMPLATE.replace("[", "<")
        assert self.prepared(tmp_path, chatty, [CHAT]).key != first.key

    @pytest.mark.parametrize(
        ("chat", "message"),
        [
            ("hello", r"chats\.jsonl, line 1: field 'messages' is str, not a list"),
            ([{"role": "user"}], r"line 1: message 0 of field 'messages' needs role and content"),
            ([{"role": "user", "content": 3}], r"message 0 .* needs role and content, both texts"),
        ],
    )
    def test_a_row_that_is_no_chat_is_named(
        self, tmp_path: Path, chatty: object, chat: object, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            self.prepared(tmp_path, chatty, [chat])

    def test_a_template_that_rewrites_the_beginning_is_refused(
        self, tmp_path: Path, chatty: object
    ) -> None:
        chatty.chat_template = "{{ messages | length }}" + TEMPLATE
        with pytest.raises(DataError, match=r"chats/0: the chat template writes .* otherwise"):
            self.prepared(tmp_path, chatty, [CHAT], answers_only=True)

    def test_a_tokenizer_without_a_template_is_refused(
        self, tmp_path: Path, tokenizer: object
    ) -> None:
        with pytest.raises(DataError, match=r"messages_field: .* has no chat template"):
            self.prepared(tmp_path, tokenizer, [CHAT])

    def test_answers_alone_need_chats(self) -> None:
        with pytest.raises(DataError, match="answers_only=true is for chats: give messages_field"):
            TextFiles("files", ("x",), answers_only=True)
