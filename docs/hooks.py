"""Makes the site's pages of files outside docs/, and of conf/; MkDocs calls these functions.

Links that lead out of docs/ are followed: a page is rendered below `repo/`, any other file is
copied there. README.md is the first page, and the notebook a page of its cells. Pages of whole
packages have the docstrings of all their modules, and `reference/modules.md` lists every module.
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "docs/from_python.ipynb"
CONFIGS = "reference/configs.md"
MODULES = "reference/modules.md"
PACKAGES = {
    "reference/objectives.md": (
        "Objectives",
        "You want to know what an objective computes, or to write one. `objective=[NAME]` chooses "
        "one; its fields are its settings.",
        ("src/objectives",),
    ),
    "reference/scalings.md": (
        "Scalings",
        "You want a scaling's formula, or to write one. `rope=NAME` chooses one; its fields are "
        "its settings.",
        ("src/models/rope",),
    ),
    "reference/families.md": (
        "Model families",
        "You want to know what is assumed of a family, or to add one. The family follows from a "
        "model's config.",
        ("src/models/families",),
    ),
    "reference/suites.md": (
        "Suites and results",
        "You want to read results from a script, or to write a suite. `eval=NAME` chooses a suite.",
        ("src/evals/suite.py", "src/evals/suites", "src/results"),
    ),
}
"""By page: its title, what it is for, and its packages, all of whose modules it shows."""
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
# Where the pages of the site come from, by their place in it.
_sources: dict[str, str] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files outside docs/ that pages link to."""
    pages = {file.src_uri: f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")}
    texts = {source: (ROOT / source).read_text(encoding="utf-8") for source in pages.values()}
    for name in ("README.md", "CHANGELOG.md"):
        texts[name] = (ROOT / name).read_text(encoding="utf-8")
    waiting = list(texts)
    while waiting:
        source = waiting.pop()
        for target in _linked(source, texts[source]):
            if target in texts or target.startswith("docs/") or not (ROOT / target).exists():
                continue
            if target.endswith(".md"):
                texts[target] = (ROOT / target).read_text(encoding="utf-8")
                waiting.append(target)
            elif (ROOT / target).is_file():
                path = str(ROOT / target)
                files.append(File.generated(config, f"repo/{target}", abs_src_path=path))
    for source, text in texts.items():
        if source not in pages.values():
            files.append(File.generated(config, _place(source), content=text))
            _sources[_place(source)] = source
    _sources.update(pages)
    files.append(File.generated(config, "from_python.md", content=_notebook()))
    _sources["from_python.md"] = NOTEBOOK
    made = {CONFIGS: _configs(), MODULES: _modules()}
    made |= {page: _package(*of) for page, of in PACKAGES.items()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to where the site has their targets."""
    here = page.file.src_uri
    source = _sources.get(here)
    if source is None:
        return markdown

    def moved(found: re.Match[str]) -> str:
        target = _resolved(source, found[2])
        if target is None or not (ROOT / target).exists():
            return found[0]
        if (ROOT / target).is_dir():
            return "](#)"  # a folder has no page
        place = posixpath.relpath(_place(target), posixpath.dirname(here) or ".")
        return f"{found[1]}{place}{found[3]}"

    return _LINK.sub(moved, markdown)


def _linked(source: str, text: str) -> list[str]:
    links = (_resolved(source, found[2]) for found in _LINK.finditer(text))
    return [link for link in links if link is not None]


def _resolved(source: str, link: str) -> str | None:
    """A link's target as a path in the repository; None if it leads elsewhere."""
    if ":" in link or link.startswith(("/", "#")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return None if target.startswith("..") else target


def _place(source: str) -> str:
    """Where the site has a file of the repository."""
    if source == "README.md":
        return "index.md"
    if source == NOTEBOOK:
        return "from_python.md"
    return source.removeprefix("docs/") if source.startswith("docs/") else f"repo/{source}"


def _notebook() -> str:
    cells = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join([*parts, "This page is the notebook `docs/from_python.ipynb`.", ""])


def _python(*places: str) -> list[Path]:
    """The modules of files and packages, without empty ones."""
    roots = [ROOT / place for place in places]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py"))]
    return sorted(file for file in files if ast.get_docstring(_tree(file)))


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _package(title: str, purpose: str, places: tuple[str, ...]) -> str:
    modules = [f"::: {_dotted(file)}" for file in _python(*places)]
    return "\n\n".join([f"# {title}", purpose, *modules, ""])


def _modules() -> str:
    """Every module with the first sentence of its docstring."""
    lines = [
        "# Modules",
        "",
        "You look for the code that does something. [Architecture](../architecture.md) says how",
        "the rooms fit together.",
    ]
    rooms: dict[Path, list[tuple[str, str]]] = {}
    for file in _python("src", "kernels"):
        said = (ast.get_docstring(_tree(file)) or "").split("\n\n")[0]
        said = " ".join(said.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
        rooms.setdefault(file.parent, []).append((file.name, said))
    for room, modules in sorted(rooms.items()):
        about = [said for name, said in modules if name == "__init__.py"]
        listed = [f"| {name} | {said} |" for name, said in modules if name != "__init__.py"]
        lines += ["", f"## {room.relative_to(ROOT)}/", "", *about]
        lines += ["", "| module | what it does |", "|---|---|", *listed] if listed else []
    return "\n".join([*lines, ""])


def _configs() -> str:
    """A table of the options of every group, with the first comment of each file."""
    lines = [
        "# Groups and options",
        "",
        "Choose an option by `GROUP=OPTION`, an experiment by `+experiment=NAME`, a sweep by",
        "`-m +sweeps=NAME`. Every key of an option can be set: `GROUP.KEY=VALUE`. The tables are",
        "made of the files of `conf/` and `sweeps/`.",
    ]
    for folder in [*sorted(p for p in (ROOT / "conf").rglob("*") if p.is_dir()), ROOT / "sweeps"]:
        files = sorted(folder.glob("*.yaml"))
        if not files:
            continue
        group = os.path.relpath(folder, ROOT / "conf").removeprefix("../")
        lines += ["", f"## `{group}`", "", "| option | what it is | keys |", "|---|---|---|"]
        for file in files:
            text = file.read_text(encoding="utf-8")
            keys = [key for key in yaml.safe_load(text) or {} if key != "defaults"]
            listed = ", ".join(f"`{key}`" for key in keys)
            lines.append(f"| `{file.stem}` | {_first_comment(text)} | {listed} |")
    return "\n".join([*lines, ""])


def _first_comment(text: str) -> str:
    """The sentences at the head of a config, without its package and commands."""
    words = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        said = line.lstrip("# ").strip()
        if not said.startswith(("@package", "python -m", "'", "torchrun")):
            words.append(said)
    return " ".join(words).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
