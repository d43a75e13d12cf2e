"""Losses at the layers equal losses of whole captured models; what nobody wants isn't there."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kernels.relation_kl import relation_kl_set
from src.models.adapters import (
    FullParameters,
    LoraParameters,
    causal_model,
    in_fused,
    make_trainable,
)
from src.models.facts import ModelFacts
from src.models.families import FAMILIES
from src.models.shapes import facts_of
from src.objectives.base import QKV, Batch, Needs, Objective, Outputs
from src.objectives.longred import LongRed
from src.objectives.relation import Relation
from src.passes.capture import QKVCapture, attention_name
from src.passes.checkpointing import checkpoint_layers
from src.passes.preparation import prepare_decoder
from src.passes.skipping import known_parts
from src.passes.student import StudentModule
from src.passes.teacher import (
    Keep,
    SharedTeacherPass,
    TeacherModule,
)
from tests.conftest import by_default

LAYERS, TOKENS = 3, 13
LORA = LoraParameters("lora", 4, 8.0, 0.0, ("q_proj", "k_proj", "v_proj"))
IDS = torch.randint(0, 97, (2, TOKENS), generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Heads:
    """Sizes of a test model's attention: query heads, key-value heads, and a sliding window."""

    queries: int = 4
    keys: int = 2
    window: int = 5


def config(family: str, *, factor: float | None, heads: Heads = Heads()) -> PretrainedConfig:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if factor:
        rope = {"rope_type": "linear", "factor": factor, "rope_theta": 10000.0}
    extra: dict[str, Any] = {"sliding_window": heads.window} if family == "mistral" else {}
    if family == "phi3" and factor:
        # Its class takes tables only.
        table = dict.fromkeys(("short_factor", "long_factor"), [factor] * 4)
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": 4096, **table}
        rope |= {"attention_factor": 1.0}
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        sliding = {"rope_type": "default", "rope_theta": 100.0}
        rope = {"sliding_attention": sliding, "full_attention": rope}
        extra = {"sliding_window": heads.window, "layer_types": kinds}
        extra |= {"query_pre_attn_scalar": 12}
    return AutoConfig.for_model(
        FAMILIES[family].model_type,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads.queries,
        num_key_value_heads=heads.keys,
        head_dim=8,
        initializer_range=0.2,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )


def network(
    family: str = "llama",
    *,
    factor: float | None = None,
    dtype: torch.dtype = torch.float64,
    heads: Heads = Heads(),
) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            config(family, factor=factor, heads=heads),
            attn_implementation=attention_name("sdpa"),
            dtype=dtype,
        ).eval()
        for name, parameter in made.named_parameters():
            # As they are not when new: different in every dimension.
            if "norm" in name or "bias" in name:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        return made


@dataclass
class Pair:
    """A student module and what it wants from a teacher."""

    student: StudentModule
    teacher: TeacherModule | None
    objective: Objective
    facts: ModelFacts

    def loss(self) -> Tensor:
        return self.student(Batch(IDS), "it", self.teacher)[0]


def trained_network(
    family: str,
    parameters: LoraParameters | FullParameters,
    *,
    checkpointing: bool,
    dtype: torch.dtype = torch.float64,
    heads: Heads = Heads(),
) -> torch.nn.Module:
    """A scaled student whose adapters, if it has any, already do something."""
    fitting = in_fused(parameters, FAMILIES[family].fused)
    made = network(family, factor=4.0, dtype=dtype, heads=heads)
    student = make_trainable(made, fitting, seed=1)
    noise = torch.Generator().manual_seed(3)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=noise)
    student.train()
    if checkpointing:
        checkpoint_layers(student)
    return student


def pair(
    *,
    family: str = "llama",
    parameters: LoraParameters | FullParameters = LORA,
    checkpointing: bool = False,
    keep: Keep = "qkv",
    shared: bool = False,
    objective: Objective | None = None,
    dtype: torch.dtype = torch.float64,
) -> Pair:
    chosen = objective or Relation("relation", layers=(0, 2))
    student = trained_network(family, parameters, checkpointing=checkpointing, dtype=dtype)
    facts = facts_of(config(family, factor=None))
    native = config(family, factor=None)
    device = torch.device("cpu")
    ends = {chosen.needs(facts).stops_at}
    prepare_decoder(causal_model(student).get_decoder(), ends)
    base = SharedTeacherPass(student, keep, native, device) if shared else None
    module = StudentModule(student, {"it": chosen}, facts, base)
    teacher = None
    if not shared:
        taught = network(family, dtype=dtype)
        prepare_decoder(taught.get_decoder(), ends)
        teacher = TeacherModule(taught, keep)
    return Pair(module, teacher, chosen, facts)


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


@functools.cache
def whole(family: str, parameters: LoraParameters | FullParameters) -> tuple[Tensor, dict]:
    """The same loss from q, k, v of both whole models, and its gradients."""
    made = pair(family=family, parameters=parameters)

    def captured(model: nn.Module) -> dict[int, QKV]:
        capture = QKVCapture((0, 2))
        with capture.running():
            causal_model(model).get_decoder()(input_ids=IDS, use_cache=False)
        return capture.take()

    assert made.teacher is not None
    student, teacher = captured(made.student.network), captured(made.teacher.network)
    losses = [
        relation_kl_set(
            student[i][:3],
            teacher[i][:3],
            [1.0] * 3,
            window=made.facts.windows[i],
            scale=made.facts.scale,
            teacher_scale=made.facts.scale,
        )[0]
        for i in (0, 2)
    ]
    loss = torch.stack(losses).mean()
    return loss, gradients(loss, made.student)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parameters", [LORA, FullParameters("full")], ids=["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("keep", ["qkv", "layer_inputs"])
# Each two of the settings in every combination.
@by_default(
    lambda parameters, checkpointing, keep: (
        (parameters is LORA) == (checkpointing == (keep == "layer_inputs"))
    )
)
def test_loss_and_gradients_are_those_of_whole_models(
    family: str, parameters: Any, checkpointing: bool, keep: Keep
) -> None:
    expected, expected_gradients = whole(family, parameters)
    made = pair(family=family, parameters=parameters, checkpointing=checkpointing, keep=keep)
    loss = made.loss()
    assert expected > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found = gradients(loss, made.student)
    assert found.keys() == expected_gradients.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected_gradients[name], rtol=1e-9, atol=1e-12)
    assert any(value.abs().max() > 1e-6 for value in found.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("keep", ["qkv", "layer_inputs"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@by_default(
    lambda family, checkpointing, keep, dtype: (
        checkpointing == (dtype == torch.bfloat16)
        and (family in ("llama", "gemma3") or checkpointing == (keep == "layer_inputs"))
    )
)
def test_a_shared_base_gives_the_bits_of_a_teacher_of_its_own(
    family: str, checkpointing: bool, keep: Keep, dtype: torch.dtype
) -> None:
    two, one = (
        pair(family=family, checkpointing=checkpointing, keep=keep, shared=shared, dtype=dtype)
        for shared in (False, True)
    )
    first, second = two.loss(), one.loss()
    assert torch.equal(first, second)
    expected = gradients(first, two.student)
    assert all(torch.equal(g, expected[n]) for n, g in gradients(second, one.student).items())
    names = dict(one.student.named_parameters())
    assert not [n for n, p in names.items() if "lora" in n and not p.requires_grad]


def test_a_shared_base_leaves_the_student_as_it_was() -> None:
    made = pair(shared=True, keep="layer_inputs")
    decoder = causal_model(made.student.network).get_decoder()
    before = decoder.rotary_emb
    made.loss()
    assert decoder.rotary_emb is before
    assert made.student.network.training
    adapters = [m for m in made.student.modules() if isinstance(m, BaseTunerLayer)]
    assert adapters
    assert not any(m.disable_adapters for m in adapters)


def test_dropout_stays_the_students() -> None:
    """The shared teacher draws no random number: the student's dropout is what it would be."""
    lora = LoraParameters("lora", 4, 8.0, 0.5, ("q_proj", "k_proj", "v_proj"))
    values = []
    for shared in (False, True):
        made = pair(parameters=lora, shared=shared, checkpointing=True, keep="layer_inputs")
        torch.manual_seed(5)
        loss = made.loss()
        values.append((loss, gradients(loss, made.student)))
    assert torch.equal(values[0][0], values[1][0])
    assert all(torch.equal(g, values[1][1][n]) for n, g in values[0][1].items())


@dataclass(frozen=True)
class Watching(Objective):
    """An objective that notes which attention inputs are alive."""

    alive: list[weakref.ref]
    wants_hidden: bool = False

    def needs(self, facts: ModelFacts) -> Needs:
        return Needs(teacher=True, qkv_layers=tuple(range(LAYERS)), hidden=self.wants_hidden)

    def layer(self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts) -> Tensor:
        assert teacher is not None
        self.alive.extend(weakref.ref(x) for x in (*student[:3], *teacher[:3]))
        return (student.q_bhtd - teacher.q_bhtd).square().mean()

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert (student.hidden_bth is not None) == self.wants_hidden
        return torch.stack([student.layers[i] for i in range(LAYERS)]).mean(), {}


@pytest.mark.parametrize("shared", [False, True], ids=["two-engines", "shared"])
def test_nothing_of_a_checkpointed_layer_stays(shared: bool) -> None:
    alive: list[weakref.ref] = []
    made = pair(objective=Watching(alive), checkpointing=True, keep="layer_inputs", shared=shared)
    loss = made.loss()
    assert len(alive) == 6 * LAYERS
    assert not [ref for ref in alive if ref() is not None]
    loss.backward()
    assert len(alive) == 12 * LAYERS, "each layer ran once more, for the backward pass"
    del loss
    assert not [ref for ref in alive if ref() is not None]


@pytest.mark.thorough
def test_memory_does_not_grow_over_steps() -> None:
    made = pair(checkpointing=True, keep="layer_inputs", shared=True)

    def tensors() -> int:
        made.loss().backward()
        return sum(type(x) is Tensor for x in gc.get_objects())

    gc.collect()
    gc.disable()  # what only a collection frees would pile up
    try:
        tensors()
        first = tensors()
        for _ in range(200):
            last = tensors()
    finally:
        gc.enable()
    assert last == first


def calls(name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes each call of a function of torch.nn.functional."""
    found: list[int] = []
    inner = getattr(nn.functional, name)
    monkeypatch.setattr(nn.functional, name, lambda *a, **k: (found.append(1), inner(*a, **k))[1])
    return found


@pytest.mark.parametrize(
    ("objective", "layers", "attentions"),
    [
        (Relation("relation"), LAYERS, LAYERS - 1),
        (Relation("relation", layers=(0, 1)), 2, 1),
        (Watching([], wants_hidden=True), LAYERS, LAYERS),
    ],
    ids=["relation", "two-layers", "with-hidden"],
)
@pytest.mark.parametrize("shared", [False, True], ids=["two-engines", "shared"])
def test_work_that_nobody_uses_is_skipped(
    objective: Any,
    layers: int,
    attentions: int,
    shared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = pair(objective=objective, shared=shared)
    attention = calls("scaled_dot_product_attention", monkeypatch)
    activations: list[int] = []
    for model in (made.student, made.teacher):
        for name, module in model.named_modules() if model else ():
            if name.endswith("act_fn"):
                module.register_forward_hook(lambda *_: activations.append(1))
    made.loss()
    assert len(attention) == 2 * attentions
    assert len(activations) == 2 * attentions


def test_kernels_results_are_kept_and_not_computed_again() -> None:
    ran: list[int] = []

    @torch.library.custom_op("relation_kl::test_rows", mutates_args=())
    def rows(x: Tensor, y: Tensor) -> Tensor:
        ran.append(1)
        return (x - y).square().sum(-1)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return 2 * gradient[..., None] * (x - y), None

    rows.register_autograd(
        backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
    )

    class WithOperator(Watching):
        def layer(self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts) -> Any:
            assert teacher is not None
            return rows(student.q_bhtd, teacher.q_bhtd).mean()

    stored = pair(objective=WithOperator([]))
    expected = gradients(stored.loss(), stored.student)
    made = pair(objective=WithOperator([]), checkpointing=True, keep="layer_inputs")
    ran.clear()
    loss = made.loss()
    assert len(ran) == LAYERS
    found = gradients(loss, made.student)
    assert len(ran) == LAYERS
    assert all(torch.allclose(g, expected[n], rtol=1e-12) for n, g in found.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is interpreted on a CPU only")
def test_tritons_forward_runs_once_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.relation_kl import triton

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    launched: list[str] = []
    launch = triton._Call.launch

    def noted(self: Any, kernel: Any, name: str, *args: Any, **settings: Any) -> None:
        launched.append(name)
        launch(self, kernel, name, *args, **settings)

    monkeypatch.setattr(triton._Call, "launch", noted)
    chunked = pair(objective=Relation("relation"), dtype=torch.float32)
    expected = gradients(chunked.loss(), chunked.student)
    made = pair(
        objective=Relation("relation", backend="triton"),
        checkpointing=True,
        keep="layer_inputs",
        dtype=torch.float32,
    )
    found = gradients(made.loss(), made.student)
    assert launched.count("self_forward") == launched.count("self_backward") == LAYERS
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_every_listed_family_are_known(family: str) -> None:
    assert known_parts(network(family).get_decoder()) == FAMILIES[family].parts


def test_layers_of_another_kind_run_whole() -> None:
    plain = network()
    assert known_parts(plain.get_decoder())
    odd = copy.deepcopy(plain)
    odd.get_decoder().layers[1].extra = nn.Identity()  # type: ignore[union-attr]
    assert known_parts(odd.get_decoder()) is None


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_skipped_positions_do_not_cut_a_block_in_two(family: str) -> None:
    """transformers takes a gap in positions for the border of packed texts unless it is told."""
    positions_bt = torch.tensor([[*range(4), *range(40, 45), *range(96, 100)]] * 2)
    made = network(family, factor=4.0)
    facts = facts_of(made.config)
    student = StudentModule(made, {"it": LastHidden()}, facts, None)
    student(Batch(IDS, positions_bt), "it", None)
    found_bth = student.objectives["it"].seen[0]  # type: ignore[attr-defined]
    back_tt = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    seen_tt = (back_tt >= 0) & (back_tt < (facts.windows[0] or TOKENS))
    mask = torch.where(seen_tt, 0.0, float("-inf")).double()[None, None].expand(2, 1, -1, -1)
    expected_bth = made.get_decoder()(
        input_ids=IDS, position_ids=positions_bt, attention_mask=mask, use_cache=False
    ).last_hidden_state
    torch.testing.assert_close(found_bth, expected_bth, rtol=1e-10, atol=1e-10)
    contiguous_bth = made.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    assert (found_bth[:, -1] - contiguous_bth[:, -1]).abs().max() > 1e-3


@dataclass(frozen=True)
class LastHidden(Objective):
    """Keeps the student's hidden states."""

    seen: list[Tensor] = field(default_factory=list)
    type: str = "last_hidden"

    def needs(self, facts: ModelFacts) -> Needs:
        return Needs(teacher=False, hidden=True)

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert student.hidden_bth is not None
        self.seen.append(student.hidden_bth.detach())
        return student.hidden_bth.sum(), {}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", [(1,), (0, 2), (1, 3)], ids=str)
def test_chosen_hidden_states_are_the_models_own(
    layers: tuple[int, ...], checkpointing: bool
) -> None:
    """Loss and gradients are those of whole models that return all hidden states."""
    objective = LongRed("longred", layers)
    made = pair(objective=objective, checkpointing=checkpointing)
    loss = made.loss()
    found = gradients(loss, made.student)
    states = []
    for module in (made.student, made.teacher):
        assert module is not None
        decoder = causal_model(module.network).get_decoder()
        states.append(
            decoder(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
        )
    expected = sum(
        (1 - torch.nn.functional.cosine_similarity(s, t.detach(), dim=-1)).mean()
        for n in layers
        for s, t in [(states[0][n], states[1][n])]
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for name, value in gradients(expected, made.student).items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
