"""What the ranks of tests/ranks.py have loaded before they begin: it takes seconds."""

from importlib import import_module

import torch

from src.training.engine.zero import load_deepspeed

load_deepspeed(torch.device("cpu"))
for module in (
    "deepspeed.module_inject.auto_ep_layer",
    "peft",
    "torch._functorch.partitioners",
    "torch._inductor.codegen.common",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "src.evals.running",
    "src.models.assembly",
    "src.training.engine.student",
    "src.training.engine.teacher",
    "src.training.run",
):
    import_module(module)
