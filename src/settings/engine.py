"""Settings of the engines: device, number format, and how both models are kept and run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from src.models.config import PositiveInt
from src.settings.strict import no_boolean

if TYPE_CHECKING:
    # Whatever runs sees settled engines: the plan replaces `auto` (src/planning/fitting.py).
    StudentStage = Literal[0, 1, 2, 3]
    TeacherStage = Literal[0, 3]
    Choice = bool
    Parts = int
else:
    StudentStage = Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(no_boolean)]
    TeacherStage = Annotated[Literal["auto", 0, 3], BeforeValidator(no_boolean)]
    Choice = Literal["auto"] | bool
    Parts = Literal["auto"] | PositiveInt


@dataclass(frozen=True)
class StudentEngineConfig:
    """DeepSpeed's settings for the student, and how its step is computed.

    Attributes:
        zero_stage: what ranks shard: nothing (0), the optimizer's state (1), also gradients (2),
            also weights (3). `auto` shards the least that fits (src/planning/fitting.py).
        offload_optimizer: keep AdamW's state and master weights in the host's memory; `auto` does
            so if nothing else makes the run fit.
        gradient_checkpointing: run each layer again in the backward pass instead of keeping its
            activations; `auto` does so in stages that do not fit otherwise
            (src/planning/decisions.py).
        accumulate_in: number format in which gradients of micro-steps are added up; `auto` is
            float32, except where DeepSpeed has none (bfloat16 at zero_stage 0).
        micro_batch: the most blocks of a stage's longest stream that a rank runs at once. Of a
            shorter stream, it runs as many blocks as have the same tokens. `auto` runs as many as
            fit into a GPU's memory (src/planning/decisions.py).
    """

    zero_stage: StudentStage = 0
    offload_optimizer: Choice = False
    offload_parameters: bool = False
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    accumulate_in: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch: Literal["auto"] | PositiveInt = "auto"

    def __post_init__(self) -> None:
        if self.offload_optimizer is True and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true needs zero_stage 1, 2 or 3, not 0")
        if self.offload_parameters and self.zero_stage not in (3, "auto"):
            raise ValueError(f"offload_parameters=true needs zero_stage 3, not {self.zero_stage}")


@dataclass(frozen=True)
class TeacherEngineConfig:
    """Settings of the frozen teacher.

    Attributes:
        zero_stage: 3 shards the weights over the ranks; `auto` does so if the run does not fit
            otherwise.
        share_base: use the student's frozen weights, without adapters and with native RoPE, as the
            teacher. Memory then holds one copy. Only for stages that train adapters. `auto` does
            so where the run fits or gets faster by it.
        keep: what the teacher keeps of each layer until the student's backward pass. `qkv` keeps q,
            k and v. `layer_inputs` takes a third of that memory, and computes q, k and v again.
            `auto` keeps layer inputs if the student's layers are checkpointed too. If the teacher's
            weights are sharded, it prefers q, k and v where they fit.
        verify_frozen: hash the weights before and after training, and fail if they differ.
    """

    zero_stage: TeacherStage = 0
    offload_parameters: bool = False
    share_base: Choice = False
    keep: Literal["auto", "layer_inputs", "qkv"] = "auto"
    verify_frozen: bool = True

    def __post_init__(self) -> None:
        if self.share_base is True and self.zero_stage == 3:
            raise ValueError(
                "share_base=true has no engine for the teacher: leave zero_stage at 0 here; "
                "engine.student.zero_stage=3 shards the weights that both use"
            )
        is_whole = self.zero_stage not in (3, "auto") or self.share_base is True
        if self.offload_parameters and is_whole:
            raise ValueError(
                "offload_parameters=true needs zero_stage 3 and share_base=false, not "
                f"zero_stage={self.zero_stage} and share_base={str(self.share_base).lower()}"
            )


@dataclass(frozen=True)
class EngineConfig:
    """Device, number format and both engines.

    Attributes:
        dtype: number format of weights and activations; `auto` is bfloat16 on a GPU and float32 on
            a CPU, where bfloat16 is slow.
        compile: let torch.compile fuse the element-wise work of each decoder layer. Compiling takes
            a minute when a stage starts.
        sequence_parallel: ranks that share each block. Each rank runs a part of the block's tokens.
            For attention and relations it runs all tokens, with a share of the heads. `auto` lets
            them share a block if it does not fit otherwise, or if a step has fewer blocks than
            ranks.
        cuda_graphs: record the kernels of a micro-step once, and replay them without the host
            (src/passes/graphs.py). `auto` does so on a GPU unless something stands against it; the
            plan says what.
        fused_kernels: let Liger-Kernel's kernels compute norms, RoPE and gated activations
            (src/passes/fused.py). `auto` does so on a GPU, for models with LLaMA's formulas.
    """

    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16"]
    student: StudentEngineConfig
    teacher: TeacherEngineConfig
    compile: bool = False
    cuda_graphs: Literal["auto"] | bool = "auto"
    fused_kernels: Literal["auto"] | bool = "auto"
    sequence_parallel: Parts = 1

    def __post_init__(self) -> None:
        student = self.student
        if self.compile and self.sequence_parallel not in (1, "auto"):
            raise ValueError(
                f"compile=true and sequence_parallel={self.sequence_parallel} do not go together: "
                "leave one of them out (layers of long blocks are checkpointed, not compiled)"
            )
        if self.compile and student.gradient_checkpointing is True:
            raise ValueError(
                "compile=true and student.gradient_checkpointing=true do not go together: a "
                "compiled layer itself chooses what it keeps; leave one of them out"
            )
        if self.compile and 3 in (student.zero_stage, self.teacher.zero_stage):
            raise ValueError(
                "compile=true needs whole weights: use zero_stage 0, 1 or 2 for the student and 0 "
                "for the teacher"
            )
        plain = self.dtype == "bfloat16" and student.zero_stage == 0
        if plain and student.accumulate_in == "float32":
            raise ValueError(
                "student.accumulate_in=float32 needs zero_stage 1, 2 or 3 in bfloat16; on one rank "
                "zero_stage=1 costs nothing"
            )
        if self.dtype == "float32" and student.accumulate_in == "bfloat16":
            raise ValueError("student.accumulate_in=bfloat16 is for dtype=bfloat16")

    @property
    def accumulation_dtype(self) -> Literal["float32", "bfloat16"]:
        """Number format in which gradients of micro-steps are added up."""
        if self.student.accumulate_in != "auto":
            return self.student.accumulate_in
        # Without ZeRO, DeepSpeed offers no float32 accumulation of bfloat16 gradients.
        narrow = self.dtype == "bfloat16" and self.student.zero_stage == 0
        return "bfloat16" if narrow else "float32"
