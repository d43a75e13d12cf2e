"""The page at a loopback address, rendered again when a run has written something.

The server answers browsers of this machine only: its socket is bound to 127.0.0.1. It refuses a
request whose Host header has another name, so that a web site cannot read the page through a name
that points here. It serves the page and, as plain text, the listed files of runs, nothing else.
"""

from __future__ import annotations

import hashlib
import html
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from src.report.files import read_results
from src.report.page import Live, render
from src.report.panels import PageContext
from src.report.runs import ReportError, Run, read_run, read_runs
from src.report.runs_table import run_files

HOST = "127.0.0.1"
PAGE = "/dashboard/index.html"
_WATCHED = ("run.json", "config.yaml", "metrics.jsonl", "evals")
_TEXT, _HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """A response's content."""

    content: bytes
    kind: str
    policy: bool = True
    """Whether to send a policy that allows nothing; the page has a policy in itself."""


@dataclass
class LiveReport:
    """The current page and the files behind it. Runs that did not change are not read again."""

    outputs: Path
    benchmarks: Path
    refresh_seconds: int
    window: int | None = None

    def __post_init__(self) -> None:
        self._known: dict[Path, tuple[str, Run]] = {}
        self._page: tuple[str, bytes] = ("", b"")
        self._lock = threading.Lock()

    def get(self, path: str) -> Answer | None:
        """The answer to an address; None if there is nothing at it.

        Raises:
            ReportError: `outputs` is not a folder any more.
        """
        with self._lock:
            runs = read_runs(self.outputs, self._read)
            version = self._version(runs)
            if path == "/version":
                return Answer(version.encode(), _TEXT)
            if path == PAGE:
                return Answer(self._render(runs, version), _HTML, policy=False)
        return self._file(path, runs)

    def _read(self, folder: Path, outputs: Path) -> Run:
        signature = _signature([folder / name for name in _WATCHED], folder / "evals")
        kept = self._known.get(folder)
        if kept and kept[0] == signature:
            return kept[1]
        run = read_run(folder, outputs)
        self._known[folder] = (signature, run)
        return run

    def _version(self, runs: Sequence[Run]) -> str:
        parts = [f"{run.folder}:{self._known.get(run.folder, (run.problems,))[0]}" for run in runs]
        parts.append(_signature([], self.benchmarks))
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _render(self, runs: Sequence[Run], version: str) -> bytes:
        if self._page[0] != version:
            context = PageContext(
                runs=tuple(runs),
                window=self.window,
                results=tuple(read_results(self.benchmarks)),
                target=self.outputs / PAGE.lstrip("/"),
            )
            page = render(context, Live(self.refresh_seconds, version))
            self._page = (version, page.encode())
        return self._page[1]

    def _file(self, path: str, runs: Sequence[Run]) -> Answer | None:
        """A listed file of a run, or for its folder the list of these files."""
        wanted = self.outputs / path.removeprefix("/")
        for run in runs:
            if path == f"/{run.folder.relative_to(self.outputs)}/":
                return Answer(_listing(run).encode(), _HTML)
            for file in run_files(run.folder) if run.folder in wanted.parents else ():
                if path == f"/{file.relative_to(self.outputs)}":
                    return Answer(file.read_bytes(), _TEXT)
        return None


def serve(report: LiveReport, port: int) -> None:
    """Answer until interrupted. `port` 0 takes a free one; the address is printed.

    Raises:
        ReportError: the port is taken, or `outputs` is not a folder.
    """
    report.get("/version")
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Handler, report))
    except OSError as error:
        raise ReportError(
            f"port={port}: {error.strerror}; give another one, or 0 for any that is free"
        ) from error
    server.daemon_threads = True
    with server:
        print(f"http://{HOST}:{server.server_port}{PAGE} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, report: LiveReport, *args: object) -> None:
        self._report = report
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        port = self.server.server_port
        if self.headers.get("Host") not in {f"{HOST}:{port}", f"localhost:{port}"}:
            self._send(HTTPStatus.FORBIDDEN, Answer(b"this server answers to localhost\n", _TEXT))
            return
        path = unquote(self.path.partition("?")[0], errors="surrogateescape")
        if path in ("/", "/dashboard", "/dashboard/"):
            self._redirect()
            return
        try:
            answer = self._report.get(path)
        except (ReportError, OSError) as error:
            content = f"{error}\n".encode("utf-8", "replace")
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, Answer(content, _TEXT))
            return
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, Answer(b"not found\n", _TEXT))
        else:
            self._send(HTTPStatus.OK, answer)

    do_HEAD = do_GET

    def _redirect(self) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", PAGE)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        if answer.policy:
            headers["Content-Security-Policy"] = "default-src 'none'"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: requests are not worth a line each in the terminal."""


def _listing(run: Run) -> str:
    name = html.escape(run.name)
    files = [str(file.relative_to(run.folder)) for file in run_files(run.folder)]
    links = [f'<li><a href="{quote(file)}">{html.escape(file)}</a></li>' for file in files]
    head = f'<!DOCTYPE html><meta charset="utf-8"><title>{name}</title>'
    return f"{head}<h1>{name}</h1><ul>{''.join(links)}</ul>"


def _signature(files: Sequence[Path], folder: Path) -> str:
    """A value that changes when one of the files, or a file in the folder, changes."""
    inside = sorted(folder.glob("*.json")) if folder.is_dir() else []
    parts = []
    for path in (*files, *inside):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        parts.append(f"{path.name}:{status.st_mtime_ns}:{status.st_size}")
    return ",".join(parts)
