"""The model card of an export: what it is, how it was made, its scores, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from src import environment
from src.assets.pins import ASSETS
from src.data.config import HubDataset, PackagedText
from src.evals.suite import ResultTable
from src.manifest import digest_of, read_manifest, write_manifest
from src.models.config import FolderWeights, HubWeights, ModelConfig, PackagedWeights, native_rope
from src.models.exporting.config import CARD
from src.models.exporting.gguf import gguf_name
from src.models.exporting.readers import oldest_transformers
from src.models.families import family_of
from src.models.hf_config import resolved_shape
from src.models.rope import NativeRope, RopeScaling
from src.run_folder import write_whole
from src.settings.config import RunConfig

# The hub's identifiers of licences that packaged models have.
_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}


def model_card(
    config: RunConfig, record: Mapping[str, Any], stage: str, tables: Iterable[ResultTable] = ()
) -> str:
    """The text of the card; without tables of evaluations it says that there were none."""
    front = yaml.safe_dump(_front_matter(config), sort_keys=False)
    parts = [
        f"---\n{front}---\n\n# {config.model.name}, context {config.rope.target_length:,}",
        _summary(config, stage),
        _table(("", ""), _facts(config, record)),
        _scores(tables),
        _usage(config),
    ]
    return environment.redacted("\n\n".join(parts) + "\n")


def add_scores(
    folder: Path,
    config: RunConfig,
    record: Mapping[str, Any],
    stage: str,
    tables: Iterable[ResultTable],
) -> None:
    """Write an export's card again, with its scores, and note it in the folder's manifest."""
    write_whole(folder / CARD, model_card(config, record, stage, tables).encode())
    manifest = read_manifest(folder)
    files = manifest.pop("files") | {CARD: digest_of(folder / CARD)}
    facts = {key: value for key, value in manifest.items() if key != "schema"}
    write_manifest(folder, files, **facts)


def _front_matter(config: RunConfig) -> dict[str, Any]:
    source = config.model.source
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= _licence(config.model)
    if isinstance(source, HubWeights):
        front["base_model"] = source.repo
    texts = config.data.sources.values()
    if hub := [text.path for text in texts if isinstance(text, HubDataset)]:
        front["datasets"] = hub
    return front | {"tags": ["long-context", "rope-scaling", config.rope.type, config.recipe.name]}


def _licence(model: ModelConfig) -> dict[str, str]:
    """The base model's licence, if it is known: of a package, or stated by a folder's own card."""
    source = model.source
    if isinstance(source, PackagedWeights):
        licence = ASSETS[source.asset].licence
        if licence in _LICENCES:
            return {"license": _LICENCES[licence]}
        return {"license": "other", "license_name": licence}
    if isinstance(source, FolderWeights):
        card = Path(source.path).expanduser() / CARD
        parts = card.read_text(encoding="utf-8").split("---\n") if card.is_file() else []
        stated = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
        if isinstance(stated, dict) and isinstance(stated.get("license"), str):
            return {"license": stated["license"]}
    return {}


def _summary(config: RunConfig, stage: str) -> str:
    stages = list(config.recipe.stages)
    done = stages[: stages.index(stage) + 1]
    tokens = sum(s.tokens for name, s in config.recipe.training.items() if name in done)
    return (
        f"{config.model.name} with its context window extended from "
        f"{config.model.native_window:,} to {config.rope.target_length:,} tokens by "
        f"{config.rope.type} RoPE scaling, trained with {config.recipe.name} "
        f"(stages: {', '.join(done)}; {tokens:,} tokens of {config.data.name})."
    )


def _facts(config: RunConfig, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    licence = _licence(config.model)
    named = licence.get("license_name") or licence.get("license") or "see the base model's"
    budget = config.budget or sum(stage.tokens for stage in config.recipe.training.values())
    return [
        ("base model", _base(config.model)),
        ("licence", named),
        ("RoPE scaling", f"{config.rope.type}, to {config.rope.target_length:,} tokens"),
        ("recipe", f"{config.recipe.name}: {', '.join(config.recipe.stages)}"),
        ("budget", f"{budget} tokens" if isinstance(budget, str) else f"{budget:,} tokens"),
        ("data", "; ".join(_texts(config))),
        ("experiment", config.experiment),
        ("run", str(record["run_id"])),
        ("seed", str(config.seed)),
        ("code commit", str(record["git_commit"])),
    ]


def _base(model: ModelConfig) -> str:
    source = model.source
    if isinstance(source, HubWeights):
        return source.repo + (f" at {source.revision}" if source.revision else "")
    if isinstance(source, PackagedWeights):
        return f"{model.name} ({ASSETS[source.asset].description})"
    return model.name


def _texts(config: RunConfig) -> list[str]:
    """The texts that were trained on, without anybody's paths."""
    named: list[str] = []
    for name, source in config.data.sources.items():
        if isinstance(source, PackagedText):
            named.append(f"{source.name} ({ASSETS[source.name].licence})")
        elif isinstance(source, HubDataset):
            named.append(f"{source.path}, {source.split}")
        else:
            named.append(f"{name} (local files)")
    return named


def _scores(tables: Iterable[ResultTable]) -> str:
    parts = ["## Scores"]
    for table in tables:
        rows = [table.cells(row) for row in table.rows]
        parts += [f"### {table.title}", _table(table.columns, rows), *table.notes]
    if len(parts) == 1:
        parts.append("This model was not evaluated.")
    return "\n\n".join(parts)


def _overrides(rope: RopeScaling, native: NativeRope) -> str:
    """The flag for what vLLM must read otherwise than transformers."""
    values = rope.vllm_overrides(rope.base(native))
    return f" --hf-overrides '{json.dumps(values)}'" if values else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _usage(config: RunConfig) -> str:
    """The lines that load it, for each program."""
    name = config.export.push or "EXPORT_FOLDER"
    length = config.rope.target_length
    native = native_rope(config.model, resolved_shape(config.model))
    kind = config.rope.rope_parameters(native)["rope_type"]
    parts = [
        "## Use",
        "The scaling is in `config.json`, in the form of transformers 5 (`rope_parameters`) and of "
        "version 4 (`rope_scaling`, `rope_theta`). transformers, "
        f"{oldest_transformers(config.model.family, kind)} or newer:",
        _code(
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        ),
        "vLLM:",
        _code("sh", f"vllm serve {name} --max-model-len {length}{_overrides(config.rope, native)}"),
    ]
    if config.rope.type in ("longrope", "dynamic"):
        parts.append(
            "vLLM rotates all texts by the frequencies for the length that it is started with, "
            "also short ones; transformers goes by the length of each text."
        )
    if config.export.gguf:
        file = gguf_name(config.model, "q8_0")
        parts += ["llama.cpp:", _code("sh", f"llama-cli -m {file} -c {length}")]
    elif family_of(config.model.family).llama_operators:
        parts.append("For llama.cpp, `export.gguf=true` makes GGUF files.")
    return "\n\n".join(parts)


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
