"""Prompts in the form of dalle-mini's: each rule, in its order, and what is refused."""

import pytest

from instructrec_jax.tasks.generation.caption_text import normalized

# worked out by dalle-mini's rules, one after the other
TEXTS = {
    "A Red Heart.": " a red heart",
    "": " ",
    "  two   words\n": " two words",
    "it's the dog's \u201cball\u201d": " it's the dog's \" ball \"",
    "caf\u00e9 cr\u00e8me \u2013 no \u2014 yes": " cafe creme, no, yes",
    "1,000,000 people; (or 3.5) on 1/2!": " 1000000 people, or 3.5, on 1/2",
    "see http://a.b/c now": " see now",
    "<b>bold</b> text &amp; more &lt;i&gt;": " bold text & more",
    "[12] a wiki text [3]": " a wiki text",
    "<PERSON> and <PERSON> dance": " people dance",
    "<person> sings": " a person sings",
    "well-known snow_man back\\slash": " well known snow man back slash",
    "noooooo way, III": " no way, iii",
    "50% off $5*2": " 50 % off $ 5 * 2",
    ",first, last,": " first, last",
    "C# and # alone": " c and alone",
    "http://a/#b and <a href='#c'>d</a>": " and d",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert normalized(text) == TEXTS[text]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\u65e5\u672c", "the character '\u65e5'"),
        ("a \U0001f600", "the character"),
        ("stra\u00dfe", "the character '\u00df'"),
        ("a #sunset", "the hashtag '#sunset'"),
    ],
)
def test_what_needs_tables_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        normalized(text)
