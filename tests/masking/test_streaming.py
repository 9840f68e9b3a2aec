"""An answer in pieces is restored as the whole is."""

import random

from instructrec_jax.masking.masker import MaskConfig, Masker
from instructrec_jax.masking.streaming import RestoredStream

VALUES = {
    "<EMAIL_1>": "a@example.com",
    "<EMAIL_12>": "b@example.com",
    "<IP_1>": "<IP_1",
    "<PHONE_2>": "+49 171 2345678",
}
ANSWER = "<<EMAIL_1>><EMAIL_1<EMAIL_12> a < b <IP_1> <IP_2> <PHONE_2>, <EMAIL"


def streamed(pieces: list[str]) -> str:
    stream = RestoredStream(VALUES)
    return "".join([*map(stream.update, pieces), stream.end()])


def test_every_split_in_two_and_single_characters_give_the_whole() -> None:
    whole = "<a@example.com><EMAIL_1b@example.com a < b <IP_1 <IP_2> +49 171 2345678, <EMAIL"
    assert streamed([ANSWER]) == streamed(list(ANSWER)) == whole
    assert all(streamed([ANSWER[:cut], ANSWER[cut:]]) == whole for cut in range(len(ANSWER) + 1))


def test_random_splits_give_what_restore_gives() -> None:
    session = Masker(MaskConfig(kinds=["email", "ip"])).session()
    masked = session.mask("a@example.com <EMAIL_3> b@example.com 10.0.0.1 <<c@example.com>")
    draw = random.Random(1)
    for _ in range(100):
        cuts = sorted(draw.choices(range(len(masked) + 1), k=5))
        stream = session.stream()
        pieces = [masked[start:end] for start, end in zip([0, *cuts], [*cuts, len(masked)], strict=True)]
        assert "".join([*map(stream.update, pieces), stream.end()]) == session.restore(masked)


def test_only_what_may_become_a_placeholder_is_held_back() -> None:
    stream = RestoredStream(VALUES)
    assert stream.update("so a < b") == "so a < b"
    assert stream.update("x <EMAIL_") == "x "
    assert stream.update("3> y <") == "<EMAIL_3> y "
    assert stream.update("b>") == "<b>"
    assert stream.end() == ""
    assert RestoredStream({}).update("<EMAIL_") == "<EMAIL_"
