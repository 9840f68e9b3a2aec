"""Masking and restoring: properties that hold for every text."""

import random

import pytest

from instructrec_jax.masking import masker as module
from instructrec_jax.masking.kinds import KINDS
from instructrec_jax.masking.masker import MaskConfig, Masker
from instructrec_jax.masking.spans import Span

VALUES = {
    "email": "ann.smith+x@mail.example.com",
    "phone": "+49 171 2345678",
    "card": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "national_id": "123-45-6789",
    "ip": "2001:db8::1%eth0",
    "mac": "00:1a:2B:3c:4d:5e",
    "credentials": "ann:hunter2",
    "secret": "ghp_0123456789abcdefghijABCDEFGHIJ012345",
}
PIECES = [
    *VALUES.values(),
    "https://ann:hunter2@example.com/x",
    "<EMAIL_1>",
    "<EMAIL_2>",
    "<PHONE_1>",
    "<LITERAL_1>",
    "<",
    ">",
    "EMAIL_1",
    " ",
    " ",
    "\n",
    "a",
    "1",
    "0171 2345678",
    "call ",
    "password=",
    "@",
    "://",
    ":",
    ".",
    "-",
    "＠",
    "\u200b",
    "٣",
    "電話",
    "é",
    "12.03.2021",
    "IBAN ",
]


@pytest.fixture(scope="module")
def masker() -> Masker:
    return Masker(MaskConfig(kinds=["all"]))


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randrange(1, 12))) for _ in range(count)]


def test_each_kind_has_a_placeholder_of_its_name(masker: Masker) -> None:
    assert set(VALUES) == set(KINDS)
    for kind, value in VALUES.items():
        text = f"see https://{value}@example.com now" if kind == "credentials" else f"see {value} now"
        session = masker.session()
        masked = session.mask(text)
        assert masked == text.replace(value, f"<{kind.upper()}_1>")
        assert session.restore(masked) == text
        assert session.counts == {kind: 1}


def test_masking_and_restoring_give_the_text_and_masking_twice_is_masking_once(masker: Masker) -> None:
    for text in random_texts(600, seed=1):
        session = masker.session()
        masked = session.mask(text)
        assert session.restore(masked) == text
        assert masker.session().mask(masked) == masked, text
        assert masker.found(masked) == []


def test_texts_of_one_session_come_back_whatever_they_hold(masker: Masker) -> None:
    texts = random_texts(120, seed=2)
    for start in range(0, len(texts), 4):
        session = masker.session()
        masked = [session.mask(text) for text in texts[start : start + 4]]
        assert [session.restore(each) for each in masked] == texts[start : start + 4]


def test_nothing_of_a_value_remains(masker: Masker) -> None:
    for value in VALUES.values():
        for before, after in (("", ""), ("(", ")."), ("'", "'"), ("邮箱：", "。"), ("\u202b", "\u202c"), ("x ", ", y")):
            text = (
                f"{before}{value}{after}" if value != VALUES["credentials"] else f"{before}ftp://{value}@h.org{after}"
            )
            masked = masker.session().mask(text)
            assert value not in masked and value.split("@")[0].split(" ")[-1] not in masked, text


def test_the_same_value_has_the_same_number_in_all_texts_of_a_session(masker: Masker) -> None:
    session = masker.session()
    assert session.mask("From a@example.com to b@example.com.") == "From <EMAIL_1> to <EMAIL_2>."
    assert session.mask("b@example.com, then c@example.com") == "<EMAIL_2>, then <EMAIL_3>"
    assert session.mask("a@example.com") == "<EMAIL_1>"
    assert session.counts == {"email": 5}
    assert masker.session().mask("c@example.com") == "<EMAIL_1>"


def test_a_typed_placeholder_never_becomes_a_value(masker: Masker) -> None:
    session = masker.session()
    assert session.mask("Is <EMAIL_1> a@example.com?") == "Is <EMAIL_1> <EMAIL_2>?"
    assert session.restore("<EMAIL_1> <EMAIL_2> <EMAIL_3>") == "<EMAIL_1> a@example.com <EMAIL_3>"
    later = session.mask("What is <EMAIL_2>?")  # typed after the number was given away
    assert later == "What is <LITERAL_1>?"
    assert session.restore(later) == "What is <EMAIL_2>?"


def test_a_tagger_adds_kinds_and_its_errors_hide_the_text() -> None:
    def names(text: str) -> list[Span]:
        place = text.find("Ann")
        return [Span(place, place + 3, "person")] if place >= 0 else []

    session = Masker(MaskConfig(kinds=["email"]), names).session()
    assert session.mask("Ann <ann@example.com>, Ann") == "<PERSON_1> <<EMAIL_1>>, Ann"

    def fails(text: str) -> list[Span]:
        raise RuntimeError(f"cannot read {text}")

    with pytest.raises(ValueError, match="failed with RuntimeError") as error:
        Masker(MaskConfig(), fails).session().mask("Ann lives here")
    assert "Ann" not in str(error.value) and error.value.__cause__ is None
    with pytest.raises(ValueError, match="outside of the text"):
        Masker(MaskConfig(), lambda text: [Span(0, 99, "person")]).session().mask("Ann")


def test_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kind 'mail' of personal data is unknown: choose from all, secret"):
        Masker(MaskConfig(kinds=["mail"]))
    with pytest.raises(ValueError, match="region 'XX'"):
        Masker(MaskConfig(kinds=["phone"], regions=["XX"]))
    with pytest.raises(ValueError, match="nothing to mask"):
        Masker(MaskConfig())
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"masking of phone needs the package phonenumbers.*\[masking\]"):
        Masker(MaskConfig(kinds=["phone"]))
    Masker(MaskConfig(kinds=["email", "secret", "ip"]))  # these need none
    with pytest.raises(ValueError, match=r"presidio_analyzer.*\[presidio\]"):
        Masker(MaskConfig(presidio="en"))


def test_equal_settings_have_equal_keys() -> None:
    one, two = MaskConfig(["phone", "email"], ["US", "DE"]), MaskConfig(["email", "phone"], ["DE", "US"])
    assert one.key() == two.key() != MaskConfig(["email"], ["DE", "US"]).key()
    assert MaskConfig(["all"]).key() == MaskConfig(list(KINDS)).key()
    assert not MaskConfig() and MaskConfig(["email"])


def test_a_session_does_not_show_its_values(masker: Masker) -> None:
    session = masker.session()
    session.mask("ann@example.com")
    assert "ann" not in repr(session) and "ann" not in str(vars(module).get("log", ""))
