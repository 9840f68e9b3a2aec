"""Conditions on facts, compared with hand-written comparisons."""

import pytest

from instructrec_jax.answering.filters import matching
from instructrec_jax.ranking.catalogue import Catalogue

FACTS = {
    "year": [1979, 1995, None, 2010],
    "rating": [8.5, 7.0, 6.5, None],
    "director": ["Ridley Scott", "John Lasseter", None, "李安"],
    "genres": [["Horror", "Science Fiction"], ["Comedy"], None, ["horror", "Drama"]],
    "categories": [["a"], [], ["b"], None],
}
CATALOGUE = Catalogue(list("abcd"), list("abcd"), list("abcd"), FACTS)


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("year>1979", [1, 3]),
        ("year >= 1979", [0, 1, 3]),
        ("year<2010", [0, 1]),
        ("year<=1995.5", [0, 1]),
        ("year=1995", [1]),
        ("year==1995", [1]),
        ("year!=1995", [0, 2, 3]),
        ("rating>6.9", [0, 1]),
        ("genre=HORROR", [0, 3]),
        ("Genres = science fiction", [0]),
        ("genre!=Horror", [1, 2]),
        ("category=b", [2]),
        ("director=ridley scott", [0]),
        ("directors!=Ridley Scott", [1, 2, 3]),
        ("director=李安", [3]),
    ],
)
def test_conditions(condition: str, met: list[int]) -> None:
    assert matching(CATALOGUE, [condition]).nonzero()[0].tolist() == met


def test_all_conditions_hold() -> None:
    assert matching(CATALOGUE, ["genre=horror", "year>1990"]).tolist() == [False, False, False, True]
    assert matching(CATALOGUE, []).all()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("yaer>1990", "'yaer'.*\"year\""),
        ("genre=Horor", "genres 'Horor'.*\"horror\""),
        ("genre!=Horor", "'Horor'"),
        ("director=Nobody", "John Lasseter, Ridley Scott, 李安"),
        ("year>soon", "year.*'soon'"),
        ("year=nan", "year.*'nan'"),
        ("genre>3", "genres.*list"),
        ("director<b", "director.*number"),
        ("year", "name=value"),
        ("year>", "name=value"),
        ("=3", "name=value"),
        ("", "name=value"),
    ],
)
def test_unusable_conditions_say_why(condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matching(CATALOGUE, [condition])


def test_a_catalogue_without_facts_says_so() -> None:
    with pytest.raises(ValueError, match="facts"):
        matching(Catalogue(["a"], ["a"], ["a"]), ["year>3"])
