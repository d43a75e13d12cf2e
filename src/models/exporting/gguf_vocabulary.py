"""A tokenizer in a GGUF file.

llama.cpp has the algorithms of tokenizers in its code. A file names the algorithm, lists tokens
with their kinds, and gives merges (byte-level BPE) or scores (BPE of SentencePiece). How text is
split before merging is known to llama.cpp by a name only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.models.config import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# llama.cpp's names for what splits a text, by the steps of a tokenizer.json.
_SPLITS = {
    ("bytes by words",): "gpt-2",
    ("digits", "bytes by words"): "smollm",
    (_LLAMA3, "bytes"): "llama-bpe",
    (_QWEN2, "bytes"): "qwen2",
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF states it.

    Attributes:
        algorithm: `tokenizer.ggml.model`.
        kinds: of gguf.TokenType, by id.
        split: llama.cpp's name for what splits a text; for byte-level BPE.
        scores: by id; for BPE with byte fallback.
        space_prefix: whether a space is put before a text.
    """

    algorithm: str
    tokens: list[str]
    kinds: list[int]
    split: str | None = None
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool = False


def vocabulary_of(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a folder that `save_pretrained` wrote.

    Args:
        size: rows of the model's embedding; ids without a token get an unused one.

    Raises:
        ModelError: llama.cpp has no such tokenizer, or it has more tokens than `size`.
    """
    plain = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = plain["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ())]
    if model["type"] != "BPE":
        raise ModelError(_unknown(f"of type {model['type']}"))
    tokens, kinds = _tokens(plain, size)
    if model.get("byte_fallback"):
        ranks = {merge.replace(" ", ""): -float(rank) for rank, merge in enumerate(merges)}
        # Tokens that no merge makes are found by other means, before any merge.
        scores = tuple(ranks.get(token, 0.0) for token in tokens)
        prefixed = _prefixes_a_space(plain)
        return Vocabulary("llama", tokens, kinds, scores=scores, space_prefix=prefixed)
    steps = tuple(_steps(plain["pre_tokenizer"]))
    # Without merges each byte is a token, however a text is split.
    split = _SPLITS.get(steps) if merges else "gpt-2"
    if split is None:
        raise ModelError(_unknown(f"whose text is split by {' then '.join(steps)[:200]}"))
    # llama.cpp wants a merge. It takes two letters apart again whose merger is no token.
    return Vocabulary("gpt2", tokens, kinds, split=split, merges=tuple(merges) or ("! !",))


def _unknown(what: str) -> str:
    return (
        f"export.gguf=true cannot hold a tokenizer {what}: this program knows llama.cpp's names "
        f"for byte-level BPE as in {', '.join(_SPLITS.values())}, and for BPE with byte fallback; "
        "leave export.gguf out, and convert the export with llama.cpp's convert_hf_to_gguf.py"
    )


def _tokens(plain: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    added = {entry["id"]: entry for entry in plain["added_tokens"]}
    by_id = {number: token for token, number in plain["model"]["vocab"].items()}
    by_id |= {number: entry["content"] for number, entry in added.items()}
    if max(by_id) >= size:
        raise ModelError(
            f"export.gguf=true: the tokenizer has the id {max(by_id)}, and the model's embedding "
            f"{size} rows: give the tokenizer that belongs to the model"
        )
    kinds: list[int] = []
    for number in range(size):
        if number not in by_id:
            kinds.append(TokenType.UNUSED)
        elif number in added:
            special = added[number]["special"]
            kinds.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        elif by_id[number] == plain["model"].get("unk_token"):
            kinds.append(TokenType.UNKNOWN)
        elif plain["model"].get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", by_id[number]):
            kinds.append(TokenType.BYTE)
        else:
            kinds.append(TokenType.NORMAL)
    return [by_id.get(number, f"[PAD{number}]") for number in range(size)], kinds


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[str]:
    """The steps that split a text."""
    if pre_tokenizer is None:
        return ["nothing"]
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return [step for one in pre_tokenizer["pretokenizers"] for step in _steps(one)]
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ["bytes by words" if pre_tokenizer.get("use_regex", True) else "bytes"]
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ["digits"]
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated":
        return [pre_tokenizer["pattern"].get("Regex", str(pre_tokenizer["pattern"]))]
    return [str(dict(pre_tokenizer))]


def _prefixes_a_space(plain: Mapping[str, Any]) -> bool:
    parts = [plain.get("normalizer") or {}, plain.get("pre_tokenizer") or {}]
    parts += [inner for part in parts for inner in part.get("normalizers", ())]
    return any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def add_vocabulary(writer: GGUFWriter, folder: Path, vocabulary: Vocabulary) -> None:
    """Write a folder's tokenizer: tokens, special tokens, and the template of chats."""
    from transformers import AutoTokenizer

    writer.add_tokenizer_model(vocabulary.algorithm)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.split is not None:
        writer.add_tokenizer_pre(vocabulary.split)
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
