"""A dashboard over folders and clients that mean it no good: everything else is still answered."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from src.report import runs, server
from src.report.files import UnreadableFile, read_bytes, read_config
from src.report.runs import FolderTree, read_run, read_runs
from src.report.server import HOST, PAGE, LiveReport, Server
from src.report.tables import csv_text

MakeRun = Callable[..., Path]


@pytest.fixture
def serving(outputs: Path, make_run: MakeRun, tmp_path: Path) -> Iterator[Server]:
    """A server in this process, over one ordinary run."""
    make_run("first")
    report = LiveReport(outputs, tmp_path / "benchmarks", refresh_seconds=1, look_seconds=0.1)
    with Server(0, report) as answering:
        thread = threading.Thread(target=answering.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield answering
        answering.shutdown()
        thread.join()


def ask(answering: Server, path: str, timeout: float = 30) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, answering.server_port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def half_open(answering: Server, text: bytes) -> socket.socket:
    opened = socket.create_connection((HOST, answering.server_port), timeout=30)
    opened.sendall(text)
    return opened


SECRET = b"a secret of this machine"


@pytest.fixture
def hostile(outputs: Path, make_run: MakeRun, tmp_path: Path) -> dict[str, Path]:
    """Runs whose files are not what they should be, by what is wrong."""
    secret = tmp_path / "secret.json"
    secret.write_bytes(SECRET)
    made = {name: make_run(name) for name in ("fifo", "device", "link", "linked-folder", "folder")}
    for name in ("config.yaml", "metrics.jsonl", "run.json"):
        for folder in made.values():
            (folder / name).unlink(missing_ok=True)
        os.mkfifo(made["fifo"] / name)
        (made["link"] / name).symlink_to(secret)
        (made["folder"] / name).mkdir()
        if name == "run.json" or os.geteuid():
            (made["device"] / name).symlink_to("/dev/zero")
        else:
            os.mknod(made["device"] / name, 0o020666, os.makedev(1, 5))
    (made["linked-folder"] / "run.json").write_text("{}")
    evals = made["linked-folder"] / "evals"
    if evals.exists():
        evals.rename(tmp_path / "moved")
    (tmp_path / "drift.json").write_bytes(SECRET)
    evals.symlink_to(tmp_path)
    (outputs / "run.json").symlink_to(secret)
    (outputs / "linked-run").symlink_to(tmp_path)
    return made


def test_only_regular_files_inside_run_folders_are_read(
    serving: Server, hostile: dict[str, Path]
) -> None:
    time.sleep(0.2)
    began = time.monotonic()
    status, page = ask(serving, PAGE)
    assert status == 200
    for kind in ("is not a regular file", "is a link, which is not followed"):
        assert kind.encode() in page
    assert SECRET not in page
    files = ("run.json", "config.yaml", "metrics.jsonl", "evals/drift.json", "")
    asked = [f"/{name}/{file}" for name in hostile for file in files]
    asked += ["/run.json", "/linked-run/secret.json", "/linked-run/"]
    for path in asked:
        status, content = ask(serving, path)
        assert status in (200, 404)
        assert SECRET not in content, path
    assert time.monotonic() - began < 20
    assert ask(serving, "/first/config.yaml")[0] == 200


def test_a_file_beyond_the_limit_is_named_and_not_read(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(b"x" * 100)
    with pytest.raises(UnreadableFile, match=r"run\.json cannot be read \(it is larger than 0 MiB"):
        read_bytes(file, most=99)
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UnreadableFile, match="larger than 256 MiB"):
        read_bytes(file)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 500_000,
        "a: " + "{a: " * 300_000,
        "- " * 300_000 + "a",
        "? " * 300_000 + "a",
        "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
        "a: &a [*a]",
    ],
    ids=["lists", "mappings", "dashes", "keys", "doubling", "itself"],
)
def test_yaml_that_cannot_be_loaded_is_refused(tmp_path: Path, content: str) -> None:
    """The loader's recursion in C would end the process."""
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(UnreadableFile, match="not YAML"):
        read_config(file)


def test_hostile_names_are_text(serving: Server, outputs: Path, make_run: MakeRun) -> None:
    names = [
        "<script>alert(1)</script>",
        "a\nb: c\r\nSet-Cookie: x",
        "%2e%2e",
        "..%2f..",
        "-rf",
        "=1+1",
        "a'\"&b",
        "\u202eevil",
        "x" * 200,
    ]
    for name in names:
        make_run(name)
    raw = os.fsencode(outputs) + b"/\xff\xfe"
    os.mkdir(raw)
    with open(raw + b"/run.json", "wb") as file:
        file.write(b"{}")
    os.utime(raw + b"/run.json", ns=(2**62, 2**62))
    time.sleep(0.2)
    status, page = ask(serving, PAGE)
    assert status == 200
    assert b"<script>alert" not in page
    for name in names:
        status, content = ask(serving, f"/{quote(name)}/")
        assert status == 200
        assert b"<script>alert" not in content
        assert ask(serving, f"/{quote(name)}/run.json")[0] == 200
    for path in (
        "/%00",
        "/%ff",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/" + "a" * 9000,
    ):
        assert ask(serving, path)[0] == 404


def test_a_flood_and_idle_connections_leave_nobody_unanswered(serving: Server) -> None:
    flood(serving, requests=60, idle=40, slow=4)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_thousand_requests_beside_500_half_open_connections(serving: Server) -> None:
    flood(serving, requests=1000, idle=500, slow=50)


def flood(serving: Server, *, requests: int, idle: int, slow: int) -> None:
    texts = [b"", b"GET / HT", b"GET /version HTTP/1.1\r\nHost: a\r\n"]
    opened = [half_open(serving, texts[n % len(texts)]) for n in range(idle)]
    # These ask, and do not read what they get.
    host = f"Host: {HOST}:{serving.server_port}".encode()
    opened += [
        half_open(serving, b"GET " + PAGE.encode() + b" HTTP/1.1\r\n" + host + b"\r\n\r\n")
        for _ in range(slow)
    ]
    try:
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(requests) as pool:
            paths = ["/version", "/first/config.yaml", PAGE, "/nothing"]
            asked = [paths[n % len(paths)] for n in range(requests)]
            answers = list(pool.map(lambda path: ask(serving, path, 120)[0], asked))
        assert answers == [404 if path == "/nothing" else 200 for path in asked]
        print(f"{requests} requests beside {idle} half-open: {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 60
    finally:
        for one in opened:
            one.close()


def test_a_request_that_does_not_come_is_not_waited_for(
    serving: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ASKING_SECONDS", 0.3)
    dripping = half_open(serving, b"GET /version HTTP/1.1\r\n")
    dripping.settimeout(0.05)
    began = time.monotonic()
    try:
        while time.monotonic() - began < 5:  # each byte comes soon after the one before it
            dripping.sendall(b"X")
            with suppress(TimeoutError):
                if dripping.recv(100) == b"":
                    break
    except ConnectionError:
        pass
    assert 0.2 < time.monotonic() - began < 4
    dripping.close()


def test_unchanged_folders_are_not_listed_again(
    outputs: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = time.time() - 100
    for name in ("a", "b/c"):
        make_run(name)
    for folder in (outputs, outputs / "b", outputs / "a", outputs / "b" / "c"):
        os.utime(folder, (old, old))
    tree = FolderTree()
    assert len(read_runs(outputs, read_run, tree)) == 2
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(
        runs.os, "scandir", lambda path: (listed.append(str(path)), scandir(path))[1]
    )
    assert len(list(tree.runs(outputs, pytest.fail))) == 2
    assert listed == []
    make_run("b/d")
    assert len(list(tree.runs(outputs, pytest.fail))) == 3
    assert listed == [str(outputs / "b"), str(outputs / "b" / "d")]


@pytest.mark.parametrize(
    "cell",
    [
        *("=1", "+1", "-1+1", "@x", "\u2212x", " =1", "\t=1", "\r=1", "\n=1", "\t1"),
        *(
            "\uff1d1",
            "\uff0b1",
            "\uff0d1",
            "\uff20x",
            "\ufe62x",
            "\u200b=1",
            "\ufeff=1",
            "\u00a0=1",
        ),
    ],
)
def test_cells_that_begin_like_formulas_are_texts(cell: str) -> None:
    assert csv_text([[cell, "a=1"]]).lstrip('"').startswith("'")


def test_other_cells_stay_as_they_are() -> None:
    assert csv_text([["a=1", "1+1", -1.5, None, "", "–"]]) == "a=1,1+1,-1.5,,,–\n"
    # A gap that was widened, as a table has it.
    assert csv_text([["-12.3", "-7", "-12.3 to 4.0"]]) == "-12.3,-7,'-12.3 to 4.0\n"


def test_the_command_answers_over_hostile_folders(hostile: dict[str, Path], outputs: Path) -> None:
    """Without a server too, a FIFO does not hold it up."""
    assert {run.name for run in read_runs(outputs)} >= set(hostile)
    for run in read_runs(outputs):
        assert SECRET.decode() not in json.dumps(run.problems)
