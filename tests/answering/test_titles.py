"""Matching of typed titles."""

import pytest

from instructrec_jax.answering.titles import Titles, resolve
from instructrec_jax.ranking.catalogue import Catalogue

FILMS = [
    ("alien", "Alien", 1979),
    ("thing-82", "The Thing", 1982),
    ("thing-11", "The Thing", 2011),
    ("matrix", "The Matrix", 1999),
    ("apocalypse", "Apocalypse Now", 1979),
    ("rocky-2", "Rocky II", 1979),
    ("toy-1", "Toy Story", 1995),
    ("toy-3", "Toy Story 3", 2010),
    ("amelie", "Amélie", 2001),
    ("seven", "Seven (a.k.a. Se7en)", 1995),
    ("bomb", "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb", 1964),
    ("earth", "流浪地球", 2019),
    ("emoji", "🚀 Moon 🚀", None),
    ("odd", "???", 1990),
    ("semi", "Crime; Punishment", None),
    ("space", "2001: A Space Odyssey", 1968),
    ("heat", "Heat", 1995),
    ("a-list", "A", None),
    ("fast", "Fast & Furious", 2009),
    ("1917", "1917", 2019),
    ("300", "300", 2007),
    ("gang-1", "Gangsters of London", 1950),
    ("gang-2", "Gangsters of Londen", 1951),
]


@pytest.fixture(scope="module")
def titles() -> Titles:
    ids, names, years = (list(column) for column in zip(*FILMS, strict=True))
    return Titles(Catalogue(ids, names, names, {"year": years}))


def ids(titles: Titles, words: str) -> list[str]:
    return [titles.catalogue.ids[item] for item in titles.find(words).items]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("Alien", "alien"),
        (" ALIEN  ", "alien"),
        ("Alien (1979)", "alien"),
        ("Alien 1979", "alien"),
        ("matrix", "matrix"),
        ("Matrix, The (1999)", "matrix"),
        ("the thing (2011)", "thing-11"),
        ("The Thing 1982", "thing-82"),
        ("id:thing-82", "thing-82"),
        ("thing-82", "thing-82"),
        ("toy story", "toy-1"),
        ("Toy-Story 3!", "toy-3"),
        ("Amelie", "amelie"),
        ("AMÉLIE", "amelie"),
        ("Se7en", "seven"),
        ("seven", "seven"),
        ("Dr Strangelove or How I Learned to Stop Worrying and Love the Bomb", "bomb"),
        ("流浪地球", "earth"),
        ("🚀 moon 🚀", "emoji"),
        ("???", "odd"),
        ("Toy Story 1", "toy-1"),
        ("Rocky 2", "rocky-2"),
        ("Rocky Part II", "rocky-2"),
        ("Gangsters of London, Part One", "gang-1"),
        ("A", "a-list"),
        ("Fast and Furious", "fast"),
        ("Fast &amp; Furious", "fast"),
        ("1917", "1917"),
        ("300 (2007)", "300"),
    ],
)
def test_one_item_is_meant(titles: Titles, words: str, found: str) -> None:
    match = titles.find(words)
    assert ids(titles, words) == [found] and not match.close


def test_remakes_are_ambiguous(titles: Titles) -> None:
    assert ids(titles, "the thing") == ids(titles, "Thing") == ["thing-82", "thing-11"]


def test_a_slip_of_the_finger_is_told(titles: Titles) -> None:
    match = titles.find("Apocalypse Nwo")
    assert ids(titles, "Apocalypse Nwo") == ["apocalypse"] and match.close
    (note,) = resolve(titles, ["Apocalypse Nwo"])[1]
    assert '"Apocalypse Nwo"' in note and "Apocalypse Now (1979)" in note


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("Rocky III", "rocky-2"),
        ("Toy Story 2", "toy-1"),
        ("Heart", "heat"),
        ("Alien (1980)", "alien"),
        ("Apocalypse Nwo (1980)", "apocalypse"),
        ("Strangelove", "bomb"),
    ],
)
def test_other_numbers_years_and_short_words_are_never_guessed(titles: Titles, words: str, nearest: str) -> None:
    match = titles.find(words)
    assert not match.items
    assert nearest in [titles.catalogue.ids[item] for item in match.suggestions]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("Teh Matirx", "matrix"),
        ("Matirx", "matrix"),
        ("Aleen", "alien"),
        ("Ailen", "alien"),
        ("Haet", "heat"),
        ("Heatt", "heat"),
        ("Appocalypse Nwo", "apocalypse"),
        ("Sevven", "seven"),
        ("Rockyy II", "rocky-2"),
        ("2001", "space"),
        ("A Space Odissey", "space"),
        ("Learned to Stop Worrying", "bomb"),
        ("LOTR", "lotr"),
        ("LOTR 1", "lotr"),
        ("dshilts", None),
        ("Lotr", None),
        ("LOTR 2", None),
        ("Toy Story 2", None),
    ],
)
def test_uncertain_matches_are_told(words: str, found: str | None) -> None:
    more = [*FILMS, ("lotr", "The Lord of the Rings: The Fellowship of the Ring", 2001)]
    names, called, years = (list(column) for column in zip(*more, strict=True))
    catalogue = Titles(Catalogue(names, called, called, {"year": years}))
    match = catalogue.find(words)
    assert [names[item] for item in match.items] == ([] if found is None else [found])
    if found is not None:
        assert match.close
        (note,) = resolve(catalogue, [words])[1]
        assert note.startswith(f'"{words}" is read as ')


def test_the_first_of_a_series_is_the_oldest() -> None:
    rings = ["The Lord of the Rings: The Two Towers", "The Lord of the Rings: The Fellowship of the Ring"]
    titles = Titles(Catalogue(["2", "1"], rings, rings, {"year": [2002, 2001]}))
    assert titles.find("LOTR 1").items == [1]
    assert titles.find("LOTR").items == titles.find("lord of the rings").items == [0, 1]  # asked back


def test_equally_close_titles_are_ambiguous(titles: Titles) -> None:
    assert set(ids(titles, "Gangsters of Londn")) == {"gang-1", "gang-2"}


@pytest.mark.parametrize("words", ["zzzz", "", "   ", "!", "id:", "id:zzz", "🎬", "x" * 5000])
def test_unknown_words_find_nothing(titles: Titles, words: str) -> None:
    assert titles.find(words).items == []


def test_errors_list_what_there_is(titles: Titles) -> None:
    with pytest.raises(ValueError, match=r"The Thing \(1982\) \[id:thing-82\]; The Thing \(2011\)") as error:
        resolve(titles, ["Alien", "The Thing", "Rocky III"])
    assert "Rocky II (1979)" in str(error.value) and "--on_unknown skip" in str(error.value)
    with pytest.raises(ValueError) as error:
        resolve(titles, ["The Thing"])
    assert "--on_unknown" not in str(error.value)  # it would not help


def test_unknown_titles_are_skipped_but_ambiguous_ones_are_not(titles: Titles) -> None:
    items, notes = resolve(titles, ["zzzz", "Alien"], skip_unknown=True)
    assert items == [0] and len(notes) == 1 and '"zzzz"' in notes[0]
    with pytest.raises(ValueError, match="thing"):
        resolve(titles, ["zzzz", "thing"], skip_unknown=True)


def test_a_person_is_asked(titles: Titles) -> None:
    asked = []

    def ask(question: str, choices: object) -> int:
        asked.append((question, choices))
        return 0 if "Rocky" in question else 1

    assert resolve(titles, ["thing", "Rocky III", "Alien"], ask=ask)[0] == [2, 5, 0]
    assert [question for question, _ in asked] == [
        '"thing" could be',
        '"Rocky III" is not in the catalogue. Did you mean',
    ]
    with pytest.raises(ValueError, match='"thing"'):
        resolve(titles, ["thing"], ask=lambda *_: None)


def test_titles_of_a_catalogue_without_years() -> None:
    titles = Titles(Catalogue(["1", "2"], ["Heat (1995)", "Heat (1986)"], ["a", "b"]))
    assert titles.find("heat").items == [0, 1]
    assert titles.find("Heat (1986)").items == titles.find("heat 1986").items == [1]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("ro", ["Rocky II"]),
        ("THE t", ["The Thing", "The Thing", "Toy Story"]),  # articles do not count
        ("t", ["The Thing", "The Thing", "Toy Story"]),  # a title's start, in the order of the catalogue
        ("story", ["Toy Story", "Toy Story 3"]),
        ("ame", ["Amélie"]),
        ("lien", ["Alien"]),
        ("gang", ["Gangsters of London", "Gangsters of Londen"]),
        ("no such title", []),
        ("", ["Alien", "The Thing", "The Thing"]),
    ],
)
def test_typed_letters_are_completed(titles: Titles, typed: str, found: list[str]) -> None:
    assert [titles.catalogue.titles[item] for item in titles.complete(typed, 3)] == found
