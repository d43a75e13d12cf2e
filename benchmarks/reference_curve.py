"""The public reference's loop and ours, side by side, on its own objective and schedule.

    python -m benchmarks.reference_curve --reference CHECKOUT --out FILE

Both sides have the same weights, text, scaling and initial adapters, no dropout, and the
reference's settings: AdamW, clipping at 5, a rate that is 0 in the first step, all three relations
divided by the number of query heads. The reference's side is plain torch in the order of its
train.py; the KL is its own Triton kernels' from CHECKOUT on a GPU, else the dense formula. Ours is
the engine, the objective and the kernels of this project. What it logs is kept in its way too: the
loss of a step's last block, and the norm after clipping.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from src.models.adapters import causal_model, make_trainable
from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model
from src.models.shapes import facts_of
from src.objectives.base import QKV, Batch
from src.passes.capture import QKVCapture
from src.planning import plan
from src.planning.devices import device_of, dtype_of, uses_cuda
from src.run_folder import device_name, versions, write_json
from src.settings import loading
from src.settings.config import RunConfig
from src.training import launch, texts
from src.training import stage as stages
from src.training.launch import World

ROOT = Path(__file__).resolve().parents[1]
STAGE, STREAM = "ard", "short"
WARM_UP, LEAST, CLIP, ACCUMULATION = 4, 0.9, 5.0, 2

Kl = Callable[[Tensor, Tensor], Tensor]


def reference_rate(peak: float, step: int, steps: int) -> float:
    """The reference's schedule: 0 in the first step, and a cosine that never reaches its end."""
    if step < WARM_UP:
        return peak * step / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return peak * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * progress)))


def reference_kl(checkout: Path, device: torch.device) -> Kl:
    """Sum over rows and heads of KL(teacher || student) of a self-relation.

    The checkout's package is called `kernels`, as ours is, so it is loaded under another name.

    Raises:
        FileNotFoundError: the checkout is not the reference's.
    """
    folder = checkout / "kernels" / "attention_KL"
    if not (folder / "integration.py").is_file():
        raise FileNotFoundError(
            f"--reference {checkout} has no kernels/attention_KL/integration.py"
        )
    if device.type != "cuda":
        return dense_kl
    name = "reference_attention_kl"
    spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    align = importlib.import_module(f"{name}.integration").attn_kl_align

    def own(student: Tensor, teacher: Tensor) -> Tensor:
        scale = student.shape[-1] ** -0.5
        s, t = student.contiguous(), teacher.contiguous()
        return align(s, s, t, t, attn_mask=None, causal=True, sm_scale_s=scale, sm_scale_t=scale)

    return own


def dense_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """The same, dense, in float32."""
    tokens, scale = student.shape[2], student.shape[-1] ** -0.5
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=student.device).triu(1)
    s_log, t_log = (
        (x.float() @ x.float().transpose(-1, -2) * scale)
        .masked_fill(hidden, torch.finfo(torch.float32).min)
        .log_softmax(-1)
        for x in (student, teacher)
    )
    return (t_log.exp() * (t_log - s_log)).sum()


def _captured(network: Any, ids_bt: Tensor, layers: int) -> dict[int, QKV]:
    capture = QKVCapture(range(layers))
    with capture.running():
        causal_model(network).get_decoder()(input_ids=ids_bt, use_cache=False)
    return capture.take()


def references_side(
    settings: RunConfig, blocks: list[Tensor], steps: int, kl: Kl
) -> list[dict[str, float]]:
    """Its loop, one process."""
    stage, device = settings.recipe.training[STAGE], device_of(settings.engine.device)
    dtype = dtype_of(settings.engine.dtype)
    native = native_config(settings.model)
    layers = facts_of(native).layers
    teacher: Any = load_model(settings.model, native, dtype=dtype, capture=True)
    scaled = scaled_config(settings.model, settings.rope)
    base = load_model(settings.model, scaled, dtype=dtype, capture=True)
    student: Any = make_trainable(base, stage.parameters, seed=settings.seed)
    # PEFT's default, which the reference leaves: adapters in float32.
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    teacher, student = teacher.to(device).requires_grad_(False), student.to(device).train()
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage.lr)
    records = []
    for step in range(steps):
        lr = reference_rate(stage.lr, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = []
        for ids_bt in blocks[step * ACCUMULATION : (step + 1) * ACCUMULATION]:
            with torch.no_grad():
                taught = _captured(teacher, ids_bt.to(device), layers)
            made = _captured(student, ids_bt.to(device), layers)
            total = torch.zeros((), device=device)
            for layer in range(layers):
                rows = made[layer].q_bhtd.shape[:3].numel()
                for s, t in zip(made[layer][:3], taught[layer][:3], strict=True):
                    total = total + kl(s, t) / rows
            loss = total / layers
            (loss / ACCUMULATION).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        clipped = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        records.append(_record(step, lr, losses, float(norm), float(clipped)))
    return records


def our_side(
    settings: RunConfig, blocks: list[Tensor], steps: int, world: World
) -> list[dict[str, float]]:
    """Our engines and objective, at the reference's rates."""
    stage, device = settings.recipe.training[STAGE], device_of(settings.engine.device)
    planned = plan.make(settings, world_size=1).stage(STAGE)
    built = stages.build_engines(settings, STAGE, planned, settings.objectives(STAGE))
    assert built.teacher is not None
    records = []
    for step in range(steps):
        lr = reference_rate(stage.lr, step, steps)
        losses = []
        for number in range(ACCUMULATION):
            batch = Batch(blocks[step * ACCUMULATION + number].to(device))
            loss, _ = built.student.loss(batch, STREAM, built.teacher.outputs)
            built.student.backward(loss / ACCUMULATION, last=number == ACCUMULATION - 1)
            losses.append(loss.detach())
        norm = float(built.student.step(lr))
        records.append(_record(step, lr, losses, norm, min(norm, CLIP)))
    built.student.close()
    built.teacher.close()
    return records


def _record(
    step: int, lr: float, losses: list[Tensor], norm: float, clipped: float
) -> dict[str, float]:
    values = [float(x) for x in losses]
    return {
        "step": step + 1,
        "lr": lr,
        "loss": sum(values) / len(values),
        "loss_last_block": values[-1],
        "grad_norm": norm,
        "grad_norm_after_clipping": clipped,
    }


def composed(given: argparse.Namespace) -> RunConfig:
    """The run's config: the first stage of LinearARD, as the reference has it."""
    stage = f"recipe.stages.{STAGE}"
    overrides = [
        "+experiment=linearard_32k",
        f"model={given.model}",
        f"data={given.data}",
        "engine=zero1",
        "eval=none",
        "tracking=none",
        "~recipe.stages.cpt",
        "data.packing=false",
        "objective.terms.relation.normalization=reference",
        f"{stage}.parameters.dropout=0.0",
        f"{stage}.streams.{STREAM}.length={given.length}",
        f"{stage}.tokens_per_step={ACCUMULATION * given.length}",
        f"{stage}.tokens={given.steps * ACCUMULATION * given.length}",
        *given.overrides,
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return loading.load(RunConfig, compose("train", overrides=overrides))


def main() -> None:
    """Run both sides and write both curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the reference")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--data", default="books")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("overrides", nargs="*", help="further settings of src.train")
    given = parser.parse_args()
    settings, world = composed(given), World()
    device = device_of(settings.engine.device)
    kl = reference_kl(given.reference, device)
    with launch.joined(world, cuda=uses_cuda(settings.engine.device)):
        source = texts.prepare_data(settings).blocks[STAGE][STREAM]
        blocks = [torch.from_numpy(source[i])[None] for i in range(given.steps * ACCUMULATION)]
        result: dict[str, Any] = {
            "device": device_name(),
            "versions": versions(),
            "commit": given.commit,
            "command": "python -m benchmarks.reference_curve --reference CHECKOUT",
            "model": given.model,
            "dtype": settings.engine.dtype,
            "kernels": "the reference's" if device.type == "cuda" else "dense",
            "rows": [],
        }
        for side, records in (
            ("reference", lambda: references_side(settings, blocks, given.steps, kl)),
            ("ours", lambda: our_side(settings, blocks, given.steps, world)),
        ):
            for record in records():
                about = {"side": side, "step": record["step"], "lr": record["lr"]}
                for name in ("loss", "loss_last_block", "grad_norm", "grad_norm_after_clipping"):
                    unit = "nats" if name.startswith("loss") else ""
                    row = {"name": name, "value": record[name], "unit": unit}
                    result["rows"].append(row | about)
            write_json(given.out, result)
    print(f"largest relative difference of the loss: {largest_difference(result):.2e}")


def largest_difference(result: dict[str, Any]) -> float:
    """Of the mean loss of a step, over all steps."""
    sides = {
        side: [r["value"] for r in result["rows"] if (r["name"], r["side"]) == ("loss", side)]
        for side in ("reference", "ours")
    }
    pairs = zip(sides["reference"], sides["ours"], strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs)


if __name__ == "__main__":
    main()
