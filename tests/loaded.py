"""What the ranks of tests/ranks.py have loaded before they begin: it takes seconds."""

from importlib import import_module

from src.training.launch import uncollected

_MODULES = (
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.sequence_parallel.ulysses_sp",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.sequence.cross_entropy",
    "kernels.relation_kl.chunked",
    "peft",
    "peft.utils.transformers_weight_conversion",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "src.evals.running",
    "src.models.assembly",
    "src.training.engine.student",
    "src.training.engine.teacher",
    "src.training.engine.ulysses",
    "src.training.run",
    "tests.src.passes.test_passes",
)

# To look for garbage would also copy the memory that ranks share.
with uncollected(freezes=True):
    torch = import_module("torch")
    import_module("src.training.engine.zero").load_deepspeed(torch.device("cpu"))
    for module in _MODULES:
        import_module(module)
