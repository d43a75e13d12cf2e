from __future__ import annotations

import yaml

from src.report.charts import COLORS
from src.report.names import MERGED, METHODS, method_name, short_models
from tests.conftest import ROOT


def test_names_are_of_recipes_and_each_has_a_colour_of_its_own() -> None:
    texts = [file.read_text() for file in (ROOT / "conf" / "recipe").glob("*.yaml")]
    recipes = {yaml.safe_load(text)["name"].partition("$")[0] for text in texts}
    assert all(name.startswith(tuple(recipes)) for name in METHODS)
    assert len(set(METHODS.values())) == len(METHODS) <= len(COLORS)


def test_an_unknown_method_shows_its_own_name_and_a_merged_one_says_so() -> None:
    assert method_name("mine") == "mine"
    assert method_name("mine" + MERGED) == "mine, merged"
    assert method_name("cpt_long" + MERGED) == "Long-CPT, merged"


def test_a_models_hash_is_shown_only_where_two_models_share_a_name() -> None:
    alone = {"own@1a2b3c4d", "tiny", "a@b"}
    assert short_models(alone) == {"own@1a2b3c4d": "own", "tiny": "tiny", "a@b": "a@b"}
    assert short_models({"own", "own@1a2b3c4d", "own@00000000"}) == {
        "own": "own",
        "own@1a2b3c4d": "own (weights 1a2b3c4d)",
        "own@00000000": "own (weights 00000000)",
    }
