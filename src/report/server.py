"""The page at a loopback address, rendered again when a run has written something.

The server answers browsers of this machine only: its socket is bound to 127.0.0.1. It refuses a
request whose Host header has another name, so that a web site cannot read the page through a name
that points here. It serves the page and, as plain text, the listed files of runs, nothing else. No
client can hold up the others: a connection has one request, and little time for it.
"""

from __future__ import annotations

import hashlib
import html
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote

from src.report.files import open_regular, read_results
from src.report.page import Live, render
from src.report.panels import PageContext
from src.report.runs import FolderTree, ReportError, Run, read_run, read_runs
from src.report.runs_table import run_files

HOST = "127.0.0.1"
PAGE = "/dashboard/index.html"
# Connections at a time. The seconds that one may take to ask, and to take its answer; and the same
# while others wait for a place.
PLACES = 400
ASKING_SECONDS, ANSWERING_SECONDS = 10.0, 60.0
CROWDED_ASKING_SECONDS, CROWDED_ANSWERING_SECONDS = 0.5, 5.0
_PART = 1 << 18
_WATCHED = ("run.json", "config.yaml", "metrics.jsonl", "evals")
_TEXT, _HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"


class Answer(NamedTuple):
    """A response's content."""

    content: bytes | BinaryIO
    kind: str
    has_policy: bool = False  # of its own, as the page; others get one that allows nothing


class _Look(NamedTuple):
    """The runs as they were found, and a version that changes with them."""

    runs: tuple[Run, ...]
    version: str


@dataclass
class LiveReport:
    """The current page and the files behind it. Runs that did not change are not read again."""

    outputs: Path  # the folder of the runs
    benchmarks: Path  # the folder of result files
    refresh_seconds: int  # after how long an open page asks again
    window: int | None = None  # as in `groups.headline_window`
    look_seconds: float = 0.5  # after how long the folders are looked at again, however many ask

    def __post_init__(self) -> None:
        self.outputs = Path(os.path.realpath(self.outputs))
        self._known: dict[Path, tuple[str, Run]] = {}
        self._tree = FolderTree()
        self._look, self._looked_at, self._looking = _Look((), ""), -math.inf, threading.Lock()
        self._page, self._drawing = ("", b""), threading.Lock()

    def get(self, path: str) -> Answer | None:
        """The answer to an address, or None; raises ReportError if `outputs` is gone."""
        look = self._current()
        if path == "/version":
            return Answer(look.version.encode(), _TEXT)
        if path == PAGE:
            return Answer(self._render(look), _HTML, has_policy=True)
        return self._file(path, look.runs)

    def _current(self) -> _Look:
        """What was found last. One request looks again; others wait only for the first look."""
        with _one_at_a_time(self._looking, wait=not self._look.version) as mine:
            if mine and time.monotonic() - self._looked_at >= self.look_seconds:
                runs = tuple(read_runs(self.outputs, self._read, self._tree))
                parts = [f"{r.folder}:{self._known.get(r.folder, (r.problems,))[0]}" for r in runs]
                text = "\n".join([*parts, _signature([], self.benchmarks)])
                version = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
                self._look = _Look(runs, version)
                self._looked_at = time.monotonic()
        return self._look

    def _read(self, folder: Path, outputs: Path) -> Run:
        signature = _signature([folder / name for name in _WATCHED], folder / "evals")
        kept = self._known.get(folder)
        if kept and kept[0] == signature:
            return kept[1]
        run = read_run(folder, outputs)
        self._known[folder] = (signature, run)
        return run

    def _render(self, look: _Look) -> bytes:
        """The page. While one request draws a new one, the others get the one before it."""
        with _one_at_a_time(self._drawing, wait=not self._page[0]) as mine:
            if mine and self._page[0] != look.version:
                context = PageContext(
                    runs=look.runs,
                    window=self.window,
                    results=tuple(read_results(self.benchmarks)),
                    target=self.outputs / PAGE.lstrip("/"),
                )
                page = render(context, Live(self.refresh_seconds, look.version))
                self._page = (look.version, page.encode())
        return self._page[1]

    def _file(self, path: str, runs: Sequence[Run]) -> Answer | None:
        """A listed file of a run, or for its folder the list of these files."""
        wanted = self.outputs / path.removeprefix("/")
        for run in runs:
            if path == f"/{run.folder.relative_to(self.outputs)}/":
                return Answer(_listing(run).encode(), _HTML)
            for file in run_files(run.folder) if run.folder in wanted.parents else ():
                if path == f"/{file.relative_to(self.outputs)}":
                    return Answer(open_regular(file), _TEXT)
        return None


@contextmanager
def _one_at_a_time(lock: threading.Lock, *, wait: bool) -> Iterator[bool]:
    """Whether this thread may work: it holds the lock, which it waits for only if asked to."""
    mine = lock.acquire(blocking=wait)
    try:
        yield mine
    finally:
        if mine:
            lock.release()


def serve(report: LiveReport, port: int) -> None:
    """Answer until interrupted. `port` 0 takes a free one; the address is printed.

    Raises ReportError if the port is taken, or `outputs` is not a folder.
    """
    report.get("/version")
    try:
        server = Server(port, report)
    except OSError as error:
        raise ReportError(
            f"port={port}: {error.strerror}; give another one, or 0 for any that is free"
        ) from error
    with server:
        print(f"http://{HOST}:{server.server_port}{PAGE} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class Server(ThreadingHTTPServer):
    """One thread for each connection, which has one request and a limited time.

    A connection is closed `ASKING_SECONDS` after it began without a whole request, and after
    `ANSWERING_SECONDS` otherwise; earlier if its place is needed.
    """

    daemon_threads = True
    request_queue_size = 4096  # the system's own limit may be lower

    def __init__(self, port: int, report: LiveReport) -> None:
        self._since: dict[socket.socket, float] = {}
        self._asked: set[socket.socket] = set()
        super().__init__((HOST, port), partial(_Handler, report))

    def process_request(self, request: Any, client_address: Any) -> None:
        while len(self._since) >= PLACES and not self._close_overdue(crowded=True):
            time.sleep(0.01)
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def has_asked(self, connection: socket.socket) -> None:
        """Note that the whole request has been read."""
        self._asked.add(connection)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        self._asked.discard(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self._close_overdue(crowded=False)

    def _close_overdue(self, *, crowded: bool) -> bool:
        """Cut connections that have taken too long; their threads then end. Whether any was."""
        now, closed = time.monotonic(), False
        asking = CROWDED_ASKING_SECONDS if crowded else ASKING_SECONDS
        answering = CROWDED_ANSWERING_SECONDS if crowded else ANSWERING_SECONDS
        for connection, since in list(self._since.items()):
            if now - since > (answering if connection in self._asked else asking):
                self._since.pop(connection, None)
                closed = True
                with suppress(OSError):  # the other side may have closed it
                    connection.shutdown(socket.SHUT_RDWR)
        return closed

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is no fault of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = ASKING_SECONDS

    def __init__(self, report: LiveReport, *args: object) -> None:
        self._report = report
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.has_asked(self.connection)
        self.connection.settimeout(ANSWERING_SECONDS)
        port = self.server.server_port
        if self.headers.get("Host") not in {f"{HOST}:{port}", f"localhost:{port}"}:
            self._send(HTTPStatus.FORBIDDEN, Answer(b"this server answers to localhost\n", _TEXT))
            return
        path = unquote(self.path.partition("?")[0], errors="surrogateescape")
        if path in ("/", "/dashboard", "/dashboard/"):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", PAGE)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        try:
            answer = self._report.get(path)
        except (ReportError, OSError) as error:
            content = f"{error}\n".encode("utf-8", "replace")
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, Answer(content, _TEXT))
            return
        except Exception:
            fault = Answer(b"a fault of the dashboard; its terminal says more\n", _TEXT)
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, fault)
            raise
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, Answer(b"not found\n", _TEXT))
        else:
            self._send(HTTPStatus.OK, answer)

    do_HEAD = do_GET

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        content = answer.content
        with BytesIO(content) if isinstance(content, bytes) else content as body:
            size = body.seek(0, os.SEEK_END)
            body.seek(0)
            self.send_response(status)
            headers = {
                "Content-Type": answer.kind,
                "Content-Length": str(size),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "X-Frame-Options": "DENY",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
            }
            if not answer.has_policy:
                headers["Content-Security-Policy"] = "default-src 'none'"
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            while self.command == "GET" and size > 0 and (part := body.read(min(size, _PART))):
                self.wfile.write(part)
                size -= len(part)  # a file may grow meanwhile

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
            status = path.lstat()
        except FileNotFoundError:
            continue
        parts.append(f"{path.name}:{status.st_mtime_ns}:{status.st_size}:{status.st_mode}")
    return ",".join(parts)
