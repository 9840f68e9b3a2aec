"""Instructions that tie codes to language: what they say is true, and held-out wordings are others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_networks import codes_of

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.preparation.wording.alignment import ASKED, HISTORY, alignment_examples
from instructrec_jax.ranking.catalogue import Catalogue, Splits

NAMES = ["i 1", "i 2", "i 3", "i 4", "i 5"]
YEARS = [1991, 1992, 1985, 1986, None]
FACTS: dict[str, Any] = {"genres": [["Drama"], ["Drama"], ["Comedy"], ["Comedy"], []], "year": YEARS}
CATALOGUE = Catalogue(NAMES, ["Alpha", "Beta 😀", "{title}", "星", "Epsilon"], NAMES, FACTS)
NONE = np.empty(0, np.int32)
USERS = [np.array([0, 1, 2], np.int32), np.array([3], np.int32), np.array([*range(5)] * 3, np.int32)]
SPLITS = Splits(["a", "b", "c"], USERS, [NONE] * 3, [NONE] * 3)
IDS = codes_of(NAMES)


def made(held_out: bool, splits: Splits | None = SPLITS, seed: int = 0) -> list[Example]:
    return list(alignment_examples(IDS, CATALOGUE, splits, held_out=held_out, noun="film", seed=seed))


def of(form: str, examples: list[Example]) -> list[Example]:
    return [e for e in examples if e.origin["form"] == form]


@pytest.mark.parametrize("held_out", [False, True])
def test_titles_and_codes_belong_together(held_out: bool) -> None:
    examples = made(held_out)
    for item in range(5):
        there, back = of("title to id", examples)[item], of("id to title", examples)[item]
        assert CATALOGUE.name(item) in there.instruction and there.output == IDS.text(item)
        assert IDS.text(item) in back.instruction and back.output == CATALOGUE.name(item)


def test_a_wish_is_true_of_the_item_and_does_not_name_it() -> None:
    wishes = of("wish to id", made(False))
    assert [e.id for e in wishes] == [f"wish to id {item}" for item in range(4)]  # nothing is known of the last item
    for item, e in enumerate(wishes):
        assert e.output == IDS.text(item)
        kind, other = ("drama", "comed") if item < 2 else ("comed", "drama")
        text = e.instruction.lower()
        assert other not in text and (kind in text or str(YEARS[item])[2] in text or "ties" in text)
        assert CATALOGUE.titles[item] not in e.instruction


def test_a_history_leads_to_a_wish_for_what_came_next() -> None:
    """Of training interactions alone; a user with one item, or with an unknown last one, gives none."""
    (one,) = of("history to wish", made(False))
    assert [IDS.text(n) in one.instruction for n in range(5)] == [True, True, False, False, False]
    longer = Splits(["c"], [np.array([*range(5)] * 3 + [2], np.int32)], [NONE], [NONE])
    (long,) = of("history to wish", made(False, longer))
    assert long.instruction.count("<a_") == HISTORY
    assert not of("history to wish", made(False, None))


def test_held_out_wordings_are_others_and_a_seed_says_all() -> None:
    for own, others in ASKED.values():
        assert not set(own) & set(others)
    assert {e.origin["wording"] for e in made(True)} == {"held_out"}
    assert not {e.instruction for e in made(True)} & {e.instruction for e in made(False)}
    assert made(False) == made(False) and made(False) != made(False, seed=1)
    with pytest.raises(ValueError, match="nonsense"):
        list(alignment_examples(IDS, CATALOGUE, None, held_out=False, noun="nonsense", seed=0))


def test_they_are_examples_in_a_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "some.jsonl", (e.to_record() for e in made(False)))
    assert [Example.from_record(row) for row in read_jsonl(tmp_path / "some.jsonl")] == made(False)
