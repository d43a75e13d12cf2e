from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from src.report import server
from src.report.runs import ReportError
from src.report.server import PAGE, LiveReport, serve
from tests.conftest import ROOT
from tests.src.report.browser import EXECUTABLE, MISSING, browser

MakeRun = Callable[..., Path]


@pytest.fixture
def live(outputs: Path, tmp_path: Path) -> LiveReport:
    return LiveReport(outputs, tmp_path / "benchmarks", refresh_seconds=1, look_seconds=0)


@pytest.fixture
def address(outputs: Path, make_run: MakeRun) -> Iterator[str]:
    """The command as a user types it, with one run; its address."""
    make_run("first")
    (outputs / "secret.txt").write_text("secret")
    line = [sys.executable, "-m", "src.dashboard", "serve=true", f"outputs={outputs}"]
    command = subprocess.Popen(
        [*line, "refresh_seconds=1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert command.stdout is not None
        said = command.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/dashboard/index\.html) ", said)
        assert found, said
        yield found[1]
    finally:
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=30) == 0


def ask(
    address: str, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    place = urlsplit(address).netloc
    connection = http.client.HTTPConnection(place, timeout=30)
    connection.request(method, path, headers={"Host": host or place})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


@pytest.mark.slow
def test_the_server_answers_this_machine_only_and_only_files_of_runs(
    address: str, outputs: Path
) -> None:
    status, headers, page = ask(address, PAGE)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"connect-src 'self'" in page
    assert ask(address, "/")[0] == 302
    status, headers, config = ask(address, "/first/config.yaml")
    assert (status, config) == (200, (outputs / "first" / "config.yaml").read_bytes())
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Content-Security-Policy"] == "default-src 'none'"
    assert b"run.json" in ask(address, "/first/")[2]
    assert ask(address, "/version", method="HEAD")[2] == b""
    refused = [
        *("/secret.txt", "/first/../secret.txt", "/first/%2e%2e/secret.txt", "//etc/passwd"),
        *("/first/nothing", "/first", "/../../etc/passwd"),
    ]
    assert {path: ask(address, path)[0] for path in refused} == dict.fromkeys(refused, 404)
    port = urlsplit(address).port
    for host in ("example.org", f"example.org:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil"):
        assert ask(address, PAGE, host=host)[0] == 403
    assert ask(address, PAGE, host=f"localhost:{port}")[0] == 200
    assert ask(address, PAGE, method="POST")[0] == 501
    # Bound to the loopback address alone.
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((own, port), timeout=5)


@pytest.mark.slow
@pytest.mark.skipif(EXECUTABLE is None, reason=MISSING)
def test_an_open_page_follows_the_runs_and_keeps_its_choices(
    address: str, make_run: MakeRun
) -> None:
    async def watch() -> dict[str, object]:
        async with browser() as tab:
            await tab.open(address)
            await tab.run(
                """
                document.getElementById("theme").click();
                const filter = document.getElementById("run-filter");
                filter.value = "finished";
                filter.dispatchEvent(new Event("input"));
                """
            )
            make_run("second", experiment="other")
            for _ in range(100):
                await asyncio.sleep(0.2)
                rows = await tab.run(
                    'return document.querySelectorAll("#run-list tbody tr").length'
                )
                ready = await tab.run("return document.readyState")
                if (rows, ready) == (2, "complete"):
                    break
            seen = await tab.run(
                """
                return {
                  rows: document.querySelectorAll("#run-list tbody tr").length,
                  theme: document.documentElement.dataset.theme,
                  filter: document.getElementById("run-filter").value,
                  status: document.getElementById("live").textContent,
                };
                """
            )
            assert tab.console == []
            return seen

    seen = asyncio.run(watch())
    assert seen == {"rows": 2, "theme": "dark", "filter": "finished", "status": "live"}


def version(live: LiveReport) -> bytes:
    answer = live.get("/version")
    assert answer is not None
    return answer.content


def test_the_version_changes_with_every_file_of_a_run(
    live: LiveReport, make_run: MakeRun, tmp_path: Path
) -> None:
    seen = [version(live)]
    folder = make_run("run", state="running")
    seen.append(version(live))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "tokens": 2560, "stage": "ard", "loss/total": 0.1}\n')
    seen.append(version(live))
    (folder / "evals").mkdir()
    (folder / "evals" / "drift.json").write_text("{}")
    seen.append(version(live))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "kernel.json").write_text("{}")
    seen.append(version(live))
    assert len(set(seen)) == len(seen)
    assert version(live) == seen[-1]


def test_only_runs_that_changed_are_read_again(
    live: LiveReport, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("a")
    changed = make_run("b")
    first = live.get(PAGE)
    read: list[str] = []
    original = server.read_run

    def noting(folder: Path, outputs: Path) -> object:
        read.append(folder.name)
        return original(folder, outputs)

    monkeypatch.setattr(server, "read_run", noting)
    assert live.get(PAGE) == first
    assert read == []
    record = json.loads((changed / "run.json").read_text())
    (changed / "run.json").write_text(json.dumps({**record, "method": "new_method"}))
    os.utime(changed / "run.json", ns=(1, 1))
    second = live.get(PAGE)
    assert read == ["b"]
    assert second is not None
    assert b"new_method" in second.content


def test_a_folder_that_goes_away_is_an_error_and_no_crash(tmp_path: Path) -> None:
    gone = LiveReport(tmp_path / "gone", tmp_path, refresh_seconds=1)
    with pytest.raises(ReportError, match="no such folder"):
        serve(gone, 0)


def test_a_taken_port_is_refused(live: LiveReport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ReportError, match=rf"port={port}: .* give another one, or 0"):
            serve(live, port)
