"""Every task: length, answers in the context, singular scores, seeds; for two tokenizers."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import Any

import pytest

from src.evals.ruler import tasks
from src.evals.ruler.asking import score
from src.evals.ruler.material import Material, QuestionSet
from src.evals.ruler.sample import RulerError, dump, parse
from src.evals.ruler.tasks import ALL_TASKS, TASKS, check_names, samples_of
from tests.conftest import ROOT

LENGTHS = (2048, 3000)


def spaced_tokenizer(*, beginning: bool) -> Any:
    """A token for each run of letters, digit or other sign; words are whole, as in a large
    vocabulary. With `beginning` each text starts with <s>."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]{1,4}|\s|."), "isolated")
    if beginning:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["bytes", "pieces_with_beginning"])
def tokenizer(request: pytest.FixtureRequest, byte_tokenizer: Any) -> Any:
    return byte_tokenizer if request.param == "bytes" else spaced_tokenizer(beginning=True)


def made(name: str, length: int, tokenizer: Any, material: Material, **changes: Any) -> list[Any]:
    settings = {"seed": 7, "number": 3} | changes
    number = settings.pop("number")
    return list(
        samples_of(name, length, range(number), tokenizer=tokenizer, material=material, **settings)
    )


class Blocks:
    """A token for every three letters, across words: no sum over words is right."""

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        whole = [
            [0] * (-(-len(text) // 3) + 1)
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        return {"input_ids": whole[0] if isinstance(texts, str) else whole}


@pytest.mark.parametrize("kind", ["bytes", "pieces", "blocks"])
@pytest.mark.parametrize("name", TASKS)
def test_samples_are_those_of_searches_that_tokenize_whole_prompts(
    name: str,
    kind: str,
    byte_tokenizer: Any,
    material: Material,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = {
        "bytes": byte_tokenizer,
        "pieces": spaced_tokenizer(beginning=True),
        "blocks": Blocks(),
    }[kind]
    samples = made(name, 2048, tokenizer, material, number=1)
    monkeypatch.setattr(tasks, "fitted", lambda make, ruler: make(ruler))
    assert samples == made(name, 2048, tokenizer, material, number=1)


def test_a_search_over_words_tokenizes_the_finished_prompt_alone(
    byte_tokenizer: Any, material: Material
) -> None:
    read: list[int] = []

    def counting(texts: Any, **options: Any) -> Any:
        read.append(len(texts) if isinstance(texts, str) else max(map(len, texts)))
        return byte_tokenizer(texts, **options)

    made("niah_single_2", 2048, counting, material, number=5)
    assert len([letters for letters in read if letters > 1000]) == 5


def test_there_are_thirteen_tasks_with_the_papers_names() -> None:
    assert len(TASKS) == 13
    assert [n for n in TASKS if n.startswith("niah")] == [
        *("niah_single_1", "niah_single_2", "niah_single_3"),
        *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
        *("niah_multivalue", "niah_multiquery"),
    ]
    assert {"vt", "cwe", "fwe", "qa_squad", "qa_drop"} <= set(TASKS)
    assert {n: t.max_new_tokens for n, t in TASKS.items() if not n.startswith("niah")} == {
        "vt": 30,
        "cwe": 120,
        "fwe": 50,
        "qa_squad": 32,
        "qa_drop": 32,
    }


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TASKS)
def test_samples_fill_the_length_and_hold_their_answers(
    name: str, length: int, tokenizer: Any, material: Material
) -> None:
    samples = made(name, length, tokenizer, material)
    assert [s.index for s in samples] == [0, 1, 2]
    for sample in samples:
        ids = tokenizer(sample.prompt)["input_ids"]
        assert len(ids) == sample.prompt_tokens
        assert 0.99 * length <= len(ids) + sample.max_new_tokens <= length
        if tokenizer.bos_token_id is not None:
            assert ids.count(tokenizer.bos_token_id) == 1
            assert ids[0] == tokenizer.bos_token_id
        held = [output in sample.context for output in sample.outputs]
        assert all(held) if sample.match == "all" else any(held)
        assert sample.tail in sample.prompt
        assert "{" not in sample.head + sample.tail
        assert score(" ".join(sample.outputs), sample.outputs, sample.match) == 1
        assert score("", sample.outputs, sample.match) == 0
    assert len({s.prompt for s in samples}) == 3


@pytest.mark.parametrize("name", TASKS)
def test_equal_seeds_give_equal_bytes_and_others_do_not(
    name: str, byte_tokenizer: Any, material: Material
) -> None:
    once = dump(made(name, 2048, byte_tokenizer, material))
    again = dump(made(name, 2048, byte_tokenizer, material))
    other = dump(made(name, 2048, byte_tokenizer, material, seed=8))
    assert once == again
    assert once != other
    assert dump(parse(once.splitlines(), "x")) == once
    # The first samples do not depend on how many are made.
    assert once.startswith(dump(made(name, 2048, byte_tokenizer, material, number=1)))


def test_samples_are_what_they_were(byte_tokenizer: Any, material: Material) -> None:
    """Other samples make the scores of a study incomparable: regenerate with UPDATE_GOLDEN=1, say
    why, and make all samples again.
    """
    asked: dict[str, dict[str, Any]] = {name: {} for name in TASKS}
    asked["niah_depth"] = {"depths": [0, 37.5, 100]}
    digests = {
        name: hashlib.sha256(dump(made(name, 2048, byte_tokenizer, material, **more)).encode())
        for name, more in asked.items()
    }
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    golden = ROOT / "tests" / "golden" / "ruler_samples.json"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    assert json.loads(golden.read_text(encoding="utf-8")) == found


@pytest.mark.parametrize("name", TASKS)
def test_a_length_that_is_too_short_is_one_clear_error(
    name: str, byte_tokenizer: Any, material: Material
) -> None:
    with pytest.raises(RulerError, match=rf"{name}.*(longer length|length \d+)"):
        made(name, 100, byte_tokenizer, material)


def test_a_typo_names_the_nearest_task() -> None:
    with pytest.raises(RulerError, match="did you mean 'niah_single_1'"):
        check_names(["vt", "niah_singel_1"])
    assert "qa_hotpot" in ALL_TASKS


@pytest.mark.parametrize("name", ["cwe", "qa_squad"])
def test_a_length_beyond_the_material_is_refused(
    name: str, byte_tokenizer: Any, material: Material
) -> None:
    with pytest.raises(RulerError, match="choose a shorter length"):
        made(name, 200_000, byte_tokenizer, material, number=1)


def test_more_samples_than_questions_are_refused(byte_tokenizer: Any, material: Material) -> None:
    with pytest.raises(RulerError, match="has 40 questions"):
        made("qa_drop", 2048, byte_tokenizer, material, number=41)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("niah_single_2", {"sentences": ()}, r"no prose to .*material\.prose"),
        ("niah_single_1", {"nouns": ()}, r"material\.words has 60 and 0 of them"),
        ("niah_multikey_2", {"adjectives": ("big", "red"), "nouns": ("boat",)}, "2 and 1 of them"),
        ("cwe", {"adjectives": (), "nouns": (), "verbs": ("go",)}, "needs 20 different words"),
    ],
)
def test_material_that_is_too_small_is_refused(
    name: str, change: dict[str, Any], message: str, byte_tokenizer: Any, material: Material
) -> None:
    with pytest.raises(RulerError, match=message):
        made(name, 2048, byte_tokenizer, replace(material, **change))


def test_a_question_set_without_other_documents_is_refused(
    byte_tokenizer: Any, material: Material
) -> None:
    question = replace(material.questions["squad"].questions[0], document=0, related=())
    for questions, message in (((question,), "has no other: give a larger file"), ((), "has 0")):
        alone = QuestionSet("squad", ("A lamp gives light.",), questions)
        small = replace(material, questions={"squad": alone})
        with pytest.raises(RulerError, match=message):
            made("qa_squad", 2048, byte_tokenizer, small)


def test_questions_differ_within_a_task_and_agree_between_lengths(
    byte_tokenizer: Any, material: Material
) -> None:
    short = made("qa_squad", 2048, byte_tokenizer, material, number=10)
    long = made("qa_squad", 3000, byte_tokenizer, material, number=10, seed=1)
    assert len({s.query for s in short}) == 10
    assert [s.query for s in short] == [s.query for s in long]


def test_haystacks_are_of_their_kind(byte_tokenizer: Any, material: Material) -> None:
    noise, prose, needles = (
        made(name, 3000, byte_tokenizer, material, number=1)[0].context
        for name in ("niah_single_1", "niah_single_2", "niah_multikey_2")
    )
    assert noise.count("The grass is green.") > 10
    assert noise.count("One of the special magic") == 1
    assert "Mr. Alder counted the waves" in prose
    assert prose.count("One of the special magic") == 1
    assert needles.count("One of the special magic numbers for") > 20
    assert needles.count("\n") > 20


@pytest.mark.parametrize(
    ("name", "needles", "outputs"),
    [("niah_multikey_1", 4, 1), ("niah_multivalue", 4, 4), ("niah_multiquery", 4, 4)],
)
def test_distractors_and_multiple_answers(
    name: str, needles: int, outputs: int, byte_tokenizer: Any, material: Material
) -> None:
    (sample,) = made(name, 2048, byte_tokenizer, material, number=1)
    assert sample.context.count("One of the special magic numbers for") == needles
    assert len(sample.outputs) == outputs
    plural = outputs > 1
    assert ("What are all the" in sample.tail) == plural
    assert sample.head.startswith("Some special" if plural else "A special magic number is")


def test_a_chain_is_in_order_after_an_example(byte_tokenizer: Any, material: Material) -> None:
    (sample,) = made("vt", 3000, byte_tokenizer, material, number=1)
    first, *rest = sample.outputs
    at = [sample.context.index(f"VAR {first} = ")]
    for old, new in zip(sample.outputs, rest, strict=False):
        at.append(sample.context.index(f"VAR {new} = VAR {old} "))
    assert at == sorted(at)
    value = sample.context[at[0] :].split(" = ")[1].split("\n")[0]
    assert f"assigned the value {value}, they are: " in sample.tail
    assert sample.head.count("Memorize and track the chain(s)") == 2
    assert value not in sample.head


def test_common_words_are_ten_times_commoner(byte_tokenizer: Any, material: Material) -> None:
    from collections import Counter

    (sample,) = made("cwe", 9000, byte_tokenizer, material, number=1)
    counts = Counter(sample.context.split()[1::2])
    assert {word for word, _ in counts.most_common(10)} == set(sample.outputs)
    assert {counts[word] for word in sample.outputs} == {30}
    others = [n for word, n in counts.items() if word not in sample.outputs]
    assert set(others) <= {1, 2, 3}
    assert sum(n < 3 for n in others) <= 1


def test_frequent_words_are_the_three_after_the_dots(
    byte_tokenizer: Any, material: Material
) -> None:
    from collections import Counter

    (sample,) = made("fwe", 4096, byte_tokenizer, material, number=1)
    ranked = [word for word, _ in Counter(sample.context.split()).most_common(4)]
    assert ranked == ["...", *sample.outputs]


def test_the_answering_document_is_whole_among_others(
    byte_tokenizer: Any, material: Material
) -> None:
    (sample,) = made("qa_squad", 3000, byte_tokenizer, material, number=1)
    texts = [part.split("\n", 1)[1] for part in sample.context.split("\n\n")]
    known = material.questions["squad"]
    asked = next(q for q in known.questions if q.text == sample.query)
    assert known.documents[asked.document] in texts
    cut = [text for text in texts if text not in known.documents]
    assert len(cut) <= 1
    for neighbour in asked.related:
        assert any(known.documents[neighbour].startswith(text) for text in texts)


def test_needles_lie_at_their_depth_in_the_same_text(
    byte_tokenizer: Any, material: Material
) -> None:
    depths = [0, 50, 100]
    found = made("niah_depth", 2048, byte_tokenizer, material, seed=3, number=2, depths=depths)
    assert [(s.depth, s.index) for s in found] == [
        *((0, 0), (0, 1), (50, 0), (50, 1), (100, 0), (100, 1)),
    ]
    shares = [s.context.index(s.outputs[0]) / len(s.context) for s in found]
    assert max(shares[:2]) < 0.06
    assert all(0.4 < share < 0.6 for share in shares[2:4])
    assert min(shares[4:]) > 0.94
    assert len({s.outputs for s in found}) == 2
    for sample in found:
        assert 0.99 * 2048 <= sample.tokens <= 2048
