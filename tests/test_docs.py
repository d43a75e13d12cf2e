"""The documents: links lead somewhere, commands are accepted, Python runs.

Blocks of `python` are run. Commands, in blocks of `bash` and in indented ones, are composed and
planned, and docs/tutorial.md is also run in full by a thorough test. Blocks that need a GPU or a
hub say so in a comment before them, `<!-- needs: GPU -->`, and are checked too, as far as they are
commands of this project. `mermaid` is a drawing and `text` a formula.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, by_default

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [ROOT / "kernels" / "relation_kl" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = re.compile(r"<!-- needs: (GPU|hub) -->")
# Names that stand for something of the reader's own: RUN, DIR, NAME, KEY=VALUE, ..., <text>.
PLACEHOLDER = re.compile(r"\.\.\.|<.*>|(^|[=/,\[@])(RUN(_DIR)?|DIR|ID|NAME|ORG|KEY|PARCELS|FILE)\b")


@dataclass(frozen=True)
class Block:
    """A code block: its page, the line of its first line, its language, and what it needs."""

    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.line}"

    @property
    def commands(self) -> list[str]:
        """Commands of a shell, without what is written to other programs' input."""
        text = re.sub(r"<<'(\w+)'\n.*?\n\1$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        joined = text.replace("\\\n", " ").splitlines()
        lines = [line for line in joined if not line.startswith("#")]
        parts = [part for line in lines for part in line.split(" && ")]
        # Prose beside a command stands apart from it.
        return [re.split(r"\s{2,}(?!\S*=)", part.strip())[0] for part in parts if part.strip()]


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"( *)```(\w*)$", lines[number])
        indented = re.match(r" {4}\S", lines[number]) and not "".join(lines[number - 1 : number])
        first = number + 1 if fence else number
        if fence:
            end = lines.index(f"{fence[1]}```", first)
        elif indented:
            texts = (n for n in range(first, len(lines)) if re.match(r"\S", lines[n]))
            end = next(texts, len(lines))
        else:
            number += 1
            continue
        needs = NEEDS.search(lines[number - 1])
        depth = len(fence[1]) if fence else 4
        text = "\n".join(line[depth:] for line in lines[first:end]).rstrip()
        language = fence[2] if fence else ""
        # A list's paragraphs are indented too.
        if fence or not re.match(r"\s*([-*|]|\d\.|<!--|```)", lines[number]):
            yield Block(page, first + 1, language, text, needs[1] if needs else None)
        number = end + 1 if fence else end


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [
    (block, command)
    for block in BLOCKS
    if block.language in ("", "bash")
    for command in block.commands
    if re.match(r"(\w+=\S* )*(\.venv/bin/)?python -m |(\w+=\S* )*make |linearard-", command)
]
OTHERS = ("mkdir", "cp", "rm", "pip", "wandb", "hf", "vllm", "srun", "torchrun", "deepspeed")


def test_every_block_is_run_or_marked() -> None:
    for block in BLOCKS:
        assert block.language in ("", "bash", "python", "mermaid", "text"), block
        if block.language not in ("", "bash"):
            continue
        for command in block.commands:
            known = (block, command) in COMMANDS or ".venv/bin/python -" in command
            assert known or command.split()[0] in OTHERS, f"{block}: {command}"
            if command.split()[0] in ("hf", "vllm", "wandb", "pip"):
                assert block.needs, f"{block}: {command} is marked with what it needs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_an_indented_command_stands_apart(page: Path) -> None:
    """Without an empty line before it, it would be a part of the paragraph."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"^[^\s`].*\n    (python|make|'|\w+=)", text, re.MULTILINE)


def arguments_of(command: str) -> list[str]:
    """The words of a command, without those that stand for something of the reader's."""
    words = shlex.split(command.partition(" # ")[0].partition(" > ")[0], comments=True)
    return [word for word in words if not PLACEHOLDER.search(word)]


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=[f"{b}-{c[:60]}" for b, c in COMMANDS])
@by_default(
    lambda block, command: (
        block.page.name in ("README.md", "tutorial.md") and " -m +" not in command
    )
)
def test_a_command_is_accepted(
    block: Block, command: str, monkeypatch: pytest.MonkeyPatch, own_model: Path
) -> None:
    from src import api
    from src.settings import loading
    from src.settings.config import EvaluateConfig

    words = [word for word in arguments_of(command) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    assert words[1] == "-m"
    module, given = words[2], words[3:]
    assert importlib.util.find_spec(module), block
    # The tutorial's model and texts, also in place of other folders and the hub's.
    given = [re.sub(r"my_model|long_model", str(own_model), w) for w in given]
    given = [re.sub(r"model\.repo=.*", f"model.path={own_model}", w) for w in given]
    given = [w.replace("[my_texts]", "[docs]") for w in given if w != "prepare=true"]
    if module == "src.train" and "-m" in given:
        from src.multirun import composition

        if "..." in command:
            return
        assert composition.expand([word for word in given if word != "-m"]).jobs
    elif module == "src.train" and not any("resume=" in word for word in [*given, command]):
        plan_for = [] if any("plan_for" in word for word in given) else ["plan_for=h200"]
        assert api.plan(*given, *plan_for).fits
    elif module == "src.evaluate":
        chosen = [] if any(w.startswith(("run=", "model")) for w in given) else ["run=outputs/x"]
        loading.compose(EvaluateConfig, "evaluate", [*given, *chosen])
    elif module == "src.dashboard":
        keys = {
            line.partition(":")[0]
            for line in (ROOT / "conf" / "dashboard.yaml").read_text().splitlines()
        }
        assert {word.partition("=")[0] for word in given} <= keys


@pytest.fixture(scope="session")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's own model: its config, which is all that a plan reads."""
    from transformers import LlamaConfig

    (block,) = (b for b in BLOCKS if "LlamaConfig(\n" in b.text and b.page.name == "tutorial.md")
    names: dict[str, object] = {"LlamaConfig": LlamaConfig}
    exec(re.search(r"config = LlamaConfig\(.*?\n\)", block.text, re.DOTALL)[0], names)  # type: ignore[index]
    folder = tmp_path_factory.mktemp("own") / "my_model"
    names["config"].save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def run_blocks(page: Path, names: dict[str, Any]) -> None:
    """Run a page's Python from its start to its end, with these names and into them."""
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            if "from trl " in block.text:
                pytest.importorskip("trl", reason="TRL is part of the extra dev")
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss under the name that pip gives it, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relation_kl").symlink_to(ROOT / "kernels" / "relation_kl")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["README.md", "docs/howto/trainer.md"])
def test_the_loss_by_itself(name: str) -> None:
    run_blocks(ROOT / name, {})


def test_the_operators_readme() -> None:
    import torch

    sides = torch.randn(6, 1, 2, 8, 4)
    names = dict(zip(("q_s", "k_s", "v_s", "q_t", "k_t", "v_t"), sides, strict=True))
    real = torch.ones(1, 8, dtype=torch.bool)
    more = {"q_student": sides[0], "q_teacher": sides[3], "real": real}
    run_blocks(ROOT / "kernels" / "relation_kl" / "README.md", {**names, **more})


def test_the_objective_and_the_scaling_of_contributing() -> None:
    import numpy as np
    import torch

    from src.models.rope import NativeRope
    from src.objectives.base import Batch, Outputs

    names: dict[str, Any] = {}
    run_blocks(ROOT / "CONTRIBUTING.md", names)
    scaling, native = names["SCALING"]("half", 32_768), NativeRope(64, 10_000.0, 4096)
    divided = native.inverse_frequencies() / scaling.inverse_frequencies(native)
    np.testing.assert_allclose(divided, [1.0] * 16 + [8.0] * 16)
    assert scaling.rope_parameters(native)["rope_type"] == "longrope"
    head = torch.nn.Linear(8, 16, bias=False)
    torch.nn.init.zeros_(head.weight)
    student, batch = Outputs(torch.randn(2, 6, 8), head=head), Batch(torch.zeros(2, 6).long())
    loss, _ = names["OBJECTIVE"]("entropy", chunk=5).loss(batch, None, student, None)
    assert loss.item() == pytest.approx(-np.log(16))


def test_every_python_block_is_run() -> None:
    run = {"README.md", "trainer.md", "CONTRIBUTING.md"}
    assert {block.page.name for block in BLOCKS if block.language == "python"} <= run


@pytest.mark.thorough
def test_the_tutorial_word_for_word(tmp_path: Path) -> None:
    """In a copy of the repository, with this environment in the place of its own."""
    copy = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    (copy / ".venv").symlink_to(Path(sys.prefix))
    for block in BLOCKS:
        if block.page.name != "tutorial.md" or block.needs or "make setup" in block.text:
            continue
        done = subprocess.run(
            ["bash", "-euc", block.text], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}: {done.stderr}"


# docs/hooks.py makes these pages, and MkDocs checks their links.
NAMES = ("configs", "objectives", "scalings", "families", "suites", "modules")
GENERATED = {ROOT / "docs" / "reference" / f"{name}.md" for name in NAMES}
LINK = re.compile(r"\]\(([^)#\s:]*)(#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in LINK.findall(text):
        there = (page.parent / target).resolve() if target else page
        if there in GENERATED:
            continue
        assert there.exists(), f"{page.name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor[1:] in headings(there), f"{page.name}: {target}{anchor}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_table_of_commands_by_gpu_is_what_the_plans_say() -> None:
    """Each command is accepted as it is typed, fits, and takes about what the README says."""
    from benchmarks import plans
    from src import api

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"<!-- table: gpus -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in written.splitlines()[2:]]
    assert [row[0] for row in rows] == [machine.label for machine in plans.MACHINES]
    for machine, (_, typed, gib, minutes, _) in zip(plans.MACHINES, rows, strict=True):
        module, *overrides = shlex.split(typed.strip("`"))[2:]
        assert module == "src.train"
        made = api.plan(*overrides, f"plan_for={machine.kind}")
        assert made.fits, machine
        assert made.seconds is not None
        stale = "python -m benchmarks.figures writes the table anew"
        assert made.peak / 2**30 == pytest.approx(float(gib), rel=0.1), stale
        assert made.seconds / 60 == pytest.approx(float(minutes), rel=0.25, abs=1), stale


def test_the_limits_name_the_seeds_of_the_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    regions = r"<!-- study: (?:smollm2_135m headline|further first) -->(.*?)<!-- end -->"
    said: list[str] = []
    for table in re.findall(regions, text, re.DOTALL):
        rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
        trained = [row for row in rows if row[1].strip() == "yarn" and row[-3].strip() != "0"]
        seeds = sorted({int(row[-1]) for row in trained})
        said.append(" to ".join(("no", "one", "two", "three")[n] for n in seeds))
    assert f"have {said[0]} seeds on YaRN, on Qwen2.5-Coder {said[1]}.\n" in text


# Messages that are not the project's own, or hold a value.
NOT_OURS = {"CUDA out of memory", "No space left on device", "loss nan"}


def test_messages_to_look_up_are_those_that_are_printed() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    # A message goes over several lines of code.
    code = re.sub(r'"\n\s*f?"', "", code)

    def said(message: str) -> bool:
        words = message.replace("...", " ... ").split()
        runs = [words[n : n + 3] for n in range(max(1, len(words) - 2))]
        return any("..." not in run and " ".join(run) in code for run in runs) or any(
            len(part.split()) < 3 and part.strip(" ';") in code for part in message.split("...")
        )

    assert len(shown) > 10
    assert [message for message in shown if message not in NOT_OURS and not said(message)] == []
