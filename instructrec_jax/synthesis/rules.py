"""Rules that make pairs from a passage: each a function of (passage, language, random numbers) alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import xxhash

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.augmentation.edits import Draw
from instructrec_jax.augmentation.protection import NEGATIONS
from instructrec_jax.metrics.language import script_words, units
from instructrec_jax.synthesis.facts import facts
from instructrec_jax.synthesis.grounding import FUNCTION_WORDS, Pair, content
from instructrec_jax.synthesis.instruction_texts import YES_NO, worded
from instructrec_jax.synthesis.passages import Language, Passage

T = TypeVar("T")
BLANK = "____"
EACH = 2  # pairs of a rule and passage at most
Rule = Callable[[Passage, Language, Draw], Iterator[Pair]]

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.,\-/–−^\[])\d+(?:,\d{3})*(?:\.\d+)?(?![A-Za-z0-9_\-/–^\]]|[.,]\d)")
_NAME = re.compile(
    r"(?<![\w'’-])(?:[A-Z][a-z]+(?:[-'’][A-Za-z][a-z]+|[A-Z][a-z]+)*)(?: (?:of (?:the )?)?[A-Z][a-z]+)*(?![\w'’-])"
)
_WORD = re.compile(r"(?<![\w'’-])[a-z]{7,}(?![\w'’-])")
_ZH_TERM = re.compile(
    r"《[^《》，。]{2,20}》|(?<=“)[^“”，。]{2,12}(?=”)|(?<![A-Za-z0-9])[A-Z][A-Za-z0-9\-]{2,}(?![A-Za-z0-9])"
)
_ZH_CLAUSE = re.compile(r"(?<=[，、：；“《（])[\u4e00-\u9fff]{4,14}(?=[，、：；。”》）])")
_ADVERBS = r"(?:also|still|often|usually|generally|sometimes|always|only|just|already|both|either|now|currently|even)"
_VERB = re.compile(rf"\b(is|are|was|were|can|could|will|would|should|has been|have been)\b(?! {_ADVERBS}\b)")
_ZH_IS = re.compile(r"(?<![而能不也就还都只于可但要正总凡若即或硬老便既倒算像真更仅的乃竟却])是(?![否非不])")
# A sentence that leans on the one before it says little alone.
_LEANS = re.compile(
    r"(?:It|He|She|They|This|That|These|Those|His|Her|Its|Their|Such|However|But|And|Or|So|Thus|Hence|Therefore|Then|"
    r"Moreover|Furthermore|Also|Instead|Yet|Here|There|Finally|Additionally|In addition|For example|For instance|Both|"
    r"As a result|In contrast|By contrast|Similarly|Specifically|In particular|Meanwhile|Another|Other|Others|Indeed|"
    r"To this end|To address this|Alternatively|Second|Secondly|Third|Thirdly|Next|Consequently|Nevertheless|Later|"
    r"Nonetheless|Conversely|On the other hand|Besides|Accordingly|Afterwards|Subsequently|By doing so|Unlike)\b"
)
_ZH_LEANS = re.compile(
    r"(?:这|那|它|他|她|其|此|该|但|而|因此|所以|然而|并且|而且|同时|此外|另外|于是|例如|比如|不过|也|又|还|或|另)"
)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_MONTH_NEXT, _MONTH_BEFORE = re.compile(rf"(?:{_MONTHS})\b"), re.compile(rf"\b(?:{_MONTHS}) $")
_ASKS = re.compile(r"[?？]")


def leans(sentence: str) -> bool:
    return (_LEANS.match(sentence) or _ZH_LEANS.match(sentence)) is not None


def shuffled(items: Sequence[T], draw: Draw) -> list[T]:
    found = list(items)
    for n in range(len(found) - 1, 0, -1):
        other = int(draw() * (n + 1))
        found[n], found[other] = found[other], found[n]
    return found


def title(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """The title of the record, for the first passage of a text."""
    if passage.title and passage.number == 0 and units(passage.text) >= 20:
        yield Pair("title", worded("title", language, "", draw), passage.title, "title")


def summary(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """The first sentence of a text, where no other has a larger share of words that stand in other sentences, too."""
    every = passage.sentences
    if passage.number or len(every) < 4 or every[0] not in passage.whole or leans(every[0]) or _ASKS.search(every[0]):
        return
    if 2 * units(every[0]) > units(passage.text):
        return
    said = [set(content(each)) for each in every]
    sentences = Counter(unit for own in said for unit in own)  # how many have it
    shares = [sum(sentences[unit] > 1 for unit in own) / max(1, len(own)) for own in said]
    if shares[0] >= 0.4 and shares[0] == max(shares):
        yield Pair("summary", worded("summary", language, "", draw), every[0], "summary")


def cloze(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """A sentence without a number, a name or (in English) a long word that it has once."""
    kinds = (_NUMBER, _NAME, _WORD) if language == "en" else (_NUMBER, _ZH_TERM)
    for sentence in shuffled(passage.whole, draw):
        for kind in shuffled(kinds, draw):
            places = [m for m in kind.finditer(sentence) if m.start() > 0 and sentence.count(m[0]) == 1]
            places = [m for m in places if m[0].lower() not in FUNCTION_WORDS]
            if places:
                found = places[int(draw() * len(places))]
                blanked = sentence[: found.start()] + BLANK + sentence[found.end() :]
                yield Pair("cloze", worded("cloze", language, blanked, draw), found[0])
                break


def order(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """Three or four sentences in a row, of which a later one leans on an earlier one, in another order."""
    every, whole = passage.sentences, set(passage.whole)
    runs = []
    for size in (4, 3):
        for start in range(len(every) - size + 1):
            run = every[start : start + size]
            leaning = [leans(each) for each in run]
            if len(set(run)) == size and whole.issuperset(run) and not leaning[0] and any(leaning):
                runs.append(run)
        if runs:
            break
    if not runs:
        return
    run = runs[int(draw() * len(runs))]
    mixed = shuffled(run, draw)
    if mixed == run:
        mixed = [*run[1:], run[0]]
    letters = "ABCD"[: len(run)]
    listed = "\n".join(f"{letter}. {each}" for letter, each in zip(letters, mixed, strict=True))
    said = ", ".join(letters[mixed.index(each)] for each in run)
    yield Pair("order", worded("order", language, listed, draw), said, "order", alone=True)


def fact(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """Questions about what a sentence states in a plain form, see `facts`."""
    for sentence in shuffled(passage.whole, draw):
        for found in facts(sentence, language, passage.text):
            yield Pair(f"fact: {found.kind}", worded(found.kind, language, found.asked, draw), found.answer)


def keywords(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """A sentence, found by words (in Chinese a phrase) that no other sentence has."""
    for sentence in shuffled(passage.whole, draw):
        if _ASKS.search(sentence):
            continue
        if language == "en":
            words = list(dict.fromkeys(re.findall(r"[A-Za-z]{5,}", sentence)))
            rare = [word for word in words if passage.counts[word.lower()] == 1 and word.lower() not in FUNCTION_WORDS]
            if len(rare) < 4:
                continue
            chosen = set(shuffled(rare, draw)[:3])
            one, two, three = (word for word in words if word in chosen)
            named = f"“{one}”, “{two}” and “{three}”"
        else:
            phrases = [each for each in _ZH_CLAUSE.findall(sentence) if passage.text.count(each) == 1]
            if not phrases:
                continue
            named = phrases[int(draw() * len(phrases))]
        yield Pair("keywords", worded("keywords", language, named, draw), sentence)


def yes_no(passage: Passage, language: Language, draw: Draw) -> Iterator[Pair]:
    """A sentence as it stands (yes), or with another number, another name, or a negation (no)."""
    yes, no = YES_NO[language]
    for sentence in shuffled(passage.whole, draw):
        if leans(sentence) or _ASKS.search(sentence):
            continue
        changed = [
            each for change in (_other_number, _other_name, _negated) if (each := change(sentence, passage, draw))
        ]
        if not changed:
            continue
        other = changed[int(draw() * len(changed))]
        if draw() < 0.5:
            yield Pair("yes_no", worded("yes_no", language, sentence, draw), yes, "yes", (sentence,))
        else:
            yield Pair("yes_no", worded("yes_no", language, other, draw), no, "no", (other, sentence))


def _other_number(sentence: str, passage: Passage, draw: Draw) -> str:
    """With a digit of a number changed; of a year one of the last two."""
    places = [found for found in _NUMBER.finditer(sentence) if not _is_day(sentence, found)]
    if not places:
        return ""
    found = places[int(draw() * len(places))]
    digits = [n for n, c in enumerate(found[0]) if c.isdecimal() and c.isascii()]
    digits = digits[-2:] if len(digits) == 4 else digits[:1] if len(digits) > 1 else digits
    at = digits[int(draw() * len(digits))]
    others = [c for c in "123456789" if c != found[0][at]]
    number = found[0][:at] + others[int(draw() * len(others))] + found[0][at + 1 :]
    return sentence[: found.start()] + number + sentence[found.end() :]


def _is_day(sentence: str, found: re.Match[str]) -> bool:
    """Whether a number is a day or a month, of which another digit often makes none (February 51)."""
    before, after = sentence[: found.start()], sentence[found.end() :].lstrip()
    return len(found[0]) < 3 and (
        after[:1] in ("月", "日") or bool(_MONTH_NEXT.match(after) or _MONTH_BEFORE.search(before))
    )


def _other_name(sentence: str, passage: Passage, draw: Draw) -> str:
    """With a name replaced by one of another sentence that follows the same word, as in "in Paris" and "in Rome"."""
    after: dict[str, set[str]] = {}
    for found in _NAME.finditer(passage.text):
        before = passage.text[: found.start()].rsplit(None, 1)
        if before and before[-1] in ("in", "by", "from", "of", "to", "with"):
            after.setdefault(before[-1], set()).add(found[0])
    choices = []
    for found in _NAME.finditer(sentence):
        before = sentence[: found.start()].split()
        others = sorted(after.get(before[-1], ())) if before else []
        choices += [(found, other) for other in others if other not in sentence and found[0] not in other]
    if not choices:
        return ""
    found, other = choices[int(draw() * len(choices))]
    return sentence[: found.start()] + other + sentence[found.end() :]


def _negated(sentence: str, passage: Passage, draw: Draw) -> str:
    """With a negation after the first verb that takes one, in a sentence without another one."""
    if passage.language == "zh":
        places = list(_ZH_IS.finditer(sentence))
        if len(places) != 1 or re.search(r"[不没无非未]|只有|除了", sentence):
            return ""
        return f"{sentence[: places[0].start()]}不是{sentence[places[0].end() :]}"
    if NEGATIONS & set(script_words(sentence)) or "n't" in sentence or "n’t" in sentence:
        return ""
    found = _VERB.search(sentence)
    if found is None or len(_VERB.findall(sentence)) != 1:
        return ""
    first, _, rest = found[0].partition(" ")
    verb = "cannot" if first == "can" else f"{first} not"
    return f"{sentence[: found.start()]}{verb}{rest and ' '}{rest}{sentence[found.end() :]}"


RULES: dict[str, Rule] = {
    "title": title,
    "summary": summary,
    "fact": fact,
    "cloze": cloze,
    "yes_no": yes_no,
    "keywords": keywords,
    "order": order,
}


def pairs_of(passage: Passage, seed: int) -> list[Pair]:
    """The pairs of all rules, at most `EACH` of one: a function of (text, title, number, seed) alone."""
    if passage.language is None:
        return []
    digest = xxhash.xxh3_128_hexdigest(passage.text.encode("utf-8", errors="replace"))
    found = []
    for name, rule in RULES.items():
        made = rule(passage, passage.language, random_numbers(str(seed), digest, name))
        found += [pair for pair, _ in zip(made, range(EACH), strict=False)]
    return found
