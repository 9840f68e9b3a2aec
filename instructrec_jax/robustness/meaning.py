"""Changes of what texts say: names, places, numbers, contractions, negation, more sentences, fewer words.

Functions as in `noise`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal

from instructrec_jax.augmentation.edits import Draw, Token, joined
from instructrec_jax.robustness.lists import lists_of
from instructrec_jax.robustness.noise import PUNCTUATION
from instructrec_jax.robustness.units import ADDED

_DIGITS = re.compile(r"\d+")
Place = Literal["start", "end"]


def _exchanged(tokens: Sequence[Token], draw: Draw, known: dict[str, list[str]], locale: str) -> list[Token]:
    """Each word of some locale's list becomes one of another locale, or of `locale`, the same one in the whole text."""
    if locale and locale not in known:
        raise ValueError(f"locale {locale!r} is unknown: choose from {', '.join(known)}.")
    home = {word: where for where, words in known.items() for word in words}
    most = max(map(len, home))  # a Chinese name is several units
    now: dict[str, str] = {}
    found, place = [], 0
    while place < len(tokens):
        for size in range(min(most, len(tokens) - place), 0, -1):
            window = tokens[place : place + size]
            text = joined(window).strip()
            core = text.strip(PUNCTUATION)
            core = core.removesuffix("'s") if size == 1 else core
            if core in home and all(token.free for token in window) and (size == 1 or " " not in text):
                others = known[locale] if locale else [*chain(*(w for at, w in known.items() if at != home[core]))]
                if core not in now:
                    choice = [word for word in others if word != core]
                    now[core] = choice[int(draw() * len(choice))]
                found.append(replace(window[0], text=text.replace(core, now[core], 1), space=window[-1].space))
                place += size
                break
        else:
            found.append(tokens[place])
            place += 1
    return found


def names(tokens: list[Token], draw: Draw, language: str, *, locale: str = "") -> list[Token]:
    """First names (in Chinese: full names) of the lists become those of another locale, or of `locale`."""
    return _exchanged(tokens, draw, lists_of(language).names, locale)


def places(tokens: list[Token], draw: Draw, language: str, *, locale: str = "") -> list[Token]:
    """Cities of the lists become cities of another locale, or of `locale`; countries become countries."""
    lists = lists_of(language).places
    cities = {where: words for where, words in lists.items() if where != "countries"}
    moved = _exchanged(tokens, draw, cities, locale)
    halves = {"countries": lists["countries"][::2], "others": lists["countries"][1::2]}
    return _exchanged(moved, draw, halves, "")


def numbers(tokens: list[Token], draw: Draw, language: str) -> list[Token]:
    """Each number becomes another one with as many digits."""

    def other(found: re.Match[str]) -> str:
        size, value = len(found[0]), int(found[0])
        low = 10 ** (size - 1) if size > 1 and found[0][0] != "0" else 0
        span = 10**size - low
        drawn = low + int(draw() * (span - 1))
        return f"{drawn + (drawn >= value):0{size}d}" if low <= value else f"{drawn:0{size}d}"

    def changed(text: str) -> str:
        return _DIGITS.sub(lambda found: other(found) if found[0].isascii() else found[0], text)

    return [replace(token, text=changed(token.text)) if token.free else token for token in tokens]


def contractions(tokens: list[Token], draw: Draw, language: str) -> list[Token]:
    """ "do not" becomes "don't", and "it's" becomes "it is"."""
    short = lists_of(language).contractions
    longer = {each: long for long, each in short.items()}
    found, place = [], 0
    while place < len(tokens):
        one, following = tokens[place], tokens[place + 1 : place + 2]
        pair = f"{one.text} {following[0].text}" if following else ""
        body = pair.rstrip(PUNCTUATION)
        word = one.text.replace("’", "'").rstrip(PUNCTUATION)
        if body.lower() in short and one.free and following[0].free:
            text = _cased(short[body.lower()], body) + pair[len(body) :]
            found.append(replace(one, text=text, space=following[0].space))
            place += 1
        elif word.lower() in longer and one.free:
            found.append(replace(one, text=_cased(longer[word.lower()], word) + one.text[len(word) :]))
        else:
            found.append(one)
        place += 1
    return found


def _cased(text: str, like: str) -> str:
    return text[0].upper() + text[1:] if like[:1].isupper() else text


def swap(tokens: list[Token], draw: Draw, language: str, *, pairs: Sequence[str] = ()) -> list[Token]:
    """Words and phrases of a table become others, "he = she", all of them in one pass; upper case stays."""
    split = (lambda text: [*text]) if language == "zh" else str.split
    table = {(old, len(split(old))): new for old, new in map(swapped_pair, pairs)}
    most = max((size for _, size in table), default=0)
    found, place = [], 0
    while place < len(tokens):
        for size in range(min(most, len(tokens) - place), 0, -1):
            window = tokens[place : place + size]
            text = joined(window).strip()
            core = text.strip(PUNCTUATION)
            new = table.get((core.replace("’", "'").lower(), size))
            if new is not None and all(token.free for token in window):
                said = new.upper() if core.isupper() and len(core) > 1 else _cased(new, core)
                found.append(replace(window[0], text=text.replace(core, said, 1), space=window[-1].space))
                place += size
                break
        else:
            found.append(tokens[place])
            place += 1
    return found


def swapped_pair(pair: str) -> tuple[str, str]:
    """("he", "she") of "he = she". Raises ValueError for another form."""
    old, _, new = (part.strip() for part in pair.partition("="))
    if not old or not new or old != old.lower() or "=" in new:
        raise ValueError(f"a pair should be as in 'he = she', the first in lower case, but is {pair!r:.60}.")
    return old, new


def negation(tokens: list[Token], draw: Draw, language: str) -> list[Token]:
    """The first statement is negated, or its negation is removed: "is" and "is not", 是 and 不是, 有 and 没有."""
    words = lists_of(language).negated
    return _chinese_negation(tokens, words) if language == "zh" else _english_negation(tokens, words)


def _english_negation(tokens: list[Token], words: Sequence[str]) -> list[Token]:
    for place, token in enumerate(tokens):
        word = token.text.lower()
        if not token.free or word.removesuffix("n't") not in words:
            continue
        if word.endswith("n't"):
            return [*tokens[:place], replace(token, text=token.text[:-3]), *tokens[place + 1 :]]
        if place + 1 < len(tokens) and tokens[place + 1].text.lower() == "not":
            return [*tokens[: place + 1], *tokens[place + 2 :]]
        return [*tokens[:place], replace(token, space=" "), Token("not", token.space, ADDED), *tokens[place + 1 :]]
    return tokens


def _chinese_negation(tokens: list[Token], words: Sequence[str]) -> list[Token]:
    text = [token.text for token in tokens]
    for place in range(len(tokens)):
        word = next((w for w in words if text[place : place + len(w)] == [*w]), None)
        if word is None or not tokens[place].free:
            continue
        no = "没" if word == "有" else "不"
        if place and text[place - 1] == no:
            return [*tokens[: place - 1], *tokens[place:]]
        return [*tokens[:place], Token(no, "", ADDED), *tokens[place:]]
    return tokens


def distractor(
    tokens: list[Token], draw: Draw, language: str, *, sentences: Sequence[str] = (), place: Place = "end"
) -> list[Token]:
    """A sentence more, at the start or the end; without `sentences`, one that says nothing about the text."""
    choice = list(sentences) or lists_of(language).distractors
    sentence = Token(choice[int(draw() * len(choice))], "", ADDED)
    between = "" if language == "zh" else " "
    if place == "start":
        return [replace(sentence, space=between), *tokens]
    return [*tokens[:-1], *(replace(token, space=between) for token in tokens[-1:]), sentence]


def truncation(tokens: list[Token], draw: Draw, language: str, *, keep: float = 0.8) -> list[Token]:
    """The end is cut off, but not words that must stay."""
    last = max((n for n, token in enumerate(tokens) if not token.free), default=-1)
    left = tokens[: max(math.ceil(keep * len(tokens)), last + 1, 1)]
    return [*left[:-1], replace(left[-1], space="")] if left else tokens
