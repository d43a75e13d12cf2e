"""Scores of written answers."""

from __future__ import annotations

import pytest

from src.evals import answers


@pytest.mark.parametrize(
    ("given", "f1", "exact"),
    [
        pytest.param(" The Boats.", 1.0, 1.0, id="articles-case-punctuation"),
        pytest.param("boats and nets", 0.5, 0.0, id="too-much"),
        pytest.param("rope", 0.0, 0.0, id="wrong"),
        pytest.param("", 0.0, 0.0, id="empty"),
    ],
)
def test_f1_is_squads(given: str, f1: float, exact: float) -> None:
    found = answers.f1({"answers": ["boats", "old rope ladder"]}, [given])
    if given == "rope":
        f1 = 0.5
    assert found == {"f1": pytest.approx(f1), "exact_match": exact}


@pytest.mark.parametrize(
    ("given", "right"),
    [
        pytest.param(" 4 + 5 = 9. So the answer is 1,250.", 1.0, id="comma-and-stop"),
        pytest.param("1250 apples, no: 12", 0.0, id="last-counts"),
        pytest.param("none", 0.0, id="no-number"),
    ],
)
def test_the_last_number_counts(given: str, right: float) -> None:
    assert answers.last_number({"short_answer": "1250"}, [given]) == {"exact_match": right}


def test_bits_per_byte_counts_bytes() -> None:
    assert answers.bits_per_byte({"gold": " né"}, [(-3.0, False)]) == {"bits_per_byte": (-3.0, 4)}


def test_programs_are_run_with_their_tests() -> None:
    doc = {"prompt": "def half(x):\n", "test": "def check(f):\n    assert f(4) == 2\n"}
    doc["entry_point"] = "half"
    assert answers.passes_humaneval(doc, ["    return x / 2\n"]) == {"exact_match": 1.0}
    assert answers.passes_humaneval(doc, ["    return x\n"]) == {"exact_match": 0.0}
    doc = {"test_list": ["assert plus(1) == 2"], "test_setup_code": ""}
    assert answers.passes_mbpp(doc, ["def plus(x):\n    return x + 1\n"]) == {"exact_match": 1.0}


@pytest.mark.parametrize(
    "leaving",
    [
        pytest.param("import sys; sys.exit(0)", id="exit"),
        pytest.param(
            "import unittest\nif __name__ == '__main__':\n    unittest.main()", id="own-tests"
        ),
    ],
)
def test_a_program_that_leaves_before_its_tests_has_not_passed(leaving: str) -> None:
    doc: dict[str, object] = {"test_list": ["assert plus(1) == 2"], "test_setup_code": ""}
    written = f"def plus(x):\n    return 0\n{leaving}\n"
    assert answers.passes_mbpp(doc, [written]) == {"exact_match": 0.0}
    doc = {"prompt": "def plus(x):\n", "test": "def check(f):\n    assert f(1) == 2\n"}
    doc["entry_point"] = "plus"
    written = f"    return 0\n{leaving}\n"
    assert answers.passes_humaneval(doc, [written]) == {"exact_match": 0.0}
