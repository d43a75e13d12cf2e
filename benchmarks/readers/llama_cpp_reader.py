"""What llama.cpp computes from GGUF files, through its library in a Python package.

    python llama_cpp_reader.py '{"files": [...], "ids": [[...], ...], "texts": [...], "out": FILE}'

It imports nothing of this project. Keys and values of attention are kept in float32. It writes a
`.npz` file: `logits/N/M` of file N and ids M (float32, the whole sequence), `window/N` (the file's
context length) and `ids/N/M` of text M, with the special tokens that the file asks for.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

# pyright: reportMissingImports=false
# Its packages are in an environment of their own, which the type checker does not see.
import llama_cpp_py_sync
import numpy as np
from llama_cpp_py_sync import Llama, _cffi_bindings

# The bindings' own library asks for a newer C library than many systems have.
_LIBRARY = importlib.util.find_spec("xllamacpp.xllamacpp")
assert _LIBRARY is not None
_cffi_bindings._lib = _cffi_bindings.ffi.dlopen(_LIBRARY.origin)


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    """Logits after each token of a sequence, float32 [tokens, vocabulary]."""
    lib, ffi = model._lib, model._ffi
    model._clear_context_state()
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i] = token, i
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
    if lib.llama_decode(model._ctx, batch):
        raise RuntimeError("llama_decode failed")
    rows = [
        np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(model._ctx, i), 4 * model.n_vocab), "f4")
        for i in range(len(ids))
    ]
    logits = np.stack(rows).copy()
    lib.llama_batch_free(batch)
    return logits


def main() -> None:
    """Read every file."""
    asked = json.loads(sys.argv[1])
    found: dict[str, Any] = {"version": np.array(llama_cpp_py_sync.__llama_cpp_tag__)}
    longest = max(map(len, asked["ids"]), default=1)
    for number, file in enumerate(asked["files"]):
        model: Any = Llama(
            file, n_ctx=longest, n_batch=longest, type_k="f32", type_v="f32", n_threads=2
        )
        found[f"window/{number}"] = np.array(model._lib.llama_model_n_ctx_train(model._model))
        for which, ids in enumerate(asked["ids"]):
            found[f"logits/{number}/{which}"] = logits_of(model, ids)
        for which, text in enumerate(asked.get("texts", ())):
            found[f"ids/{number}/{which}"] = np.array(model.tokenize(text), dtype=np.int64)
        model.close()
    np.savez(asked["out"], **found)


if __name__ == "__main__":
    main()
