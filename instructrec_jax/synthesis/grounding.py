"""Pairs of an instruction and its answer, and whether the answer stands in the text or follows from it.

The same check is made of the pairs of the rules and of a language model.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from instructrec_jax.augmentation import edits
from instructrec_jax.metrics.language import has_cjk, script_words, units
from instructrec_jax.synthesis.passages import Passage

Check = Literal["in_text", "summary", "title", "yes", "no", "order"]
SUMMARY, TITLE = 0.7, 0.5  # least shares of the words of a summary and of a title that stand in the text
LONGEST_ANSWER = 120  # words, or characters in Chinese
LONGEST_INSTRUCTION = 300
EMPTY, LONG = "empty", "too long"
NOT_IN_TEXT = "the answer does not stand in the text"
FOREIGN_WORDS = "too few words of the summary stand in the text"
OTHER_TITLE = "too few words of the title stand in the text"
NO_SUMMARY = "the summary is not shorter than half of the text"
UNCHECKED = "a yes or no that cannot be checked"
NOT_SO = "the statement is not what the answer says"
NO_ORDER = "the sentences do not stand in the text in this order"
_LETTERED = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)
_IN_NUMBER = re.compile(r"\d[.,]\d")
_SPACE = re.compile(r"\s+")
# Words that say nothing about what a text is about.
FUNCTION_WORDS = (
    edits.FUNCTION_WORDS
    | {"not", "no", "nor", "also"}
    | frozenset("的了是在和与及或也都就而但被把对于为以从到由向之其这那个一不有上中下等着过地得")
)


@dataclass(frozen=True)
class Pair:
    """An instruction about a passage, and its answer.

    Attributes:
      rule: what made it.
      check: how the answer is verified, see `problem`.
      quoted: what is verified beside the answer. yes: the statement; no: the changed statement, and the true one.
      alone: whether the instruction holds all that it is about, so that the passage is not shown beside it.
    """

    rule: str
    instruction: str
    answer: str
    check: Check = "in_text"
    quoted: tuple[str, ...] = ()
    alone: bool = False


def plain(text: str) -> str:
    """Unicode NFKC, case-folded, one space between words."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())).strip()


def stands_in(part: str, text: str) -> bool:
    """Whether `part` stands in the text, apart from case, white space and forms of characters; whole words only."""
    part, text = plain(part), plain(text)
    at = text.find(part) if part else -1
    while at >= 0:
        end = at + len(part)
        if not _inside_word(text[max(0, at - 2) : at], part[0]) and not _inside_word(part[-1], text[end : end + 2]):
            return True
        at = text.find(part, at + 1)
    return False


def _inside_word(left: str, right: str) -> bool:
    """Whether there is no end of a word, or of a number such as 25,000, between two characters or pairs of them."""
    if not left or not right or has_cjk(left[-1]) or has_cjk(right[0]):
        return False
    if left[-1].isalnum() and right[0].isalnum():
        return True
    return _IN_NUMBER.fullmatch(left + right) is not None


def content(text: str) -> list[str]:
    """What a text is about: its words without function words, in Chinese the pairs of neighboring characters."""
    if has_cjk(text):
        runs = re.findall(r"\w{2,}", plain(text))
        return [run[n : n + 2] for run in runs for n in range(len(run) - 1)] or [plain(text)]
    words = script_words(text)
    return [word for word in words if word not in FUNCTION_WORDS] or words


def share_in(part: str, passage: Passage) -> float:
    """The share of the content of `part` that the passage has, see `content`."""
    units = content(part)
    known = plain(passage.text) if has_cjk(part) else passage.counts
    return sum(unit in known for unit in units) / len(units) if units else 0.0


def problem(pair: Pair, passage: Passage) -> str:
    """Why the pair is dropped; "": it stays."""
    if not pair.instruction.strip() or not any(map(str.isalnum, pair.answer)):
        return EMPTY
    if units(pair.answer) > LONGEST_ANSWER or units(pair.instruction) > LONGEST_INSTRUCTION:
        return LONG
    if pair.check == "summary":
        if 2 * units(pair.answer) > units(passage.text):
            return NO_SUMMARY
        return "" if share_in(pair.answer, passage) >= SUMMARY else FOREIGN_WORDS
    if pair.check == "title":
        return "" if share_in(pair.answer, passage) >= TITLE else OTHER_TITLE
    if pair.check == "order":
        listed = dict(_LETTERED.findall(pair.instruction))
        said = [listed.get(letter, "") for letter in pair.answer.split(", ")]
        places = [passage.text.find(each) for each in said]
        grounded = len(said) > 1 and len(said) == len(listed) and min(places) >= 0
        return "" if grounded and places == sorted(set(places)) else NO_ORDER
    if pair.check in ("yes", "no"):
        if not pair.quoted or pair.quoted[0] not in pair.instruction:
            return UNCHECKED
        said = [stands_in(each, passage.text) for each in pair.quoted]
        return "" if said == ([True] if pair.check == "yes" else [False, True]) else NOT_SO
    return "" if stands_in(pair.answer, passage.text) else NOT_IN_TEXT
