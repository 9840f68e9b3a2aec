"""Reads conditions out of the words of a request: what recommended items must not be, when they are from, how long.

    "nothing with clowns"           no item with the fact or the word
    "before 1980", "the nineties"   years
    "under two hours"               running times, where the catalogue has them
    "like Alien but funny"          the item with that title is left out, and others like it come first

The words are taken out of the text that the network reads and become conditions like those of `recommend --where`: a
network that ranks items by their likeness to a text ranks items with clowns high for "nothing with clowns". What was
read is told in a note, and so is what could not be read. `evaluate` measures requests by the same function.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from instructrec_jax.answering.filters import matching
from instructrec_jax.answering.periods import Span, lengths, years
from instructrec_jax.answering.titles import LISTED, Titles, describe, letters
from instructrec_jax.ranking.catalogue import Catalogue

LONGEST_TITLE = 12  # words of a title in a request
MOST_WORDS = 4  # of what a request does not want
RUNNING_TIMES = ("runtime", "running_time", "duration", "minutes")  # facts that count minutes
YEAR = "year"
LONGEST_VALUE = 40  # characters of a fact's value that a request may name; longer ones are descriptions and pictures
MOST_TEXTS = 100_000  # items whose texts are searched for words; of more, a request would wait for seconds

_NO = re.compile(
    r"(?<![\w'’-])(?:(?:,|;)?\s*(?:but|and|though|just|please|also)\s+)?(?:"
    r"nothing (?:with|about|by|starring|that has|involving|containing)|not another (?:film|movie) (?:with|about)"
    r"|not by|no|without(?: any| much)?|anything (?:except|but)|except(?: for)?|minus|free of|leave out|skip"
    r"|spare (?:me|us)"
    r"|(?:i |we )?(?:can't|can’t|cannot) (?:stand|bear)|(?:i |we )?(?:hate|dislike)"
    r"|(?:i |we )?(?:don't|don’t|do not) (?:want|like|need)|(?:that |which )?(?:doesn't|doesn’t|does not) have"
    r"|(?:as long as )?there (?:are|is) no|avoid"
    r"|(?P<weak>(?:(?:that|which) )?(?:(?:is |are )?not|isn't|isn’t|aren't|aren’t)(?: an?| too| very| so)?"
    r"|nothing(?: too| very| that is| that's)?))\s+",
    re.IGNORECASE,
)
_HAS = re.compile(r"\b(?:has|have|had|say|says|said)\s*$", re.I)
_LEADING = re.compile(r"^(?:(?:a|an|any|the|too|very|much|so|more|all|that|another|other|kind of|sort of)\s+)+", re.I)
_KIND = re.compile(r"^(?:films?|movies?|pictures?|stories|story)\s+(?:with|about)\s+", re.I)
_STOP = re.compile(
    r"[.,;:!?()]|\s(?:but|please|though|in it|if possible|and (?:no|not|nothing|without)|or (?:no|not))\b"
)
_POLITE = re.compile(r"^,?\s*(?:please|though|if possible|in it)\b", re.I)
_OR = re.compile(r"\s+(?:or|and|nor)\s+|\s*/\s*", re.I)
_LIKE = re.compile(
    r"(?<![\w'’-])(?:(?:something|anything|one|more|a (?:film|movie)|films|movies)\s+)?(?:(?:that|which)\s+)?(?:"
    r"(?<!'d )(?<!’d )(?<!would )(?<!feel )(?<!nothing )(?<!not )(?:just |exactly |much )?like|similar to"
    r"|in the (?:vein|style|spirit) of"
    r"|along the lines of|reminiscent of|reminds? (?:me|us) of|(?:comes )?close to|(?:the )?next best thing to"
    r"|(?:the )?same (?:kind )?as|such a thing as|think)\s+",
    re.IGNORECASE,
)
_PRAISED = re.compile(r"(?:^|(?<=[.!?]\s))[^.!?;]{1,80}? (?:was|is|were) (?:great|good|brilliant|fun|perfect)\b")
_BUT = re.compile(r"^[^.!?;]{1,80}?,? (?:but|only|except)\b")
_PRONOUNS = {"it", "her", "him", "us", "she", "he", "this", "that", "them", "they", "you", "me", "who", "one", "so"}
_AND = re.compile(r"\s*(?:,|and|or|meets|&)\s+", re.I)
_THEN = re.compile(r"\s*[,;:–-]?\s*(?:but|only|except|just|though|although|yet|and)?\s*(?:it's |is |make it )?", re.I)
_NOTHING_ELSE = re.compile(
    r"(?:(?:i|we) (?:want|need)|can you find|show me|give me|find me|recommend)?\s*(?:please)?\s*"
    r"(?:something|anything|a film|a movie|films?|movies?)?\s*(?:please)?[.!?]*",
    re.IGNORECASE,
)
_NEWER = re.compile(r"\b(?:newer|more recent|more modern|later|younger)\b", re.I)
_OLDER = re.compile(r"\b(?:older|more vintage|from earlier|earlier)\b", re.I)


@dataclass(frozen=True)
class Reading:
    """What was read out of a request's words.

    Attributes:
      wish: the text without the words that were read.
      where: conditions on facts, see `filters`.
      without: words that an item's text must not have.
      left_out: items that it names to leave out.
      like: the items that others should be like.
      unread: whether words were taken out that nothing can be done about: a running time, without such a fact.
      notes: what was read, and what could not be.
    """

    wish: str
    where: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    like: tuple[int, ...] = ()
    unread: bool = False
    notes: tuple[str, ...] = ()

    @property
    def conditional(self) -> bool:
        """Whether the network reads `wish` instead of the text."""
        return bool(self.where or self.without or self.left_out or self.like or self.unread)


class _RuledOut(NamedTuple):
    """What a request does not want: conditions on facts, words of texts, and items with their names."""

    facts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    items: tuple[tuple[int, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.facts or self.words or self.items)

    def added_to(self, reading: Reading, said: str) -> Reading:
        """A reading with it, and a note on the words that said it."""
        told = [*self.facts, *(f"no {words}" for words in self.words), *(f"not {name}" for _, name in self.items)]
        return replace(
            reading,
            where=(*reading.where, *self.facts),
            without=(*reading.without, *self.words),
            left_out=(*reading.left_out, *(item for item, _ in self.items)),
            notes=(*reading.notes, f'"{said}" is read as {" and ".join(told)}.'),
        )


class Understanding:
    """Reads requests for a catalogue."""

    def __init__(self, titles: Titles, *, compares: bool = True):
        """compares: whether whoever ranks can compare items; else titles stay words of the wish."""
        self.titles, self.compares = titles, compares
        self.catalogue: Catalogue = titles.catalogue
        facts = self.catalogue.facts

        def counted(name: str) -> bool:
            return any(isinstance(value, int | float) for value in facts.get(name, ()))

        self.dated = counted(YEAR)
        self.running_time = next((name for name in facts if name.casefold() in RUNNING_TIMES and counted(name)), None)

    def read(self, text: str) -> Reading:
        """See the top of the file."""
        reading = Reading(text)
        if self.compares:
            reading = self._comparison(reading)
        reading = self._negations(self._lengths(self._years(reading)))
        if not reading.conditional:
            return replace(reading, wish=text)
        wish = tidy(reading.wish)
        return replace(reading, wish="" if _NOTHING_ELSE.fullmatch(wish) else wish)

    def allowed(self, reading: Reading, among: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """bool [items]: which of some items a reading allows, and notes; what leaves none is not applied."""
        allowed, notes = among.copy(), []
        allowed[[*reading.left_out, *reading.like]] = False
        conditions = [(where, lambda where=where: matching(self.catalogue, [where])) for where in reading.where]
        conditions += [(f"no {words}", lambda words=words: ~self._having(words)) for words in reading.without]
        for said, find in conditions:
            fitting = find()
            if (allowed & fitting).any():
                allowed &= fitting
            else:
                notes.append(f'"{said}" would leave no item, so it is not applied.')
        return allowed, notes

    # -------------------------------------------------------------- kinds of conditions

    def _comparison(self, reading: Reading) -> Reading:
        """With the item that a request names as an example of what it wants, if there is one."""
        text, notes = reading.wish, list(reading.notes)
        for start, place in self._cues(text):
            found, end = self._title_at(text, place)
            if len(found) == 1:
                return self._compared(reading, start, end, found)
            if found:
                notes.append(f'"{text[place:end]}" could be {self._listed(found)}: add the year to compare with it.')
                return replace(reading, notes=tuple(notes))
        for start, place in ((match.start(), match.end()) for match in _LIKE.finditer(text)):
            said = re.split(r"[,;.!?]|\s(?:but|only|except|just|though|yet)\b", text[place:], maxsplit=1)[0]
            if not said[:1].isupper():
                continue  # "like a dream"
            match = self.titles.find(said)
            if len(match.items) == 1:
                notes.append(f'"{said}" is read as {self.catalogue.name(match.items[0])}.')
                changed = replace(reading, notes=tuple(notes))
                return self._compared(changed, start, place + len(said), match.items)
            near = match.items or match.suggestions
            hint = f" The nearest: {self._listed(near)}." if near else ""
            notes.append(f'"{said}" is not one title of the catalogue, so nothing is compared with it.{hint}')
        return replace(reading, notes=tuple(notes))

    def _listed(self, items: Sequence[int]) -> str:
        return "; ".join(describe(self.catalogue, item) for item in items[:LISTED])

    def _cues(self, text: str) -> Iterator[tuple[int, int]]:
        """(where the words before a title begin, where the title does)"""
        for match in _LIKE.finditer(text):
            yield match.start(), match.end()
        for match in (*_PRAISED.finditer(text), *_BUT.finditer(text)):
            yield match.start(), match.start()

    def _title_at(self, text: str, place: int) -> tuple[list[int], int]:
        """The items whose title stands at a place of a text, the longest title there is, and where it ends.

        "It" and "Her" are titles in the middle of a sentence, with their capital.
        """
        begins = not text[:place].strip() or text[:place].rstrip()[-1] in ".!?"
        words = list(re.finditer(r"\S+", text[place:]))[:LONGEST_TITLE]
        for last in reversed(words):
            said = text[place : place + last.end()]
            for own in dict.fromkeys((said, said.rstrip(".,;:!?\"'”’"))):
                after = text[place + len(own) :]
                if own.lower() in _PRONOUNS and (begins or own.islower()):
                    continue
                is_name = own[:1].isupper() or own[:1].isdigit() or not re.match(r"\s*\w", after)
                is_name = is_name or bool(re.match(r"\s*(?:but|only|except|just|though|yet)\b", after))
                if is_name and (found := self.titles.spelled(own.lstrip("\"'“‘"))):
                    return found, place + len(own)
        return [], place

    def _compared(self, reading: Reading, start: int, end: int, items: Sequence[int]) -> Reading:
        """items: the one item whose title ends at `end`; those of the titles after it are added."""
        text, items = reading.wish, list(items)
        while (more := _AND.match(text, end)) is not None:
            found, after = self._title_at(text, more.end())
            if len(found) != 1:
                break
            items, end = items + found, after
        then = _THEN.match(text, end)
        rest, where = text[then.end() if then else end :], list(reading.where)
        names = " and ".join(map(self.catalogue.name, items))
        notes = [*reading.notes, f"compared with {names}, which {'is' if len(items) == 1 else 'are'} left out."]
        year = self.catalogue.facts[YEAR][items[0]] if self.dated else None
        for pattern, sign in ((_NEWER, ">"), (_OLDER, "<")):
            if year is not None and (match := pattern.search(rest)):
                rest = rest[: match.start()] + rest[match.end() :]
                where.append(f"{YEAR}{sign}{year}")
                notes.append(f'"{match[0]}" is read as {YEAR}{sign}{year}.')
        return replace(
            reading,
            wish=f"{reading.wish[:start]} something {rest}",
            where=tuple(where),
            like=tuple(items),
            notes=tuple(notes),
        )

    def _years(self, reading: Reading) -> Reading:
        """Without years as facts the words stay, because texts of items may have years."""
        spans = list(years(reading.wish, YEAR))
        if self.dated or not spans:
            return self._spans(reading, spans)
        said = reading.wish[spans[0].start : spans[0].end].strip()
        note = f'"{said}" is not applied: the items of this catalogue have no years.'
        return replace(reading, notes=(*reading.notes, note))

    def _lengths(self, reading: Reading) -> Reading:
        """Without running times as facts the words are taken out, because a network makes something else of them."""
        return self._spans(reading, list(lengths(reading.wish, self.running_time or "")), self.running_time is not None)

    def _spans(self, reading: Reading, spans: Sequence[Span], known: bool = True) -> Reading:
        for span in sorted(spans, key=lambda span: -span.start):
            text = reading.wish
            said, rest = text[span.start : span.end].strip(), f"{text[: span.start]} {text[span.end :]}"
            where = span.conditions if known else ()
            told = f"read as {' and '.join(where)}." if known else "not applied: no item has a running time."
            reading = replace(
                reading,
                wish=rest,
                where=(*reading.where, *where),
                unread=reading.unread or not known,
                notes=(*reading.notes, f'"{said}" is {told}'),
            )
        return reading

    def _negations(self, reading: Reading) -> Reading:
        place = 0
        while (match := _NO.search(reading.wish, place)) is not None:
            text, place = reading.wish, match.end()
            first = match.start() + re.match(r"\W*", match[0]).end()  # type: ignore[union-attr]
            if text[first].isupper() and self._title_at(text, first)[0]:
                continue  # "No Country for Old Men"
            if _HAS.search(text[: match.start()]):
                continue  # "a man who has no name"
            end = place + (stop.start() if (stop := _STOP.search(text[place:])) else len(text[place:]))
            ruled_out, taken = self._unwanted(text[place:end], facts_alone=match["weak"] is not None)
            if ruled_out:
                said = text[match.start() : place + taken].strip(" ,;")
                after = _POLITE.sub("", text[place + taken :])
                reading = replace(ruled_out.added_to(reading, said), wish=f"{text[: match.start()]} {after}")
                place = match.start()
            elif match["weak"] is None and 0 < len(text[place:end].split()) < MOST_WORDS:
                said = text[match.start() : end].strip(" ,;")
                where = (
                    "fact or text" if len(self.catalogue) <= MOST_TEXTS else "fact (texts of so many are not searched)"
                )
                note = f'"{said}" is not read as a condition: no {where} of an item has these words.'
                reading = replace(reading, notes=(*reading.notes, note))
        return reading

    # -------------------------------------------------------------- what is not wanted

    def _unwanted(self, said: str, *, facts_alone: bool) -> tuple["_RuledOut", int]:
        """What the words rule out, and how many characters were read."""
        lead = len(said) - len(_KIND.sub("", _LEADING.sub("", said)))
        place, end, found = lead, 0, _RuledOut()
        for part in _OR.split(said[lead:]):
            place = said.index(part, place)
            own = 0 if part[:1].isupper() else len(part) - len(_LEADING.sub("", part))
            named, length = self._named(part[own:], facts_alone=facts_alone)
            if not named:
                break
            found = _RuledOut(found.facts + named.facts, found.words + named.words, found.items + named.items)
            end = place + own + length
            if length < len(part[own:].rstrip()):
                break
        return found, end

    def _named(self, said: str, *, facts_alone: bool) -> tuple["_RuledOut", int]:
        """What the words at the beginning of a text rule out (a title, a fact's value, words of texts), and how many
        characters they are."""
        if said[:1].isupper():
            found, end = self._title_at(said, 0)
            if found:
                return _RuledOut(items=tuple((item, self.catalogue.name(item)) for item in found)), end
        words = list(re.finditer(r"\S+", said))[:MOST_WORDS]
        for last in reversed(words):
            if (fact := self._values.get(stems(said[: last.end()]))) is not None:
                return _RuledOut(facts=(f"{fact[0]}!={fact[1]}",)), last.end()
        whole = said.rstrip()
        if not facts_alone and words and words[-1].end() == len(whole) and self._having(whole).any():
            return _RuledOut(words=(whole,)), len(whole)
        return _RuledOut(), 0

    @cached_property
    def _values(self) -> dict[str, tuple[str, str]]:
        """Stems of a fact's value -> (fact, value), of facts that are texts."""
        found: dict[str, tuple[str, str]] = {}
        for name, column in self.catalogue.facts.items():
            for value in {x for each in column for x in (each if isinstance(each, list) else [each])}:
                if isinstance(value, str) and len(value) <= LONGEST_VALUE and (key := stems(value)):
                    found.setdefault(key, (name, value))
        return found

    def _having(self, words: str) -> np.ndarray:
        """bool [items]: whether an item's text has these words, one after another, in any number."""
        asked = stems(words) if len(self.catalogue) <= MOST_TEXTS else ""
        if not asked:
            return np.zeros(len(self.catalogue), bool)
        return np.array([f" {asked} " in text for text in self._stems], bool)

    @cached_property
    def _stems(self) -> list[str]:
        return [f" {stems(text)} " for text in self.catalogue.texts]


def stems(text: str) -> str:
    """The words of a text without case, accents, punctuation and endings of the plural."""
    return " ".join(map(_stem, letters(text).split()))


def _stem(word: str) -> str:
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    if word.endswith("ie") and len(word) > 3:
        word = word[:-2] + "y"
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def tidy(text: str) -> str:
    """A text out of which words were taken, as a sentence again."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([.,;:!?])", r"\1", text)
    text = re.sub(r"(?:[,;:]\s*)+([.!?]|$)", r"\1", text)
    text = re.sub(r"([.!?])(?:\s*[.,;:])+", r"\1", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"^[\s.,;:!?]+", "", text).strip()
    return text[:1].upper() + text[1:]
