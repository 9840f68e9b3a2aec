"""Detectors of e-mail, IP and MAC addresses and of URLs with credentials.

Each starts from a mark that every value has (@, ://, colons) and looks a bounded number of characters to both sides, so
the time is proportional to the text's length, whatever it holds.
"""

import ipaddress
from collections.abc import Iterator

import regex

Range = tuple[int, int]

LONGEST_LOCAL = 128  # characters before the @ (RFC 5321 allows 64)
# Letters of scripts that put spaces between words may stand in an address; in others it would swallow the sentence.
_SPACED = r"\p{Latin}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}\p{Devanagari}\p{Armenian}\p{Georgian}\p{Hangul}"
_LETTERS = rf"[{_SPACED}\p{{Mn}}\d]"
_LOCAL = regex.compile(rf"[{_SPACED}\p{{Mn}}\d!#$%&'*+/=?^_`{{|}}~.\-]")
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_LABEL = rf"(?:{_LETTERS}|[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Thai}}])(?:(?:{_LETTERS}|-){{0,62}})"
_TLD = rf"(?:xn--[a-z0-9\-]{{2,59}}|[{_SPACED}][{_SPACED}\p{{Mn}}]{{1,23}}|\p{{Han}}{{2,4}}(?!\p{{Han}}))"
_DOT = r"(?:\.| ?[\[({] ?(?:dot|punkt|point|punto|ponto) ?[\])}] ?)"
_DOMAIN = regex.compile(
    rf"(?:{_LABEL}{_DOT}){{1,8}}?{_TLD}(?!{_LETTERS}|\.{_LETTERS}|-\d)|\[[\d.:a-f]{{2,45}}\]", regex.I
)
_ASCII_DOMAIN = regex.compile(
    r"(?:[a-z0-9](?:[a-z0-9\-]{0,62})\.){1,8}(?:xn--[a-z0-9\-]{2,59}|[a-z]{2,24})", regex.I | regex.A
)
_AT = regex.compile(r"(?<=[^\s@])@(?=[\w\[])| ?[\[({] ?(?:at|ät|arroba|chez) ?[\])}] ?", regex.I)


def emails(text: str) -> Iterator[Range]:
    """E-mail addresses, also internationalized ones and those with a written-out (at)."""
    last = 0
    for at in _AT.finditer(text):
        domain = _DOMAIN.match(text, at.end()) or _ASCII_DOMAIN.match(text, at.end())
        if domain is None:
            continue
        start = _local_start(text, at.start(), last)
        if start == at.start():
            continue
        last = domain.end()
        yield start, domain.end()


def _local_start(text: str, at: int, floor: int) -> int:
    """Where the local part before `at` begins; `at`: there is none."""
    floor = max(floor, at - LONGEST_LOCAL)
    if at > floor and text[at - 1] == '"':  # a quoted local part, "john smith"@example.com
        opening = text.rfind('"', floor, at - 1)
        return opening if opening >= 0 and "\n" not in text[opening:at] else at
    start = at
    while start > floor and _LOCAL.match(text, start - 1):
        start -= 1
    if start == at:
        while start > floor and _UNSPACED.match(text, start - 1):
            start -= 1
    while start < at and text[start] in "'`/=?&|{}.-*!#$%^~+":  # marks around an address, not of it
        start += 1
    for mark in "=/":  # mailto=..., a path before it
        start = max(start, text.rfind(mark, start, at) + 1)
    return start


_USER = regex.compile(r"[^\s/?#\"'<>\\]{1,512}")


def credentials(text: str) -> Iterator[Range]:
    """`user:password` of URLs."""
    place = text.find("://")
    while place >= 0:
        start = place + 3
        authority = _USER.match(text, start)
        if authority is not None:
            end = text.rfind("@", start, authority.end())
            if end > start and ":" in text[start:end] and place and text[place - 1].isalnum():
                yield start, end
        place = text.find("://", start)


_IPV4 = regex.compile(r"(?<![\d.])(?<!\d,)\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)", regex.A)
_IPV6 = regex.compile(
    r"(?<![0-9A-Za-z.])(?<![0-9A-Fa-f]:)[0-9a-f:][0-9a-f:.]{1,44}(?:%[0-9a-z_.\-]{1,16})?(?![0-9A-Za-z:])",
    regex.A | regex.I,
)
_VERSION = regex.compile(r"(?:\bv|version|release|ver\.|firmware|§|section|chapter|kapitel) ?$", regex.I)


def ip_addresses(text: str) -> Iterator[Range]:
    """IPv4 and IPv6 addresses, without port and length of the prefix, with the zone."""
    if ":" in text:
        for found in _IPV6.finditer(text):
            start, value = found.start(), found[0].rstrip(".")
            if value.startswith(":") and not value.startswith("::"):  # of the words before, "IP:"
                start, value = start + 1, value[1:]
            if value.count(":") > 1 and value.endswith(":") and not value.endswith("::"):
                value = value[:-1]
            if value.count(":") < 2 or not any(each.isdigit() for each in value):
                continue
            if _is_ip(value):
                yield start, start + len(value)
    for found in _IPV4.finditer(text):
        before = text[max(0, found.start() - 12) : found.start()]
        if _is_ip(found[0]) and not _VERSION.search(before):
            yield found.span()


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


_MAC = regex.compile(
    r"(?<![0-9a-f])(?<![0-9a-f][:\-])[0-9a-f]{2}(?P<mark>[:\-])(?:[0-9a-f]{2}(?P=mark)){4}[0-9a-f]{2}(?![0-9a-f]|[:\-][0-9a-f])"
    r"|(?<![0-9a-f.])[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}(?!\.?[0-9a-f])",
    regex.I | regex.A,
)


def mac_addresses(text: str) -> Iterator[Range]:
    """MAC addresses with colons, dashes or, as Cisco writes them, dots."""
    for found in _MAC.finditer(text):
        if ":" in found[0] or any(each.isalpha() for each in found[0]):  # else a number with dashes or dots
            yield found.span()
