"""What each detector finds in plain texts.

Modules: instructrec_jax.masking.addresses, instructrec_jax.masking.known_secrets, instructrec_jax.masking.national_ids,
instructrec_jax.masking.numbers, instructrec_jax.masking.plain, instructrec_jax.masking.spans.
"""

import pytest

from instructrec_jax.masking.kinds import KINDS, chosen_kinds, find
from instructrec_jax.masking.plain import plain
from instructrec_jax.masking.spans import Span, merged

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "CN", "JP")


def found(text: str, *kinds: str) -> list[str]:
    return [text[span.start : span.end] for span in find(text, kinds or KINDS, REGIONS)]


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("email", "'a.b+c@d.co.uk', <x_y@z.org>; mailto:q@r.com?subject=s", ["a.b+c@d.co.uk", "x_y@z.org", "q@r.com"]),
        ("email", "我的邮箱是foo@example.com，谢谢", ["foo@example.com"]),
        ("email", "Ｗｒｉｔｅ ａｎｎ＠ｅｘａｍｐｌｅ．ｃｏｍ！", ["ａｎｎ＠ｅｘａｍｐｌｅ．ｃｏｍ"]),
        ("email", "a\u200bnn@exam\u00adple.com jörg@müller.de", ["a\u200bnn@exam\u00adple.com", "jörg@müller.de"]),
        ("email", "joe (at) example [dot] com or joe@[10.0.0.1]", ["joe (at) example [dot] com", "joe@[10.0.0.1]"]),
        ("email", "שלחו אל dana@example.co.il\u200f, пишите иван@пример.рф", ["dana@example.co.il", "иван@пример.рф"]),
        ("email", "at 5 @ noon, @user, a@b, 3@4.5", []),
        (
            "phone",
            "+49 (0)171 234-5678; 00441632960788, (02328) 60129",
            ["+49 (0)171 234-5678", "00441632960788", "(02328) 60129"],
        ),
        ("phone", "212-555-0123x45 or (212) 555 0123", ["212-555-0123x45", "(212) 555 0123"]),
        (
            "phone",
            "اتصل +٤٩١٧١٢٣٤٥٦٧٨ 手机：13812345678。 090-1234-5678",
            ["+٤٩١٧١٢٣٤٥٦٧٨", "13812345678", "090-1234-5678"],
        ),
        ("phone", "Call me at 5551234567. Mi móvil es 612345678", ["5551234567", "612345678"]),
        ("phone", "call about order 12345678, on 12.03.2021, 0.3571428571, $ 212 555 1234, 1,234,567,890", []),
        ("card", "4111 1111 1111 1111 12/27 123, 3782-822463-10005", ["4111 1111 1111 1111", "3782-822463-10005"]),
        ("card", "4111 1111 1111 1112 or 1234567890123456", []),
        (
            "iban",
            "de89370400440532013000, GB82 WEST 1234 5698 7654 32 paid",
            ["de89370400440532013000", "GB82 WEST 1234 5698 7654 32"],
        ),
        ("iban", "DE88 3704 0044 0532 0130 00", []),
        ("iban", "IBAN: DE88 3704 0044 0532 0130 00", ["DE88 3704 0044 0532 0130 00"]),  # mistyped, but named
        ("national_id", "123-45-6789; 12345678Z; RSSMRA85T10A562S", ["123-45-6789", "12345678Z", "RSSMRA85T10A562S"]),
        ("national_id", "身份证号11010519491231002X, CPF 390.533.447-05", ["11010519491231002X", "390.533.447-05"]),
        ("national_id", "Steuer-ID 86 095 742 719, NINO AB123456C", ["86 095 742 719", "AB123456C"]),
        ("national_id", "order 000-12-3456, 12345678A, 123456789", []),
        (
            "ip",
            "10.0.0.1:80, IP:fe80::1%eth0, [::ffff:192.168.0.1]:443",
            ["10.0.0.1", "fe80::1%eth0", "::ffff:192.168.0.1"],
        ),
        ("ip", "v1.2.3.4, version 1.2.3.4, std::string, 12:30:45, 300.1.1.1, 1.2.3.4.5", []),
        (
            "mac",
            "00:1a:2B:3c:4d:5e 00-1A-2B-3C-4D-5E 001a.2b3c.4d5e",
            ["00:1a:2B:3c:4d:5e", "00-1A-2B-3C-4D-5E", "001a.2b3c.4d5e"],
        ),
        ("mac", "12-34-56-78-90-12 00:1a:2b:3c:4d:5e:6f", []),
        ("credentials", "https://ann:p@ss@example.com/a:b@c http://example.com:80/x@y", ["ann:p@ss"]),
        (
            "secret",
            "AKIAIOSFODNN7EXAMPLE, sk_live_0123456789abcdef.",
            ["AKIAIOSFODNN7EXAMPLE", "sk_live_0123456789abcdef"],
        ),
        ("secret", 'password=hunter2&x=1 {"api_key": "ab cd"} token: <YOURS>', ["hunter2"]),
        ("secret", "Authorization: Bearer abc.def-123", ["abc.def-123"]),
        (
            "secret",
            "密码：Hunter2。パスワードはabc$123です。 My password is Hunter2!",
            ["Hunter2", "abc$123", "Hunter2"],
        ),
        ("secret", "The password is wrong, token: what; api_key=API_KEY, token = make_token(1)", []),
        (
            "secret",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- x",
            ["-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"],
        ),
        ("secret", "-----BEGIN PRIVATE KEY-----\nMIIE\nabcd", ["-----BEGIN PRIVATE KEY-----\nMIIE\nabcd"]),  # cut off
    ],
)
def test_a_kind(kind: str, text: str, values: list[str]) -> None:
    assert found(text, kind) == values


def test_overlapping_kinds_become_one_span() -> None:
    assert found("password=ann@example.com") == ["ann@example.com"]
    assert [span.kind for span in find("password=ann@example.com", KINDS)] == ["secret"]
    assert [span.kind for span in find("4111111111111111", KINDS, REGIONS)] == ["card"]
    assert found("https://ann:hunter2@example.com/") == ["ann:hunter2"]  # and no address hunter2@example.com
    spans = [Span(3, 9, "ip"), Span(0, 4, "email"), Span(8, 10, "mac"), Span(10, 12, "card")]
    assert merged(spans) == [Span(0, 10, "ip"), Span(10, 12, "card")]


def test_plain_text_has_the_places_of_the_original() -> None:
    assert plain("abc") == plain("abc") and plain("abc").places is None
    seen = plain("ａ\u200b１\u2011٣\ufe0f。")
    assert seen.text == "a1-3。"
    assert [seen.place(number, number + 1) for number in range(5)] == [(0, 1), (2, 3), (3, 4), (4, 5), (6, 7)]
    assert seen.place(0, 2) == (0, 3)


def test_kinds_come_in_order_of_priority() -> None:
    assert chosen_kinds(["email", "secret"]) == ("secret", "email")
    assert chosen_kinds(["all"]) == KINDS


HOSTILE = (
    "1",
    "1 ",
    "4444 ",
    "@",
    "a@",
    "a@b.",
    "+1 2 3 ",
    "212-555-12",
    "GB12 ",
    "GB12",
    ":",
    "a:",
    "password=",
    "a://b:c",
    "0(0)/-",
    "-----BEGIN PRIVATE KEY-----",
    "tel 12345 ",
    "eyJ",
    "<EMAIL_1>",
    "密码是",
    "'\"=",
    " (at) ",
    "a.",
    "ü@ü.",
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_end(piece: str) -> None:
    """Of 60,000 characters: a search whose time grows with their square takes minutes."""
    text = piece * (60_000 // len(piece))
    assert all(span.end <= len(text) for span in find(text, KINDS, REGIONS))
