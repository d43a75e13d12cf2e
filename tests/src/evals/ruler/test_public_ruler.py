"""Prompts and scores are those of NVIDIA/RULER, commit c3f5e3b, whose facts are restated here.

`rendered` builds a prompt as the public generator does from the parts of one: its template and
answer prefix, singular by replaced words, and the form of each haystack. The parts are read from
the prompt itself. docs/evaluation_long.md lists what the prompts have otherwise: how parts are
drawn. The public generator's own samples, made of the same material, pass the same check.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from src.evals.ruler.asking import score
from src.evals.ruler.material import Material
from src.evals.ruler.tasks import TASKS, samples_of

# Template with answer prefix, and tokens to generate (constants.py).
NIAH = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} "
    "for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text are"
)
TEMPLATES = {
    "vt": "Memorize and track the chain(s) of variable assignment hidden in the following text."
    "\n\n{context}\nQuestion: Find all variables that are assigned the value {query} in the text "
    "above. Answer: According to the chain(s) of variable assignment in the text above, 5 "
    "variables are assigned the value {query}, they are: ",
    "cwe": "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common "
    "words in the above list? Answer: The top 10 words that appear most often in the list are:",
    "fwe": "Read the following coded text and track the frequency of each coded word. Find the "
    "three most frequently appeared coded words. {context}\nQuestion: Do not provide any "
    "explanation. Please ignore the dots '....'. What are the three most frequently appeared words "
    "in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:",
    "qa": "Answer the question based on the given documents. Only give me the answer and do not "
    "output any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the "
    "question based on the given documents. Only give me the answer and do not output any other "
    "words.\n\nQuestion: {query} Answer:",
}
TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = re.compile(r"One of the special magic (\w+) for ([^:]+?) is: (\S+)\.(?=\s|$)")
# Haystack, kind of keys and of values, keys hidden, values of a key, keys asked (synthetic.yaml).
NEEDLES = {
    "niah_single_1": ("noise", "words", "numbers", 1, 1, 1),
    "niah_single_2": ("essay", "words", "numbers", 1, 1, 1),
    "niah_single_3": ("essay", "words", "uuids", 1, 1, 1),
    "niah_multikey_1": ("essay", "words", "numbers", 4, 1, 1),
    "niah_multikey_2": ("needle", "words", "numbers", 1, 1, 1),
    "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
    "niah_multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "niah_multiquery": ("essay", "words", "numbers", 4, 1, 4),
}
FORMS = {
    "numbers": r"\d{7}",
    "words": r"[^\s-].*-\S.*",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


def template_of(name: str) -> str:
    """A task's template; a question for one value has it in the singular."""
    if name not in NEEDLES:
        return TEMPLATES[name.partition("_")[0]]
    *_, kind, _, values, queries = NEEDLES[name]
    if values * queries > 1:
        return NIAH.replace("{kind}", kind)
    text = NIAH.replace("Some", "A").replace("are all", "is").replace("are", "is")
    return text.replace("{kind}", kind[:-1])


def parts_of(name: str, prompt: str) -> tuple[str, str]:
    """Context and query of a prompt without its worked example; refuses another wording."""
    pattern = re.escape(template_of(name)).replace(r"\{context\}", "(?P<context>.*)", 1)
    pattern = pattern.replace(r"\{query\}", "(?P<query>.+?)", 1).replace(r"\{query\}", "(?P=query)")
    found = re.fullmatch(pattern, prompt, re.DOTALL)
    assert found, f"{name}: {prompt[:200]!r} ... {prompt[-300:]!r}"
    return found["context"], found.groupdict().get("query") or ""


def check_needles(name: str, context: str, query: str, outputs: list[str]) -> None:
    haystack, keys, values, hidden, each, asked = NEEDLES[name]
    found = NEEDLE.findall(context)
    assert {kind for kind, _, _ in found} == {values}
    assert all(re.fullmatch(FORMS[keys], key) for _, key, _ in found)
    assert all(re.fullmatch(FORMS[values], value) for _, _, value in found)
    if haystack != "needle":
        assert len(found) == hidden * each
    names = [key for _, key, _ in found]
    queries = re.split(r", and |, ", query)
    assert len(queries) == asked
    assert query == (", ".join(queries[:-1]) + ", and " if asked > 1 else "") + queries[-1]
    assert set(queries) <= set(names)
    by_key = [sorted(v for _, key, v in found if key == asked_key) for asked_key in queries]
    assert [sorted(outputs[i : i + each]) for i in range(0, len(outputs), each)] == by_key
    if haystack == "essay":
        return
    kept = [line for line in context.split("\n") if not NEEDLE.fullmatch(line)]
    # A last line may be cut: this program fills the length with its first words.
    assert all(line == NOISE for line in kept[:-1])
    assert not kept or (NOISE + " ").startswith(kept[-1][: len(NOISE)])
    assert haystack == "noise" or len(kept) <= 1


def check_chain(context: str, query: str, outputs: list[str], letters: int = 5) -> None:
    lines = context.split("\n")
    chain = [line for line in lines if line.startswith("VAR ")]
    first, *others = outputs
    expected = [f"VAR {first} = {query}"]
    expected += [f"VAR {new} = VAR {old} " for old, new in zip(outputs, others, strict=False)]
    assert chain == expected
    assert all(re.fullmatch(f"[A-Z]{{{letters}}}", name) for name in outputs)
    assert re.fullmatch(r"\d{5}", query)
    noise = [line for line in lines if not line.startswith("VAR ")]
    assert set(noise[:-1]) <= {NOISE}


def check_words(context: str, outputs: list[str], repeats: tuple[int, int]) -> None:
    numbered = re.findall(r"(\d+)\. (\D+?)(?= \d+\. |$)", context)
    assert " ".join(f"{i}. {word}" for i, word in numbered) == context
    assert [int(i) for i, _ in numbered] == list(range(1, len(numbered) + 1))
    counts = {word: sum(other == word for _, other in numbered) for _, word in numbered}
    common, uncommon = repeats
    assert [counts.pop(word) for word in outputs] == [common] * 10
    # One word may be repeated less, to fill the length.
    assert sorted(counts.values())[1:] == [uncommon] * (len(counts) - 1)


def example_of(name: str, head: str) -> tuple[str, str, list[str]]:
    """Context, query and answers of the worked example before the task."""
    begin = template_of(name).partition("{context}")[0]
    assert head.endswith(begin)
    end = "\n\n" if name == "vt" else "\n"
    example = head.removesuffix(end + begin)
    assert example != head
    if name == "vt":
        cut = example.rindex("they are: ") + len("they are: ")
        prompt, rest = example[:cut], example[cut:]
        answers = rest.split()
        assert rest == " " + " ".join(answers)
    else:
        cut = example.rindex("in the list are:") + len("in the list are:")
        prompt, rest = example[:cut], example[cut:]
        answers = re.findall(r" \d+\. (\D+?)(?= \d+\. |$)", rest)
        assert rest == "".join(f" {i}. {word}" for i, word in enumerate(answers, start=1))
    return *parts_of(name, prompt), answers


def check(name: str, prompt: str, outputs: list[str], length: int) -> None:
    """Refuse a prompt that the public generator would not have made of its parts."""
    begin = template_of(name).partition("{context}")[0]
    task = prompt[prompt.rindex(begin) :] if name in ("vt", "cwe") else prompt
    context, query = parts_of(name, task)
    if name in NEEDLES:
        check_needles(name, context, query, outputs)
    elif name == "vt":
        check_chain(context, query, outputs)
        shown, value, answers = example_of(name, prompt.removesuffix(task) + begin)
        check_chain(shown, value, answers, letters=3)
    elif name == "cwe":
        check_words(context, outputs, (30, 3) if length >= 4096 else (6, 1))
        shown, _, answers = example_of(name, prompt.removesuffix(task) + begin)
        check_words(shown, answers, (10, 3) if length >= 4096 else (3, 1))
    elif name == "fwe":
        words = context.split(" ")
        assert all(word == "..." or re.fullmatch("[a-z]{6}", word) for word in words)
        counts = {word: words.count(word) for word in {*words} - {"..."}}
        assert sorted(counts, key=lambda word: -counts[word])[:3] == outputs
    else:
        documents = re.split(r"(?:^|\n\n)Document \d+:\n", context)[1:]
        told = (f"Document {i}:\n{text}" for i, text in enumerate(documents, start=1))
        assert "\n\n".join(told) == context
        assert any(answer in text for text in documents for answer in outputs)


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_is_what_the_public_generator_makes_of_its_parts(
    name: str, byte_tokenizer: Any, material: Material
) -> None:
    # Bytes are tokens here: the lists of words differ below and from a length of 4096 on.
    for length in (4000, 12_000) if name == "cwe" else (4000,):
        made = samples_of(
            name, length, range(2), seed=1, tokenizer=byte_tokenizer, material=material
        )
        for sample in made:
            check(name, sample.prompt, list(sample.outputs), length)
            assert sample.max_new_tokens == TOKENS[name.partition("_")[0]]


@pytest.mark.parametrize("change", ["Some ", " are", "magic", " afterwards"])
def test_another_wording_is_noticed(change: str, byte_tokenizer: Any, material: Material) -> None:
    (sample,) = samples_of(
        "niah_multivalue", 4000, range(1), seed=1, tokenizer=byte_tokenizer, material=material
    )
    check("niah_multivalue", sample.prompt, list(sample.outputs), 4000)
    changed = sample.prompt.replace(change, change.upper() + " ", 1)
    with pytest.raises(AssertionError):
        check("niah_multivalue", changed, list(sample.outputs), 4000)


def test_scores_are_the_public_ones() -> None:
    def public(answer: str, references: list[str], match: str) -> float:
        text = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).strip()
        found = [1.0 if r.lower() in text.lower() else 0.0 for r in references]
        return max(found) if match == "part" else sum(found) / len(references)

    draw = random.Random(0)
    pieces = ["Oslo", "oslo ", "BERGEN", "12", "1", "\x07", "\n", " ", "ü", "Ü", "."]
    for _ in range(300):
        answer = "".join(draw.choices(pieces, k=draw.randint(0, 8)))
        references = draw.choices(["oslo", "Bergen", "12", "2", "ü", "a\nb"], k=draw.randint(1, 4))
        for match in ("all", "part"):
            ours = score(answer, references, match)  # type: ignore[arg-type]  # a literal
            assert ours == public(answer, references, match)
