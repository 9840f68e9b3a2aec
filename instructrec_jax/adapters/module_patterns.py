"""Regular expressions of an adapter's config, matched in bounded time.

Why our own: PEFT passes these untrusted patterns to `re`, whose backtracking takes exponential time on some of them
(`(a+)+$`). Here a pattern is parsed into functions on sets of positions in a name: each maps the positions where its
part can begin to those where it can end. A set has at most as many positions as the name has letters. Features that
need backtracking (back references, look-behind) are not supported and refused by name.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

MOST_LETTERS = 20_000  # maximum length of a pattern; PEFT lists all layer numbers in some
MOST_REPEATS = 100  # maximum n in {n}, which takes n rounds
DEEPEST = 10  # maximum depth of nested groups

Ends = Callable[[str, frozenset[int]], frozenset[int]]  # (name, positions where a part begins) -> where it can end


def matches(pattern: str, name: str, *, whole: bool = True) -> bool:
    """Whether `pattern` matches `name`, like `re.fullmatch`, or like `re.match` if not `whole`.

    Raises ValueError for an invalid regular expression, and for one that cannot be matched in bounded time.
    """
    ends = _compiled(pattern)(name, frozenset([0]))
    return len(name) in ends if whole else bool(ends)


@functools.lru_cache(256)
def _compiled(pattern: str) -> Ends:
    if len(pattern) > MOST_LETTERS:
        raise ValueError(f"the pattern {pattern[:40]!r}… has {len(pattern):,} letters; the limit is {MOST_LETTERS:,}.")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{_short(pattern)} is not a valid regular expression ({error}).") from None
    parser = _Parser(pattern)
    ends = parser.alternatives(0)
    if parser.at < len(pattern):
        parser.refuse("an unmatched parenthesis")
    return ends


def _short(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= 80 else f"{pattern[:80]!r}…"


# ---------------------------------------------------------------- parts of a pattern


def _letter(test: Callable[[str], bool]) -> Ends:
    return lambda name, starts: frozenset(i + 1 for i in starts if i < len(name) and test(name[i]))


def _sequence(parts: list[Ends]) -> Ends:
    def ends(name: str, starts: frozenset[int]) -> frozenset[int]:
        for part in parts:
            if not starts:
                break
            starts = part(name, starts)
        return starts

    return ends


def _either(parts: list[Ends]) -> Ends:
    if len(parts) == 1:
        return parts[0]
    return lambda name, starts: frozenset().union(*(part(name, starts) for part in parts))


def _repeat(part: Ends, least: int, most: int | None) -> Ends:
    def ends(name: str, starts: frozenset[int]) -> frozenset[int]:
        for _ in range(least):
            before, starts = starts, part(name, starts)
            if starts == before:  # no further round changes it
                break
        reached, new, count = starts, starts, least
        while new and (most is None or count < most):  # each round reaches a new position or is the last
            new = part(name, new) - reached
            reached, count = reached | new, count + 1
        return reached

    return ends


def _look_ahead(part: Ends, positive: bool) -> Ends:
    return lambda name, starts: frozenset(i for i in starts if bool(part(name, frozenset([i]))) is positive)


def _is_boundary(name: str, place: int) -> bool:
    def is_word(i: int) -> bool:
        return 0 <= i < len(name) and (name[i].isalnum() or name[i] == "_")

    return is_word(place - 1) is not is_word(place)


ANCHORS: dict[str, Callable[[str, int], bool]] = {
    "^": lambda name, i: i == 0,
    "$": lambda name, i: i == len(name),
    "\\A": lambda name, i: i == 0,
    "\\Z": lambda name, i: i == len(name),
    "\\b": _is_boundary,
    "\\B": lambda name, i: not _is_boundary(name, i),
}


def _anchor(test: Callable[[str, int], bool]) -> Ends:
    return lambda name, starts: frozenset(i for i in starts if test(name, i))


# ---------------------------------------------------------------- the parser

CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
ESCAPED_CLASS = re.compile(r"\\[dDwWsS]")
COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")


@dataclass
class _Parser:
    pattern: str
    at: int = 0

    def refuse(self, what: str) -> None:
        raise ValueError(
            f"the pattern {_short(self.pattern)} has {what}, which is not supported, because patterns are matched in "
            "bounded time. List the names of the modules instead."
        )

    def alternatives(self, depth: int) -> Ends:
        if depth > DEEPEST:
            self.refuse(f"more than {DEEPEST} groups inside each other")
        branches: list[list[Ends]] = [[]]
        while self.at < len(self.pattern) and self.pattern[self.at] != ")":
            if self.pattern[self.at] == "|":
                branches.append([])
                self.at += 1
            else:
                branches[-1].append(self._repeated(self._atom(depth)))
        return _either([_sequence(branch) for branch in branches])

    def _atom(self, depth: int) -> Ends:
        rest = self.pattern[self.at : self.at + 2]
        if rest[0] == "(":
            return self._group(depth)
        anchor = rest if rest in ANCHORS else rest[0]
        if anchor in ANCHORS:
            self.at += len(anchor)
            return _anchor(ANCHORS[anchor])
        if rest[0] == "[":
            found = CLASS.match(self.pattern, self.at)
            source = found[0] if found is not None else "["
        elif rest[0] == "\\":
            if len(rest) < 2 or (rest[1].isalnum() and not ESCAPED_CLASS.match(rest) and rest[1] not in "tnrfv"):
                self.refuse(f"{rest} (a back reference or a character code)")
            source = rest
        else:
            source = rest[0]
        self.at += len(source)
        test = re.compile(source)  # matches one letter, so it cannot backtrack
        return _letter(lambda letter: test.fullmatch(letter) is not None)

    def _group(self, depth: int) -> Ends:
        opening = next((o for o in ("(?:", "(?=", "(?!") if self.pattern.startswith(o, self.at)), "(")
        named = re.compile(r"\(\?P<\w+>").match(self.pattern, self.at)
        opening = named[0] if named is not None else opening
        if opening == "(" and self.pattern.startswith("(?", self.at):
            self.refuse(self.pattern[self.at : self.at + 4])
        self.at += len(opening)
        inner = self.alternatives(depth + 1)
        self.at += 1  # the closing parenthesis, guaranteed by `re.compile`
        return _look_ahead(inner, opening == "(?=") if opening in ("(?=", "(?!") else inner

    def _repeated(self, part: Ends) -> Ends:
        sign = self.pattern[self.at : self.at + 1]
        count = COUNT.match(self.pattern, self.at)
        if sign and sign in "*+?":
            self.at += 1
            least, most = int(sign == "+"), 1 if sign == "?" else None
        elif count is not None and (count[1] or (count[2] and count[3])):
            self.at += len(count[0])
            least = int(count[1] or 0)
            most = (int(count[3]) if count[3] else None) if count[2] else least
            if max(least, most or 0) > MOST_REPEATS:
                self.refuse(f"{count[0]}, more than {MOST_REPEATS} repeats,")
        else:
            return part
        following = self.pattern[self.at : self.at + 1]
        if following == "?":  # lazy: matches the same names
            self.at += 1
        elif following == "+":
            self.refuse("a possessive repeat")
        return _repeat(part, least, most)
