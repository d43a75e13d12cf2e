"""What a model's folder and texts may hold beside a model and texts: one message, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from src.models.byte_tokenizer import byte_tokenizer
from tests.conftest import by_default, short_recipe

RunHere = Callable[..., subprocess.CompletedProcess[str]]
# Changes a model's folder, and says what else to type.
Spoil = Callable[[Path], list[str] | None]
SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small model."""
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def quick() -> Iterator[None]:
    """A refusal that waits for something is a fault."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no refusal after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def config(**changes: Any) -> Spoil:
    """Keys of config.json that are set, or taken out by None."""

    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return spoil


def write(name: str, content: bytes | str) -> Spoil:
    def spoil(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return spoil


def cut(name: str, share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return spoil


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def special(name: str, make: Callable[[Path], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def bound(path: Path) -> None:
    # The address of a socket is short, so it is bound by a relative name.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def sharded(change: Callable[[Path], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        names = sorted(tensors)
        places = {}
        for number, part in enumerate((names[::2], names[1::2]), start=1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(part, file)
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        change(folder)

    return spoil


def text(name: str, content: bytes | str) -> Spoil:
    """A file beside the good texts."""

    def spoil(folder: Path) -> None:
        write(name, content)(folder.parent / "texts")

    return spoil


def odd_text(name: str, make: Callable[[Path], None]) -> Spoil:
    return lambda folder: special(name, make)(folder.parent / "texts")


def parquet(column: str, values: list[Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({column: values}), path)

    return make


def bad_utf8_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"fine", b"\xff\xfe bad"], type=pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][0] = float("inf")


def _gptq(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.qweight"] = torch.zeros(4, 32, dtype=torch.int32)


def _to(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(dtype)

    return change


def _without_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def _renamed(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("model.", "base_model.model.model.", 1)] = tensors.pop(name)


def _lora_left(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)


def _short_embedding(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:90].clone()


def short_vocabulary(folder: Path) -> None:
    config(vocab_size=90)(folder)
    weights(_short_embedding)(folder)


def adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "ORG/BASE", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {"base_model.model.q.lora_A.weight": torch.zeros(2, 2)},
        folder / "adapter_model.safetensors",
    )


def code(folder: Path) -> None:
    config(model_type="mine", auto_map={"AutoConfig": "configuration_mine.MineConfig"})(folder)
    (folder / "configuration_mine.py").write_text("raise SystemExit(7)\n")


def only(name: str, data: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(data)

    return spoil


def header(data: bytes) -> Spoil:
    return write("model.safetensors", struct.pack("<Q", len(data)) + data)


def home_of_nobody(folder: Path) -> list[str]:
    del folder
    return ["model.path=~nobody-of-that-name/model"]


def texts_at(path: str) -> Spoil:
    return lambda folder: [f"data.paths=[{path.format(folder=folder.parent)}]"]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
ANNEX = "/annex/objects/SHA256E-s5--00.safetensors\n"
DEEP = '{"text": ' + "[" * 10_000 + "]" * 10_000 + "}"
LONG = '{"text": ' + "9" * 100_000 + "}"
CASES: dict[str, tuple[Spoil, str]] = {
    # Quantized, adapted, with code
    "bnb-4bit": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantization_config (bitsandbytes)",
    ),
    "gptq": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantization_config (gptq)",
    ),
    "awq": (config(quantization_config={"quant_method": "awq"}), "quantization_config (awq)"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), "quantization_config (fp8)"),
    "mxfp4": (config(quantization_config={"quant_method": "mxfp4"}), "quantization_config (mxfp4)"),
    "compressed": (
        config(quantization_config={"quant_method": "compressed-tensors"}),
        "compressed-tensors",
    ),
    "compression-config": (
        config(compression_config={"quant_method": "compressed-tensors"}),
        "compress",
    ),
    "quantized-unnamed": (config(quantization_config={}), "quantization_config"),
    "quantized-odd": (config(quantization_config=[4]), "quantization_config"),
    "gptq-weights-alone": (weights(_gptq), "I32"),
    "fp8-weights-alone": (weights(_to(torch.float8_e4m3fn)), "F8_E4M3"),
    "int8-weights-alone": (weights(_to(torch.int8)), "stored as I8"),
    "adapter": (adapter, "adapter of ORG/BASE"),
    "adapter-names": (weights(_renamed), "does not hold the weights"),
    "adapter-left": (weights(_lora_left), "lora_A"),
    "code": (code, "auto_map"),
    # Config
    "no-config": (without("config.json"), "has no config.json"),
    "config-cut": (cut("config.json", 0.5), "config.json is not whole JSON"),
    "config-empty": (write("config.json", ""), "config.json is empty"),
    "config-list": (write("config.json", "[1]"), "config.json"),
    "config-null": (write("config.json", "null"), "config.json"),
    "config-utf-16": (write("config.json", "{}".encode("utf-16-le")), "config.json"),
    "config-nul": (write("config.json", b"\0" * 4096), "config.json"),
    "config-deep": (write("config.json", DEEP), "config.json is not whole JSON"),
    "config-long-number": (write("config.json", LONG), "config.json is not whole JSON"),
    "config-fifo": (special("config.json", os.mkfifo), "config.json"),
    "config-loop": (special("config.json", loop), "config.json"),
    "config-web-page": (write("config.json", "<!DOCTYPE html><html></html>"), "web page"),
    "no-type": (config(model_type=None), "model_type"),
    "type-number": (config(model_type=7), "model_type"),
    "type-unknown": (config(model_type="llama99"), "llama99"),
    "more-layers-in-files": (config(num_hidden_layers=1), "num_hidden_layers=1"),
    "fewer-layers-in-files": (weights(_without_layer), "layers"),
    "layers-text": (config(num_hidden_layers="two"), "config.json"),
    "layers-zero": (config(num_hidden_layers=0), "num_hidden_layers"),
    "layers-negative": (config(num_hidden_layers=-1), "num_hidden_layers"),
    "heads-odd": (config(num_attention_heads=5), "heads"),
    "heads-zero": (config(num_attention_heads=0, head_dim=None), "heads"),
    "window-zero": (config(max_position_embeddings=0), "max_position_embeddings"),
    "window-text": (config(max_position_embeddings="long"), "max_position_embeddings"),
    "rope-unknown": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "spiral"),
    "rope-infinite": (
        config(rope_parameters={"rope_type": "default", "rope_theta": float("inf")}),
        "rope",
    ),
    "rope-zero": (config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope"),
    "width-other": (config(hidden_size=64, head_dim=16), "does not hold the weights"),
    # Weights
    "no-weights": (without("model.safetensors"), "no *.safetensors"),
    "weights-pickled": (only("pytorch_model.bin", b"PK\3\4"), "pickled weights are not read"),
    "weights-gguf": (only("model.gguf", b"GGUF"), "has no *.safetensors"),
    "weights-lfs": (write("model.safetensors", LFS), "git-lfs"),
    "weights-annex": (write("model.safetensors", ANNEX), "git-annex"),
    "weights-annex-relative": (write("model.safetensors", "../.git" + ANNEX), "git-annex"),
    "weights-cut": (cut("model.safetensors", 0.7), "is damaged"),
    "weights-empty": (write("model.safetensors", ""), "model.safetensors is empty"),
    "weights-of-nul": (write("model.safetensors", b"\0" * 4096), "is damaged"),
    "header-long": (write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "is damaged"),
    "header-no-json": (header(b"{not json"), "is damaged"),
    "header-deep": (header(b'{"a":' * 5000), "is damaged"),
    "header-beyond": (
        header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        "is damaged",
    ),
    "weights-fifo": (special("model.safetensors", os.mkfifo), "model.safetensors"),
    "weights-loop": (special("model.safetensors", loop), "model.safetensors"),
    "weights-folder": (special("model.safetensors", Path.mkdir), "safetensors"),
    "weights-socket": (special("model.safetensors", bound), "safetensors"),
    "nan": (weights(_nan), "not finite"),
    "infinite": (weights(_infinite), "not finite"),
    "shard-missing": (
        sharded(lambda f: (f / "model-00002-of-00002.safetensors").unlink()),
        "model-00002-of-00002.safetensors",
    ),
    "shard-fifo": (
        sharded(special("model-00002-of-00002.safetensors", os.mkfifo)),
        "model-00002-of-00002.safetensors",
    ),
    "shard-lfs": (sharded(write("model-00002-of-00002.safetensors", LFS)), "git-lfs"),
    "index-empty": (
        sharded(write("model.safetensors.index.json", "{}")),
        "not an index of weights",
    ),
    "index-cut": (sharded(cut("model.safetensors.index.json", 0.5)), "not whole JSON"),
    "index-of-numbers": (
        sharded(write("model.safetensors.index.json", '{"weight_map": {"a": 7}}')),
        "not an index of weights",
    ),
    # Tokenizer
    "no-tokenizer": (without("tokenizer.json"), "no whole tokenizer"),
    "tokenizer-cut": (cut("tokenizer.json", 0.6), "tokenizer.json is not whole JSON"),
    "tokenizer-other-json": (
        write("tokenizer.json", '{"a": 1}'),
        "tokenizer.json is not a whole tokenizer",
    ),
    "tokenizer-fifo": (special("tokenizer.json", os.mkfifo), "tokenizer.json"),
    "tokenizer-lfs": (write("tokenizer.json", LFS), "git-lfs"),
    "tokenizer-config-cut": (cut("tokenizer_config.json", 0.5), "tokenizer_config.json"),
    "tokenizer-config-fifo": (special("tokenizer_config.json", os.mkfifo), "tokenizer_config.json"),
    "generation-config-fifo": (
        special("generation_config.json", os.mkfifo),
        "generation_config.json",
    ),
    "chat-template-fifo": (special("chat_template.jinja", os.mkfifo), "chat_template.jinja"),
    "special-tokens-deep": (write("special_tokens_map.json", DEEP), "special_tokens_map.json"),
    "ids-beyond-embedding": (short_vocabulary, "ids up to 89"),
    # Paths
    "path-of-nobody": (home_of_nobody, "~nobody-of-that-name"),
    "path-empty": (lambda folder: ["model.path=''"], "model.path"),
    "path-file": (lambda folder: [f"model.path={folder / 'config.json'}"], "is a file"),
    "path-device": (lambda folder: ["model.path=/dev/null"], "model.path=/dev/null"),
    "path-long": (lambda folder: [f"model.path={'x' * 5000}"], "model.path"),
    # Texts
    "texts-of-nobody": (texts_at("~nobody-of-that-name/texts"), "~nobody-of-that-name"),
    "texts-missing": (texts_at("{folder}/none"), "does not exist"),
    "texts-long": (texts_at("x" * 5000), "data"),
    "texts-idle-glob": (texts_at("{folder}/*.none"), "matches no file"),
    "text-device": (texts_at("/dev/zero"), "device"),
    "text-utf-16": (text("u.txt", "some text".encode("utf-16-le")), "u.txt"),
    "text-utf-16-be": (text("u.txt", "some text".encode("utf-16-be")), "u.txt"),
    "text-utf-16-marked": (text("u.txt", "some text".encode("utf-16")), "u.txt"),
    "text-latin-1": (text("u.txt", "caf\xe9".encode("latin-1")), "u.txt"),
    "text-nul": (text("u.txt", b"\0" * 4096), "u.txt"),
    "text-fifo": (odd_text("u.txt", os.mkfifo), "a FIFO"),
    "text-socket": (odd_text("u.txt", bound), "a socket"),
    "text-loop": (odd_text("u.txt", loop), "u.txt"),
    "text-name": (
        odd_text(os.fsdecode(b"\xff.txt"), lambda p: p.write_text("a") and None),
        "its name is not UTF-8",
    ),
    "row-deep": (text("u.jsonl", DEEP), "line 1"),
    "row-long-number": (text("u.jsonl", '{"text": "a"}\n' + LONG), "line 2"),
    "row-cut": (text("u.jsonl", '{"text": "a'), "line 1"),
    "row-list": (text("u.jsonl", "[1]"), "line 1"),
    "row-number": (text("u.jsonl", '{"text": 5}'), "line 1"),
    "row-other-field": (text("u.jsonl", '{"body": "a"}'), "no field 'text'"),
    "row-surrogate": (text("u.jsonl", '{"text": "\\ud800"}'), "surrogate"),
    "row-nan": (text("u.jsonl", '{"text": NaN}'), "line 1"),
    "parquet-utf-8": (odd_text("u.parquet", bad_utf8_parquet), "row 1"),
    "parquet-cut": (text("u.parquet", b"PAR1 cut"), "u.parquet"),
    "parquet-empty": (text("u.parquet", b""), "u.parquet"),
    "parquet-number": (odd_text("u.parquet", parquet("text", [1, 2])), "row 0"),
    "parquet-column": (odd_text("u.parquet", parquet("body", ["a"])), "no column 'text'"),
}
# The others are variants of what the tests of `src/models` and `src/data` show piece by piece.
ALWAYS = ("compression-config", "layers-zero", "rope-infinite", "weights-annex-relative")
ALWAYS += ("chat-template-fifo", "text-nul")


@pytest.mark.parametrize("case", CASES)
@by_default(lambda case: case in ALWAYS)
def test_one_message_and_nothing_left(
    model: Path, prose: Path, tmp_path: Path, run_here: RunHere, quick: None, case: str
) -> None:
    del quick
    spoil, message = CASES[case]
    folder, texts = tmp_path / "model", tmp_path / "texts"
    shutil.copytree(model, folder)
    texts.mkdir()
    shutil.copy(prose / "one.txt", texts)
    shutil.copy(prose / "two.txt", texts)
    more = spoil(folder) or []
    settings = [
        *(f"model.path={folder}", "data=files", f"data.paths=[{texts}]", "engine=cpu"),
        *("tracking=none", "eval=none", f"run_dir={tmp_path / 'run'}", *short_recipe()),
        *("rope.target_length=128",),
    ]
    refused = run_here("src.train", *settings, *more)
    assert refused.returncode == 2, refused.stderr[-1500:]
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, refused.stderr[-1500:]
    said = refused.stderr[refused.stderr.index("error: ") :]
    assert message in said
    assert "Traceback" not in said
    assert len(said) < 2000
    assert not (tmp_path / "run").exists()
