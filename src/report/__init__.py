"""The report: run folders in, one self-contained page out.

`runs` reads, `table` and `plots` shape, `panels` lay out, `page` renders. A panel is one function
and one template; `page.PANELS` lists them in the order of the page.
"""

from __future__ import annotations

from pathlib import Path

from src.report.page import write_page
from src.report.runs import ReportError, read_runs


def build(outputs: Path, target: Path) -> Path:
    """Write the dashboard of all runs below `outputs` to the file `target`; returns `target`.

    Raises:
        ReportError: `outputs` is not a folder, or `target` cannot be written.
    """
    return write_page(read_runs(outputs), target)


__all__ = ["ReportError", "build"]
