"""The pictures of docs/dashboard.md, of synthetic runs.

python -m tests.src.report.screenshots --to docs/images
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from src.report.files import read_results
from src.report.page import write_page
from src.report.panels import PageContext
from src.report.runs import read_runs
from tests.conftest import ROOT
from tests.src.report import synthetic
from tests.src.report.browser import browser

_TOP = """
const box = (selector) => document.querySelector(selector).getBoundingClientRect();
"""


async def _shoot(page: Path, target: Path) -> None:
    async with browser() as tab:
        await tab.size(1280, 900)
        await tab.open(page.as_uri())
        await tab.see()
        await tab.screenshot(
            target / "dashboard_methods.png", clip={"x": 0, "y": 0, "width": 1280, "height": 1000}
        )
        top = await tab.run(f"{_TOP} return box('#budget').top + scrollY;")
        end = await tab.run(f"{_TOP} return box('#long').bottom + scrollY;")
        clip = {"x": 0, "y": top, "width": 1280, "height": end - top + 20}
        await tab.screenshot(target / "dashboard_figures.png", clip=clip)
    async with browser() as tab:
        await tab.size(1280, 900)
        await tab.scheme("dark")
        await tab.open(page.as_uri())
        await tab.see()
        top = await tab.run(f"{_TOP} return box('#curves').top + scrollY;")
        end = await tab.run(f"{_TOP} return box('#layers').bottom + scrollY;")
        clip = {"x": 0, "y": top, "width": 1280, "height": end - top + 20}
        await tab.screenshot(target / "dashboard_dark.png", clip=clip)
        await tab.run(
            "document.querySelector('#headline-table .method:not([hidden]) td button').click()"
        )
        await asyncio.sleep(0.5)
        await tab.screenshot(target / "dashboard_run.png")
    async with browser() as tab:
        await tab.size(390, 844, phone=True)
        await tab.open(page.as_uri())
        await tab.see()
        top = await tab.run(f"{_TOP} return box('#budget').top + scrollY;")
        clip = {"x": 0, "y": top, "width": 390, "height": 1300}
        await tab.screenshot(target / "dashboard_phone.png", clip=clip)


def main() -> None:
    """Write the runs and the page into a temporary folder, then the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
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
        asyncio.run(_shoot(page, given.to))


if __name__ == "__main__":
    main()
