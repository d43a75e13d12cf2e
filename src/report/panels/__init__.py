"""The panels of the page. A panel is a function `(PageContext) -> Panel` and a template.

To add one: write `panels/NAME.py` with the function and `templates/NAME.html`, put the function
into a `Tab` of `page.TABS`; a panel that needs the browser names a script of `assets/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from src.report.groups import ReportData


@dataclass(frozen=True, kw_only=True)
class PageContext(ReportData):
    """The data that every panel may show, and the page's place."""

    target: Path  # the page's own file: links are relative to its folder
    now: datetime = field(default_factory=lambda: datetime.now(UTC))  # the time that it shows

    def link(self, path: Path) -> str:
        """A relative address of `path`, percent-encoded: it cannot name a scheme or a host."""
        relative = os.path.relpath(path.absolute(), self.target.parent.absolute())
        return quote(os.fsencode(relative))


@dataclass(frozen=True)
class Panel:
    """One section of the page, rendered by `templates/<template>.html` with `values`.

    The template has the panel's name unless it is given.
    """

    name: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    script: str | None = None  # a file of `assets/` that brings the panel to life
    template: str = ""
