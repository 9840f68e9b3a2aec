"""Titles and texts of items."""

import pytest

from instructrec_jax.preparation.readers.items import item_text, split_title


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Matrix, The (1999)", "The Matrix", 1999),
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Moonlight", "Moonlight", None),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
        ("1984 (1984)", "1984", 1984),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly", 1966),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (La Cité des enfants perdus)",
            1995,
        ),
        (
            "Léon: The Professional (a.k.a. Professional, The) (1994)",
            "Léon: The Professional (a.k.a. The Professional)",
            1994,
        ),
        ("Avventura, L' (1960)", "L'Avventura", 1960),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
        ("Death Note (2006–2007)", "Death Note", 2006),
        ("Babylon 5 (1994- ) ", "Babylon 5", 1994),
        ("Sports, Action", "Sports, Action", None),
    ],
)
def test_split_title(raw, title, year):
    assert split_title(raw) == (title, year)


def test_item_text():
    assert item_text("The Matrix", 1999, {"Genres": ["Action", "Sci-Fi"]}) == (
        "The Matrix (1999). Genres: Action, Sci-Fi."
    )
    assert item_text("Who?", None, {"Genres": [], "Brand": None}) == "Who?"
    assert item_text("Pad", None, {"Brand": "Acme", "Price": 9.5}) == "Pad. Brand: Acme. Price: 9.5."
