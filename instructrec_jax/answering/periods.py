"""Years and running times that a request says in words: "before 1980", "from the nineties", "under two hours".

Each is a span of the text and a condition of `filters`. A year of a story ("set in 1944", "in her thirties") is none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

WORDS = {
    "twenties": 1920,
    "thirties": 1930,
    "forties": 1940,
    "fifties": 1950,
    "sixties": 1960,
    "seventies": 1970,
    "eighties": 1980,
    "nineties": 1990,
    "two-thousands": 2000,
    "noughties": 2000,
}
_CHINESE = {"三": 1930, "四": 1940, "五": 1950, "六": 1960, "七": 1970, "八": 1980, "九": 1990}
_PARTS = {"early": (0, 3), "mid": (4, 6), "late": (7, 9)}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "half": 0.5}

_YEAR = r"(?:18|19|20)\d\d"
_DECADE = rf"(?:the\s+)?(?:(?P<part>early|mid|late)[\s-]+)?['’]?(?P<decade>(?:18|19|20)\d0s|[03-9]0s|{'|'.join(WORDS)})"
_WHEN = rf"(?:{_DECADE}|(?P<year>{_YEAR})(?!\d|s))"
_END = rf"(?:the\s+)?(?P<end>{_YEAR})(?!\d|s)"
# in front of years that tell of the story, of somebody's age, or of a title
_STORY = re.compile(
    r"\b(?:set|settled|plays?|takes? place|taking place|lives?|living|grow\w* up|happen\w*|about|during|her|his|their"
    r"|my)"
    r"(?:\s+(?:in|during|around|about))?\s*$",
    re.IGNORECASE,
)
_BEGIN = r"(?:(?:that (?:is|was|were)|made|shot|released|filmed|out)\s+)*"
_MADE = r"(?:out of|from|(?:made|shot|released|filmed) in)"
_FORMS: list[tuple[str, str]] = [
    ("between", rf"{_BEGIN}(?:somewhere\s+)?(?:between|from)\s+{_WHEN}\s*(?:and|to|until|till|through|-|–)\s*{_END}"),
    ("from", rf"{_BEGIN}(?:since|no older than|not older than|not before|no earlier than|not earlier than)\s+{_WHEN}"),
    ("from", rf"{_BEGIN}(?:from\s+)?{_WHEN},?\s*(?:or|and)\s+(?:even\s+)?(?:later|newer|after|younger)"),
    ("from", rf"{_BEGIN}(?:from|starting(?: in)?)\s+{_WHEN}\s*(?:on(?:wards?)?|upwards?)\b"),
    ("to", rf"{_BEGIN}(?:up to|until|till|not? (?:newer|later|younger) than|not after)\s+{_WHEN}"),
    ("to", rf"{_BEGIN}(?:from\s+)?{_WHEN},?\s*(?:or|and)\s+(?:even\s+)?(?:earlier|older|before)"),
    ("before", rf"{_BEGIN}(?:from\s+)?(?:before|pre[-–\s]|older than|earlier than|prior to)\s*{_WHEN}"),
    ("after", rf"{_BEGIN}(?:from\s+)?(?:after|post[-–\s]|newer than|later than|younger than)\s*{_WHEN}"),
    ("in", rf"{_BEGIN}(?:straight\s+)?{_MADE}\s+{_DECADE}(?:\s+(?:cinema|vintage|style))?"),
    ("in", rf"\b{_DECADE}\s+(?:vintage|style|cinema|films?|movies?|pictures?|flicks?|classics?)"),
    (
        "in",
        r"\b(?:(?<=\ba )|(?<=\ban )|(?<=\bsome )|(?<=\bany )|^)['’]?(?P<decade>19\d0s|20[01]0s|[3-9]0s)(?=\s+[a-z])",
    ),
    ("in", rf"{_BEGIN}{_MADE}\s+(?P<year>{_YEAR})(?!\d|s)"),
    ("to", rf"(?P<year>{_YEAR})\s*年?\s*(?:以前|之前|前)(?:拍)?的?"),
    ("from", rf"(?P<year>{_YEAR})\s*年?\s*(?:以后|之后|以来|后)(?:拍)?的?"),
    ("in", r"(?:上世纪)?(?P<decade>[三四五六七八九]十|[3-9]0)年代的?"),
]
_PATTERNS = [
    (kind, re.compile(rf"(?<![A-Za-z0-9'’]){form}" if form[0] != "\\" else form, re.I)) for kind, form in _FORMS
]
_LENGTH = re.compile(
    r"(?<!\w)(?P<side>under|less than|shorter than|at most|no longer than|not longer than|no more than|max(?:imum)?"
    r"|up to|below|over|more than|longer than|at least)\s+(?P<count>\d+(?:\.\d+)?|a|an|one|two|three|four|half)"
    r"(?P<half>\s+and\s+a\s+half)?\s*(?:an\s+)?(?P<unit>hours?|hrs?|h|minutes?|mins?)\b(?:\s+long)?",
    re.I,
)


@dataclass(frozen=True)
class Span:
    """Words of a text, from `start` to `end`, and the conditions that they say."""

    start: int
    end: int
    conditions: tuple[str, ...]


def years(text: str, fact: str = "year") -> Iterator[Span]:
    """Spans of years, in conditions on a fact; no two overlap."""
    taken: list[Span] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if _STORY.search(text[: match.start()]) or any(
                match.start() < each.end and each.start < match.end() for each in taken
            ):
                continue
            taken.append(Span(match.start(), match.end(), _conditions(kind, match, fact)))
    yield from taken


def lengths(text: str, fact: str) -> Iterator[Span]:
    """Spans of running times, in conditions on a fact that counts minutes."""
    for match in _LENGTH.finditer(text):
        count = match["count"].lower()
        number = float(_NUMBERS.get(count, 0) or count) + (0.5 if match["half"] else 0)
        minutes = number * (60 if match["unit"].lower().startswith("h") else 1)
        signs = {"under": "<", "less than": "<", "shorter than": "<", "below": "<"}
        signs |= {"over": ">", "more than": ">", "longer than": ">", "at least": ">="}
        yield Span(match.start(), match.end(), (f"{fact}{signs.get(match['side'].lower(), '<=')}{minutes:g}",))


def _conditions(kind: str, match: re.Match[str], fact: str) -> tuple[str, ...]:
    named = match.groupdict()
    if (decade := named.get("decade")) is not None:
        first = _first_year(decade.lower())
        low, high = _PARTS.get((named.get("part") or "").lower(), (0, 9))
        first, last = first + low, first + high
    else:
        first = last = int(match["year"])
    if kind == "between":
        last = int(match["end"])
    return {
        "between": (f"{fact}>={first}", f"{fact}<={last}"),
        "in": (f"{fact}>={first}", f"{fact}<={last}") if first < last else (f"{fact}={first}",),
        "from": (f"{fact}>={first}",),
        "to": (f"{fact}<={last}",),
        "before": (f"{fact}<{first}",),
        "after": (f"{fact}>{last}",),
    }[kind]


def _first_year(decade: str) -> int:
    if decade in WORDS:
        return WORDS[decade]
    if decade[0] in _CHINESE:
        return _CHINESE[decade[0]]
    number = int(decade.removesuffix("s"))
    return number if number > 100 else 2000 if number == 0 else 1900 + number
