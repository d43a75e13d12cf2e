"""Memory and time of a stage on one rank, from shapes: arithmetic only.

Memory counts weights, gradients, optimizer states and activations: the tensors that autograd keeps
of a LLaMA-like decoder layer, and the largest temporary tensors beside them. Time is the sum of
matrix products at a share of the device's rate and of memory traffic at a share of its bandwidth.
benchmarks/step.py compares both with measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from src.models.adapters import AnyParameters, LoraParameters, QkvParameters
from src.models.config import ModelShape
from src.models.facts import ModelFacts
from src.objectives.base import Needs, Objective
from src.passes.chunks import Chunks
from src.settings.config import RunConfig
from src.training.schedule import StageConfig, StageSchedule

if TYPE_CHECKING:
    from src.passes.teacher import Keep

_WIDTH = {"float32": 4, "bfloat16": 2}

# Elements in which DeepSpeed reduces gradients (src/training/engine/).
REDUCE_BUCKET = 100_000_000

# Bytes per row and head of the relation operator's outputs (kernels/relation_kl/triton.py).
_ROW_SUMS = 5 * 4

# cuBLAS's own buffers.
_WORKSPACE = 72 * 2**20


@dataclass(frozen=True)
class Setting:
    """The inputs of a stage's cost.

    Attributes:
        adapters: LoRA weights of the student; None without adapters.
        checkpointing: layers run again in the backward pass.
        micro_batch: the most blocks of the stage's longest stream that a rank runs at once.
        graphs: micro-steps are CUDA graphs.
        fused: elementwise work runs as fused kernels.
    """

    config: RunConfig
    stage: StageConfig
    shape: ModelShape
    facts: ModelFacts
    adapters: int | None
    world_size: int
    checkpointing: bool = False
    keep: Keep = "qkv"
    micro_batch: int = 1
    graphs: bool = False
    fused: bool = False

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return _WIDTH[self.config.engine.dtype]

    @property
    def objectives(self) -> dict[str, Objective]:
        """The stage's objectives by stream."""
        return {name: self.config.objective.of(s) for name, s in self.stage.streams.items()}

    @cached_property
    def needs(self) -> dict[str, Needs]:
        """What the objectives need of the models, by stream."""
        return {name: o.needs(self.facts) for name, o in self.objectives.items()}

    @property
    def has_teacher(self) -> bool:
        """Whether an objective has a teacher."""
        return any(needs.teacher for needs in self.needs.values())

    def layers_run(self, stream: str) -> int:
        """The student's layers that a stream's blocks go through, the last one maybe in part."""
        last = self.needs[stream].stops_at
        return self.shape.layers if last is None else last + 1

    @property
    def base(self) -> int:
        """The model's own weights that are trained."""
        if self.lora is not None:
            return 0
        if isinstance(self.stage.parameters, QkvParameters):
            return self.shape.layers * self.shape.qkv_parameters
        return self.shape.parameters

    @property
    def trainable(self) -> int:
        """Trained weights."""
        return self.base + (self.adapters or 0)

    @property
    def total(self) -> int:
        """The student's weights."""
        return self.shape.parameters + (self.adapters or 0)

    @property
    def queries(self) -> int:
        """Numbers of a token's queries, over all heads."""
        return self.shape.heads * self.shape.head_dim

    @property
    def keys(self) -> int:
        """Numbers of a token's keys, or of its values, over all heads."""
        return self.shape.kv_heads * self.shape.head_dim

    @property
    def parts(self) -> int:
        """Ranks that share each block."""
        return self.config.engine.sequence_parallel

    @property
    def readers(self) -> int:
        """Ranks, or groups of ranks that share blocks, which read blocks of their own."""
        return self.world_size // self.parts

    @property
    def copies(self) -> float:
        """Copies of a key-value head among the ranks that share a block."""
        return max(1.0, self.parts / self.shape.kv_heads)

    @property
    def lora(self) -> LoraParameters | None:
        """The adapters' settings."""
        parameters = self.stage.parameters
        return parameters if isinstance(parameters, LoraParameters) else None


def adapter_parameters(
    parameters: AnyParameters, projections: Mapping[str, tuple[int, int]], layers: int
) -> int | None:
    """Weights of LoRA adapters; None if none are trained.

    `projections` are the linear layers of a decoder layer: inputs and outputs by name.
    """
    if not isinstance(parameters, LoraParameters):
        return None
    sizes = [projections[name] for name in parameters.projections]
    # DoRA also has a magnitude for each output.
    magnitudes = sum(outputs for _, outputs in sizes) if parameters.use_dora else 0
    return layers * (parameters.rank * sum(map(sum, sizes)) + magnitudes)


def memory(setting: Setting) -> dict[str, float]:
    """Bytes a rank at the peak of a step, by part."""
    engine, ranks, width = setting.config.engine, setting.world_size, setting.width
    student, teacher, shape = engine.student, engine.teacher, setting.shape
    taught = setting.has_teacher
    parts: dict[str, float] = {}
    if taught and not teacher.share_base:
        shards = ranks if teacher.zero_stage == 3 else 1
        weights = shape.parameters * width / shards
        parts["teacher weights"] = 0 if teacher.offload_parameters else weights
    shards = {stage: ranks if student.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    weights = setting.total * width / shards[3]
    parts["student weights"] = 0 if student.offload_parameters else weights
    if 3 in (student.zero_stage, teacher.zero_stage if taught else 0):
        # The layer that runs, the one before it, and the one that is fetched ahead
        # (src/training/engine/); or the embedding, or the head.
        ahead = max(3 * shape.layer_parameters, shape.embedding_parameters)
        ahead = min(shape.parameters, ahead)
        parts["gathered weights"] = ahead * width
    gradient_width = _WIDTH[engine.accumulation_dtype]
    parts["gradients"] = setting.trainable * gradient_width / shards[2]
    if student.zero_stage >= 2 or (student.zero_stage == 1 and gradient_width == width):
        parts["gradient buckets"] = min(REDUCE_BUCKET, setting.trainable) * width
    if setting.graphs:
        # A graph writes its gradients to memory of its own.
        parts["graphs' gradients"] = len(setting.stage.streams) * setting.trainable * width
    # AdamW: two float32 moments, and a float32 master copy of lower-precision weights.
    state = setting.trainable * (8 if width == 4 else 12) / shards[1]
    parts["optimizer"] = 0 if student.offload_optimizer else state
    streams = [_stream_memory(setting, name) for name in setting.stage.streams]
    parts |= max(streams, key=lambda stream: sum(stream.values()))
    return parts


def _stream_memory(setting: Setting, name: str) -> dict[str, float]:
    """Bytes that a micro-step of one stream holds at its peak."""
    stream, shape, width = setting.stage.streams[name], setting.shape, setting.width
    wants = setting.needs[name]
    at_once = setting.stage.at_once(name, setting.micro_batch)
    # A micro-step holds no more than a step. Of blocks that ranks share, a rank holds a part of the
    # tokens, or in attention all tokens for the same part of the heads. Buffers of the exchange are
    # smaller than the MLP's.
    n = min(stream.length * at_once, setting.stage.step_tokens) // setting.parts
    layers = setting.layers_run(name)
    layer = n * _kept_of_layer(setting, wants)
    # In the MLP's backward: gradients of its product and of both factors, beside what is kept.
    temporary = n * width * (3 * shape.intermediate + 4 * shape.hidden)
    parts: dict[str, float] = {}
    heads = shape.heads + 2 * shape.kv_heads * setting.copies
    rows = _ROW_SUMS * heads if wants.qkv_layers else 0
    if setting.checkpointing:
        parts["activations"] = layers * n * (shape.hidden * width + rows) + layer + temporary
    else:
        parts["activations"] = layers * (layer + n * rows) + temporary
    if masked := masked_layers(setting, name):
        # SDPA keeps each layer's mask for the backward pass, in the width of the scores.
        masks = (1 if setting.checkpointing else masked) * width + 1
        parts["attention masks"] = float(masks) * stream.length**2
    if wants.teacher and wants.qkv_layers:
        qkv = setting.queries + 2 * setting.keys * setting.copies
        kept = shape.hidden if setting.keep == "layer_inputs" else qkv
        # A teacher that reads overlapping chunks keeps the overlaps too.
        read = Chunks(stream.length, wants.teacher_chunk).read / stream.length
        parts["teacher's layers"] = len(wants.qkv_layers) * n * read * kept * width
        parts["relation kernel"] = n * setting.queries * 4
    if wants.hidden_layers or (wants.teacher and wants.hidden):
        # The teacher's; and in float32 both sides of one pair and their gradients.
        count = len(wants.hidden_layers) + wants.hidden
        parts["hidden states"] = n * shape.hidden * (count * width + 4 * 4)
    if wants.head:
        # Logits of a chunk, their logarithms and their gradient, in float32; of a teacher too.
        tensors = 7 if wants.teacher_head else 3
        parts["logits"] = tensors * 4 * min(n, 2048) * shape.vocabulary
    parts["workspace"] = _WORKSPACE
    return parts


def masked_layers(setting: Setting, name: str) -> int:
    """Layers whose window is shorter than a stream's blocks, so that attention needs a mask."""
    length = setting.stage.streams[name].length
    return sum(window is not None and window < length for window in setting.facts.windows)


def _kept_of_layer(setting: Setting, wants: Needs) -> float:
    """Bytes per token that autograd keeps of one layer for its backward pass."""
    shape, width, lora = setting.shape, setting.width, setting.lora
    hidden, intermediate = shape.hidden, shape.intermediate
    q, k = setting.queries, setting.keys
    compiled = setting.config.engine.compile
    # Input of each norm, those of queries and keys included, in float32 if it is made.
    norms = width if compiled or setting.fused else 4
    norms *= shape.norms * hidden + (q + k if shape.qk_norm else 0)
    attention = width * (2 * q + 2 * k * setting.copies)  # q, k, v and the output
    # Gate, up, and the activated gate, which a fused kernel computes again.
    mlp = width * (2 if setting.fused else 3) * intermediate
    kept = norms + attention + mlp
    if isinstance(setting.stage.parameters, QkvParameters):
        kept += width * hidden  # the projections' common input
    elif lora is None:
        # Inputs of the projections, and of the norms' weights.
        kept += width * ((2 if setting.fused else 2 + shape.norms) * hidden + intermediate)
        kept += width * (q + k if shape.qk_norm else 0)
        # The attention's output, once more for the projection after it.
        kept += width * q if setting.parts > 1 else 0
    else:
        count = len(lora.projections)
        # Compiled, what was dropped out is made again from the input and the masks.
        dropped = (count + width if compiled else count * (width + 1)) * hidden
        inputs = dropped if lora.dropout else width * hidden
        kept += inputs + width * count * lora.rank
    if wants.teacher and wants.qkv_layers and setting.keep == "layer_inputs":
        # The teacher's, which the relation's gradient reads.
        kept += width * (q + 2 * k * setting.copies)
    return kept


@dataclass(frozen=True)
class Work:
    """Work of a stage, over all ranks.

    Attributes:
        products, attention, relations: floating-point operations of matrix products with weights,
            of attention, and of the objectives; a multiplication and an addition are two.
        traffic: bytes that element-wise work moves.
    """

    products: float
    attention: float
    relations: float
    traffic: float

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.products + self.attention + self.relations

    def __add__(self, other: Work) -> Work:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Work(*(mine + theirs for mine, theirs in pairs))

    def times(self, factor: float) -> Work:
        """This work `factor` times over."""
        return Work(*(part * factor for part in astuple(self)))


def work(setting: Setting, schedule: StageSchedule) -> Work:
    """The work of student and teacher, forward and backward, over the whole stage."""
    total = Work(0.0, 0.0, 0.0, 0.0)
    for name, tokens in schedule.tokens_read().items():
        blocks = tokens / setting.stage.streams[name].length
        total = total + block_work(setting, name).times(blocks)
    return total


def block_work(setting: Setting, name: str) -> Work:
    """Work of one block of a stream: the teacher's forward, the student's forward and backward."""
    shape, adapters = setting.shape, setting.adapters
    stream = setting.stage.streams[name]
    objective, wants = setting.objectives[name], setting.needs[name]
    n, layers = float(stream.length), shape.layers
    qkv = shape.hidden * (setting.queries + 2 * setting.keys)
    weights = layers * (shape.layer_parameters - 2 * shape.hidden)
    if wants.stops_at is not None:
        layers = wants.stops_at
        weights = layers * (shape.layer_parameters - 2 * shape.hidden) + qkv
    products = 2 * weights * n
    # Causal attention: two products over half the square forward, five backward.
    unit = float(layers * setting.queries) * n**2
    head = 2.0 * shape.embedding_parameters * n if wants.head else 0.0
    taught_head = head if wants.teacher_head else 0.0
    lora = 0.0 if adapters is None else 2.0 * adapters * n
    again = 1 if setting.checkpointing else 0
    # Frozen weights need only the gradient of their inputs.
    trained = setting.base / shape.parameters if setting.base < shape.parameters else 1.0
    backward = products * (1 + trained)
    done = Work(
        (1 + again) * (products + lora) + backward + 2 * lora + 3 * head,
        (2 * (1 + again) + 5) * unit,
        objective.flops(stream.length, setting.facts),
        (3 + again) * layers * n * _layer_traffic(setting, student=True),
    )
    if not wants.teacher:
        return done
    twice = len(wants.qkv_layers) * (1 + again) if setting.keep == "layer_inputs" else 0
    chunks = Chunks(stream.length, wants.teacher_chunk)
    read = chunks.read / n
    taught = Work(
        read * (products + 2 * qkv * n * twice) + taught_head,
        2 * unit * chunks.pairs / n**2,
        0.0,
        read * layers * n * _layer_traffic(setting, student=False),
    )
    return done + taught


def _layer_traffic(setting: Setting, *, student: bool) -> float:
    """Bytes per token that element-wise work of a layer's forward pass moves."""
    shape, width, lora = setting.shape, setting.width, setting.lora
    compiled = setting.config.engine.compile
    lean = compiled or setting.fused
    turned = setting.queries + setting.keys
    normed = shape.norms * shape.hidden + (turned if shape.qk_norm else 0)
    norms = (2 * width if lean else 20 + 8 * width) * normed
    rope = (2 if lean else 9) * width * turned
    mlp = (3 if lean else 5) * width * shape.intermediate
    residual = 6 * width * shape.hidden
    total = float(norms + rope + mlp + residual)
    if student and lora is not None:
        count = len(lora.projections)
        total += (3 if compiled else 5) * width * count * shape.hidden
        if lora.dropout:
            total += count * (2 * width + 1) * shape.hidden
    return total
