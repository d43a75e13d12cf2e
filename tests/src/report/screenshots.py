"""The pictures of docs/dashboard.md, of synthetic runs, or of the runs in a folder.

python -m tests.src.report.screenshots --to docs/images
python -m tests.src.report.screenshots --to docs/images --runs outputs/sweeps --name tiny
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.report.files import read_results
from src.report.page import write_page
from src.report.panels import PageContext
from src.report.runs import read_runs
from tests.conftest import ROOT
from tests.src.report import synthetic
from tests.src.report.browser import browser

_DESKTOP, _PHONE = (1440, 900), (390, 844)


@dataclass(frozen=True)
class Shot:
    """The first screen of a tab."""

    name: str
    tab: str = "answer"
    scheme: str = "light"
    is_phone: bool = False
    script: str = ""  # run before the picture is taken


_OPEN = "document.querySelector('.matrix:not([hidden]) .entry:not([hidden]) button').click()"
SHOTS = (
    Shot("methods"),
    Shot("methods_dark", scheme="dark"),
    Shot("figures", "settings"),
    Shot("dark", "training", "dark"),
    Shot("run", script=_OPEN),
    Shot("phone", is_phone=True),
    Shot("phone_dark", scheme="dark", is_phone=True),
)


async def _shoot(page: Path, target: Path, shots: Sequence[Shot]) -> None:
    async with browser() as tab:
        for shot in shots:
            size = _PHONE if shot.is_phone else _DESKTOP
            await tab.open("about:blank")
            await tab.size(*size, phone=shot.is_phone)
            await tab.scheme(shot.scheme)
            await tab.open(page.as_uri())
            await tab.see(shot.tab)
            if shot.script:
                await tab.run(shot.script)
                await asyncio.sleep(0.5)
            await tab.screenshot(target / f"dashboard_{shot.name}.png")


def main() -> None:
    """Write the runs and the page into a temporary folder, then the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="a folder of runs in place of synthetic ones")
    parser.add_argument("--name", default="runs", help="of the pictures of such runs")
    given = parser.parse_args()
    if given.runs:
        with tempfile.TemporaryDirectory() as folder:
            context = PageContext(
                runs=tuple(read_runs(given.runs)), target=Path(folder) / "page.html"
            )
            name = given.name
            shots = (Shot(name), Shot(f"{name}_phone", scheme="dark", is_phone=True))
            asyncio.run(_shoot(write_page(context), given.to, shots))
        return
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        synthetic.write(outputs, faulty=False)
        results = read_results(ROOT / "benchmarks" / "results")
        page = write_page(
            PageContext(
                runs=tuple(read_runs(outputs)),
                target=outputs / "dashboard" / "page.html",
                results=tuple(results),
            )
        )
        asyncio.run(_shoot(page, given.to, SHOTS))


if __name__ == "__main__":
    main()
