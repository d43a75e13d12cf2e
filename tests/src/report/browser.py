"""Chromium without a driver: its DevTools protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((path for name in NAMES if (path := shutil.which(name))), None)
MISSING = f"no browser: none of {', '.join(NAMES)} is on the path (apt-get install chromium)"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)
_START_SECONDS = 60
_ANSWER_SECONDS = 120


class BrowserError(RuntimeError):
    """The browser did not start, or refused a command."""


@dataclass
class Page:
    """One tab: commands out, and what it reported since it was opened."""

    send: Callable[..., Awaitable[dict[str, Any]]]
    console: list[str] = field(default_factory=list)
    """Errors and warnings: exceptions, console calls, violations of the policy."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for, the page's own among them."""
    loaded: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, url: str) -> None:
        """Load `url` and wait until its scripts have run."""
        self.loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self.loaded.wait(), _ANSWER_SECONDS)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        await self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    async def scheme(self, name: str) -> None:
        """`light` or `dark`, as the system prefers."""
        feature = {"name": "prefers-color-scheme", "value": name}
        await self.send("Emulation.setEmulatedMedia", features=[feature])

    async def run(self, script: str) -> Any:
        """What `script`, the body of an async function, returns."""
        answer = await self.send(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    async def see(self, *tabs: str) -> None:
        """Scroll to every chart and wait until it is drawn, or says why it is not.

        `tabs` are the tabs to open, none: all of them. The first one stays open.
        """
        await self.run(
            f"const wanted = {json.dumps(tabs)};"
            """
            const wait = (ms) => new Promise((done) => setTimeout(done, ms));
            const charts = [...document.querySelectorAll(".chart")];
            const isWanted = (tab) => wanted.length === 0 || wanted.includes(tab.dataset.tab);
            const tabs = [...document.querySelectorAll("[data-tab]")].filter(isWanted);
            for (const tab of tabs) {
              tab.click();
              await wait(50);
              for (const chart of charts.filter((one) => one.checkVisibility())) {
                chart.scrollIntoView({behavior: "instant", block: "center"});
                for (let asked = 0; asked < 100; asked += 1) {
                  if (chart.matches(".empty") || chart.querySelector(".main-svg")) break;
                  await wait(30);
                }
              }
            }
            tabs[0]?.click();
            scrollTo({top: 0, behavior: "instant"});
            await wait(300);
            """
        )

    async def screenshot(self, target: Path, *, clip: dict[str, float] | None = None) -> None:
        """The window, or a part of the page, as PNG."""
        options: dict[str, Any] = {"format": "png"}
        if clip:
            options |= {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True}
        answer = await self.send("Page.captureScreenshot", **options)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(base64.b64decode(answer["data"]))

    async def whole(self, target: Path) -> None:
        """The whole page from top to bottom as PNG."""
        box = await self.run(
            "const root = document.documentElement;"
            "return {x: 0, y: 0, width: innerWidth, height: root.scrollHeight};"
        )
        await self.screenshot(target, clip=box)

    def _on_event(self, method: str, given: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(given["exceptionDetails"])[:1000])
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.console.append(json.dumps(given["args"])[:1000])
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.console.append(given["entry"]["text"])


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A page of a fresh Chromium with an empty profile, gone afterwards."""
    assert EXECUTABLE is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            EXECUTABLE,
            *_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session, _page(session, port) as page:
                yield page
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    for _ in range(_START_SECONDS * 10):
        if process.returncode is not None:
            raise BrowserError(f"chromium ended with {process.returncode}")
        if file.is_file() and (lines := file.read_text().split()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise BrowserError(f"chromium did not start within {_START_SECONDS} s")


@contextlib.asynccontextmanager
async def _page(session: aiohttp.ClientSession, port: int) -> AsyncIterator[Page]:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        targets = await answer.json()
    url = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
    async with session.ws_connect(url, max_msg_size=0) as socket:
        waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

        async def send(method: str, **given: Any) -> dict[str, Any]:
            number = len(waiting) + 1
            waiting[number] = asyncio.get_running_loop().create_future()
            await socket.send_json({"id": number, "method": method, "params": given})
            return await asyncio.wait_for(waiting[number], _ANSWER_SECONDS)

        page = Page(send)

        async def listen() -> None:
            async for message in socket:
                content = json.loads(message.data)
                if "id" not in content:
                    page._on_event(content["method"], content["params"])
                elif "error" in content:
                    waiting[content["id"]].set_exception(BrowserError(str(content["error"])))
                else:
                    waiting[content["id"]].set_result(content["result"])

        listener = asyncio.create_task(listen())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await send(f"{domain}.enable")
        yield page
        listener.cancel()
