"""A plan, printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from rich.console import Console
from rich.table import Table

from src import environment
from src.data.usage import StreamUse, TextUse
from src.models.config import native_rope
from src.models.hf_config import native_config, planned_facts, resolved_shape
from src.models.merging import MergeConfig
from src.models.own import judged_window
from src.models.sources import label_of
from src.planning.advice import misfit, typed
from src.planning.devices import ACCELERATORS, gib
from src.planning.fitting import OPEN
from src.planning.plan import Plan
from src.progress import duration, widen
from src.settings.config import RunConfig


def show(plan: Plan, config: RunConfig, console: Console) -> None:
    """Print the plan. If the output is not a terminal, it is wide enough for every figure.

    Args:
        config: the run's, as the user has typed it.
    """
    chosen = _chosen(plan, config)
    config = replace(config, engine=plan.engine)
    widen(console, 110)
    window, rope = config.model.native_window, config.rope
    console.print(
        environment.redacted(
            f"[bold]{config.experiment}[/bold]: {config.recipe.name} on {config.model.name}, "
            f"{rope.type} RoPE scaling {window:,} -> {rope.target_length:,} tokens "
            f"(factor {rope.resolved_factor(window):g}), {plan.engine.dtype}, seed {config.seed}"
        )
    )
    console.print(_stages(plan))
    if chosen:
        console.print(f"engine, chosen by the plan: {chosen}")
    for line in _notes(plan, config):
        console.print(environment.redacted(line))
    console.print(_memory(plan))
    if plan.seconds is None:
        listed = ", ".join(facts.name for facts in ACCELERATORS.values())
        console.print(
            f"time: not known, since the speed of {plan.device.name} is not listed; for a listed "
            f"device ({listed}) plan_for estimates it in a dry run"
        )
    else:
        student, teacher = config.engine.student, config.engine.teacher
        moved = student.offload_optimizer or student.offload_parameters
        moved = moved or teacher.offload_parameters
        guessed = "; what offloading takes of it is a guess" if moved else ""
        time = duration(plan.seconds)
        console.print(f"time: about {time} of training on {plan.device.name}{guessed}")
    if not plan.fits:
        console.print(f"[red]does not fit: {misfit(plan, config)}[/red]")


def _chosen(plan: Plan, config: RunConfig) -> str:
    """What the plan has settled of the engines, as a user would type it; empty if nothing."""
    pairs = {key: (attrgetter(key)(config.engine), attrgetter(key)(plan.engine)) for key in OPEN}
    return typed({key: after for key, (before, after) in pairs.items() if before != after})


def show_texts(use: TextUse, console: Console) -> None:
    """Print how much of the training text of each length each stream uses."""
    widen(console, 110)
    held_out = f" and {use.held_out:,} held out" if use.held_out else ""
    title = f"Texts: {use.documents:,} training documents{held_out}, {use.tokens:,} tokens"
    table = Table(title=title, title_justify="left")
    table.add_column("tokens of a document")
    columns = ["documents", "tokens"]
    for stream in use.streams:
        columns.append(f"used by {stream.name}")
        if stream.longest_first:
            columns.append("of these, read")
    for column in columns:
        table.add_column(column, justify="right")
    for row in use.classes:
        counts = [row.documents, row.tokens]
        for stream in use.streams:
            counts.append(row.used[stream.name])
            if stream.longest_first:
                counts.append(row.read[stream.name])
        table.add_row(row.label, *(f"{count:,}" for count in counts))
    console.print(table)
    for stream in use.streams:
        console.print(_stream_use(stream, use.tokens))
        for source in stream.sources:
            console.print(
                f"  {source.share:.1%} from {source.name}: {source.read:,} blocks, "
                f"{source.read / source.blocks:.3g} of its epochs"
            )


def _stream_use(stream: StreamUse, tokens: int) -> str:
    """How much of the text, and of its epoch, a stream reads."""
    packed = f", {stream.packed:,} of them of several documents" if stream.packed else ""
    epochs = f"{stream.read:,} blocks, {stream.read / stream.blocks:.3g} epochs"
    order = (
        f", those of the longest documents: {stream.tokens_read / tokens:.1%} of the text. "
        "More tokens (budget=, recipe.stages.*.tokens) read more of it"
    )
    return (
        f"{stream.name}: an epoch has {stream.blocks:,} blocks of {stream.length:,} tokens"
        f"{packed}, and uses {stream.tokens / tokens:.1%} of the text; the stage reads {epochs}"
        f"{order if stream.longest_first else ''}"
    )


def _stages(plan: Plan) -> Table:
    table = Table(title="Stages", title_justify="left")
    rows = [
        {
            "stage": stage.name,
            "tokens": f"{stage.tokens:,}",
            "steps": f"{stage.steps:,}",
            "tokens/step": f"{stage.tokens_per_step:,}",
            "micro-steps x ranks": f"{stage.accumulation} x {plan.world_size}",
            "trained": f"{stage.trainable_parameters:,}",
            "of": f"{stage.total_parameters:,}",
            "PFLOP": f"{stage.flops / 1e15:,.3g}",
            "s/step": "-" if (seconds := stage.seconds_per_step) is None else f"{seconds:.3g}",
        }
        for stage in plan.stages
    ]
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def _notes(plan: Plan, config: RunConfig) -> Iterator[str]:
    """Notes below the plan: tokens, streams, and what to know about them."""
    tokens = " + ".join(f"{stage.tokens:,}" for stage in plan.stages)
    steps = " + ".join(f"{stage.steps:,}" for stage in plan.stages)
    total = f" = {plan.tokens:,}" if len(plan.stages) > 1 else ""
    yield f"tokens: {tokens}{total} in {steps} optimizer step{'' if steps == '1' else 's'}"
    for name, stage in config.recipe.stages.items():
        if isinstance(stage, MergeConfig):
            yield f"{name} merges with the native model: {stage}; it reads no tokens"
    if config.budget is not None:
        yield f"budget: {config.budget} = {plan.tokens:,} tokens over all stages"
    for stage in plan.stages:
        if stage.tokens < stage.tokens_per_step:
            yield (
                f"[yellow]{stage.name}: {stage.tokens:,} tokens are fewer than a step's "
                f"{stage.tokens_per_step:,}, so it takes a single shorter step: raise budget or "
                f"recipe.stages.{stage.name}.tokens[/yellow]"
            )
        streams = ", ".join(f"{name} {count:,}" for name, count in stage.stream_tokens.items())
        yield f"expected tokens of {stage.name} by stream: {streams}"
        if stage.busy < 1:
            yield (
                f"[yellow]{stage.name}: a step has too few blocks for {plan.world_size} ranks; "
                f"{1 - stage.busy:.0%} of their work repeats others' blocks at weight 0[/yellow]"
            )
    if (parts := config.engine.sequence_parallel) > 1:
        readers = plan.world_size // parts
        yield f"each block is shared by {parts} ranks; {readers} such groups read blocks"
    if config.model.shape is None:
        yield _window(config)
    if plan.offloaded:
        yield f"offloading takes about {gib(plan.offloaded)} GiB of the machines' memory"
    rope = native_rope(config.model, resolved_shape(config.model))
    if rope.scaling is not None:
        yield (
            f"the model's own RoPE is {rope.scaling.type}, from {rope.original_window:,} tokens; "
            f"rope.on_scaled={config.rope.on_scaled}: {config.rope.type} scaling "
            + ("scales it further" if config.rope.on_scaled == "compose" else "takes its place")
        )
    for note in _unscaled(config):
        yield f"[yellow]{note}[/yellow]"
    for stage in plan.stages:
        again = "on: layers run again in the backward pass" if stage.checkpointing else "off"
        yield f"{stage.name}: gradient checkpointing {again}"
        if not plan.device.is_cpu:
            blocks = "block" if stage.micro_batch == 1 else "blocks"
            graphs = "on" if stage.graphs else f"off ({stage.no_graphs})"
            fused = "on" if stage.fused else "off"
            yield (
                f"{stage.name}: {stage.micro_batch} {blocks} at once, CUDA graphs {graphs}, fused "
                f"kernels {fused}"
            )


def _window(config: RunConfig) -> str:
    """Where the native window of a model without a stated shape comes from."""
    window, (stated, key) = config.model.native_window, judged_window(native_config(config.model))
    source = f"model: {label_of(config.model.source)}, family {config.model.family}; native window"
    if window == stated:
        return (
            f"{source} {window:,} tokens, which is {key} in its config.json; if it was trained at "
            "another length, set model.native_window"
        )
    return f"{source} {window:,} tokens, as set; {key} in its config.json is {stated:,}"


def _unscaled(config: RunConfig) -> Iterator[str]:
    """Distillation streams on which student and teacher have the same RoPE: they teach nothing."""
    rope = native_rope(config.model, resolved_shape(config.model))
    facts = planned_facts(config.model)
    for name, stage in config.recipe.training.items():
        for stream_name, objective in config.objectives(name).items():
            stream = stage.streams[stream_name]
            # Skipped positions differ from the teacher's under any scaling.
            distilled = objective.needs(facts).teacher and stream.positions == "contiguous"
            if distilled and config.rope.is_native_at(rope, stream.length):
                yield (
                    f"{name}: at {stream.length:,} tokens {config.rope.type} scaling leaves RoPE "
                    f"as it is, so a student that starts from its teacher's weights has nothing to "
                    f"learn from it in stream {stream_name}"
                )


def _memory(plan: Plan) -> Table:
    # Models of a test are far smaller than a hundredth of a GiB.
    small = max(stage.peak for stage in plan.stages) < 2**30
    size, unit = (2**20, "MiB") if small else (2**30, "GiB")
    title = f"Memory a rank at the peak, estimated ({unit}), on {plan.device.name}"
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for stage in plan.stages:
        table.add_column(stage.name, justify="right")
    for part in dict.fromkeys(part for stage in plan.stages for part in stage.memory):
        parts = (stage.memory.get(part) for stage in plan.stages)
        table.add_row(part, *("-" if held is None else f"{held / size:.2f}" for held in parts))
    table.add_row("[bold]all[/bold]", *(f"{stage.peak / size:.2f}" for stage in plan.stages))
    return table
