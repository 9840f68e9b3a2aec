"""What the service hides of a request, and puts back into its answer."""

import asyncio
import base64
import random

import pytest

from instructrec_jax.masking.spans import Span
from instructrec_jax.service.privacy import Privacy, Private, tagged_spans
from instructrec_jax.service.settings import PrivacyConfig
from instructrec_jax.service.stream import Piece
from instructrec_jax.tasks.answers import Word

MAIL, CARD = "ann.lee@example.com", "4111 1111 1111 1111"


def private(**settings: object) -> Private:
    return Privacy(PrivacyConfig(**{"kinds": ["all"]} | settings)).request()  # type: ignore[arg-type]


def masked(hidden: Private, value: object) -> object:
    return asyncio.run(hidden.mask(value))


def test_texts_are_masked_wherever_they_stand_and_keep_their_numbers() -> None:
    hidden = private()
    value = [{"role": "user", "content": f"I am {MAIL}", "n": 3}, [f"pay {CARD}", f"again {MAIL}", None]]
    found = masked(hidden, value)
    assert found == [{"role": "user", "content": "I am <EMAIL_1>", "n": 3}, ["pay <CARD_1>", "again <EMAIL_1>", None]]
    assert hidden.restore(found) == value
    assert hidden.counts == {"email": 2, "card": 1}
    assert private().restore("<EMAIL_1>") == "<EMAIL_1>"  # another request's number says nothing


def test_pictures_stay_as_they_are() -> None:
    """Their base64 may hold what looks like the number of a card; a text that only begins like one is masked."""
    hidden = private()
    data = b"\x89PNG\r\n" + base64.b64decode("4111111111111111") + bytes(range(240))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert "4111111111111111" in uri
    assert masked(hidden, {"image": uri, "text": CARD}) == {"image": uri, "text": "<CARD_1>"}
    assert masked(hidden, f"data:image/png;base64,{MAIL}") == "data:image/png;base64,<EMAIL_1>"


def test_values_stay_away_where_the_settings_say_so() -> None:
    hidden = private(restore=False)
    assert hidden.restore(masked(hidden, MAIL)) == "<EMAIL_1>"
    assert hidden.pieces()(Piece("<EMAIL_1>", [], [])).text == "<EMAIL_1>"


def test_nothing_is_masked_without_settings() -> None:
    hidden = Privacy(PrivacyConfig()).request()
    assert masked(hidden, MAIL) == MAIL and hidden.answer({"start": 3}) == {"start": 3} and not hidden.counts


@pytest.mark.parametrize("seed", range(5))
def test_a_placeholder_split_over_pieces_is_put_back(seed: int) -> None:
    hidden = private()
    whole = str(masked(hidden, f"mail {MAIL} or <EMAIL_9> or {CARD}!"))
    cuts = sorted(random.Random(seed).sample(range(1, len(whole)), 6))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    restored = hidden.pieces()
    pieces = [Piece(part, [], [], finish="eos" if n == len(parts) - 1 else None) for n, part in enumerate(parts)]
    assert "".join(restored(piece).text for piece in pieces) == f"mail {MAIL} or <EMAIL_9> or {CARD}!"


def test_places_in_another_text_are_left_out() -> None:
    hidden = private()
    masked(hidden, MAIL)
    answer = {"prediction": "<EMAIL_1>", "start": 3, "words": [{"word": "<EMAIL_1>", "tag": "O", "start": 0, "end": 9}]}
    assert hidden.answer(answer) == {"prediction": MAIL, "words": [{"word": MAIL, "tag": "O"}]}


def test_tags_are_spans() -> None:
    tags = [("Ann", "B-PER"), ("Lee", "I-PER"), ("of", "O"), ("York", "I-geo.name"), ("Bo", "B-PER"), ("Li", "B-PER")]
    words, start = [], 0
    for word, tag in tags:
        words.append(Word(word, tag, start, start + len(word)))
        start += len(word) + 1
    assert tagged_spans(words) == [
        Span(0, 7, "per"),
        Span(11, 15, "geo_name"),
        Span(16, 18, "per"),
        Span(19, 21, "per"),
    ]
