"""Describes items and histories in words, from the facts of a catalogue: requests for an item, preferences of a user.

Rules, without a model: kinds (genres, categories), years, people etc. with the phrases of words.yaml. With too few
facts, words of titles are used: those shared by several titles, and at most half of a title's words. A request may fit
only one item, but never contains its title, nor the title's part before a dash, colon or bracket ("Manhunt" of "Manhunt
- PlayStation 2").
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from instructrec_jax.preparation.wording.wordings import Wordings
from instructrec_jax.ranking.baselines import words
from instructrec_jax.ranking.catalogue import Catalogue

# Thresholds, as shares of a history, for the words of a preference.
OFTEN, SOMETIMES, COMMON, ERA = 0.3, 0.1, 0.08, 0.5
SHARED_BY = 3  # minimum number of titles with a word that is used as a fact
ATTEMPTS = 5  # draws of facts before giving up on an item
EARLIEST_YEAR = 1500
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_HEAD = re.compile(r" [-–—] |: | [(\[]")
_DECADES = {
    1930: ("thirties", "三十"),
    1940: ("forties", "四十"),
    1950: ("fifties", "五十"),
    1960: ("sixties", "六十"),
    1970: ("seventies", "七十"),
    1980: ("eighties", "八十"),
    1990: ("nineties", "九十"),
}


class Fact(NamedTuple):
    """A fact of an item: a column of the catalogue, or decade or title, and its value."""

    column: str
    value: str | int


@dataclass(frozen=True)
class Said:
    """A phrase and the facts that it states."""

    text: str
    facts: tuple[Fact, ...]

    @property
    def variant(self) -> str:
        """The columns of the facts: "genres+decade"."""
        return "+".join(dict.fromkeys(fact.column for fact in self.facts))


def names_title(text: str, title: str) -> bool:
    """Whether a text contains all words of a title in sequence, ignoring case."""
    title = " ".join(words(title))
    return bool(title) and f" {title} " in f" {' '.join(words(text))} "


class Describer:
    """Describes items and histories by a catalogue's facts. `noun`: see words.yaml; languages: en and zh."""

    def __init__(self, catalogue: Catalogue, wordings: Wordings, noun: str):
        self.titles = catalogue.titles
        self.words = wordings
        self.noun = wordings.noun(noun)
        self.genre_nouns = noun in wordings.genre_nouns
        used = {name: column for name, column in catalogue.facts.items() if name in wordings.facts}
        self.kind_columns = [name for name in used if wordings.facts[name].kind]
        self.years: list[int | None] = [
            year if isinstance(year, int) and year >= EARLIEST_YEAR else None
            for year in catalogue.facts.get("year", [None] * len(catalogue))
        ]
        self.kinds: list[list[Fact]] = [[] for _ in range(len(catalogue))]
        self.phrases: list[list[Fact]] = [[] for _ in range(len(catalogue))]
        self.spelling: dict[str, str] = {}  # word in lower case -> as it is mostly written
        self.running: dict[str, list[list[str]]] = {}  # column -> words of each item
        for name, column in used.items():
            rule = wordings.facts[name]
            if rule.words:
                self.running[name], _, _ = self._marking_words([_plain(value) for value in column])
                continue
            for item, value in enumerate(column):
                facts = [Fact(name, part) for part in dict.fromkeys(_parts(value))]
                (self.kinds if rule.kind else self.phrases)[item] += facts
        count = Counter(fact for facts in self.kinds for fact in facts)
        self.share = {
            fact: n / len(catalogue)
            for fact, n in count.items()
            if n <= len(catalogue) / 2 and fact.value not in wordings.stop_kinds
        }
        self.kinds = [[fact for fact in facts if fact in self.share] for facts in self.kinds]
        self.title_words, self.title_size, self.title_count = self._marking_words(self.titles)
        self.order = {kind: place for place, kind in enumerate(wordings.kinds)}

    # ------------------------------------------------------------------ requests

    def intention(self, item: int, kind: str, language: str, rng: np.random.Generator) -> Said | None:
        """A request that the item satisfies, as a noun phrase; None if there are too few facts.

        kind: vague: one broad fact (a kind, a decade); specific: two to four facts. The text never names the title.
        """
        for _ in range(ATTEMPTS):
            facts = self._vague(item, rng) if kind == "vague" else self._specific(item, rng)
            if not facts:
                return None
            said = Said(self._noun_phrase(facts, language, rng), tuple(facts))
            title = self.titles[item]
            if not (names_title(said.text, title) or names_title(said.text, _HEAD.split(title)[0])):
                return said
        return None

    def fits(self, item: int, facts: Sequence[Fact]) -> bool:
        """Whether all facts are true of an item."""
        return all(self._holds(item, fact) for fact in facts)

    def _holds(self, item: int, fact: Fact) -> bool:
        year = self.years[item]
        if fact.column == "title":
            return fact.value in self.title_words[item]
        if fact.column == "year":
            return year == fact.value
        if fact.column == "decade":
            return year is not None and year // 10 * 10 == fact.value
        if fact.column in self.running:
            return fact.value in self.running[fact.column][item]
        return fact in self.kinds[item] or fact in self.phrases[item]

    def _vague(self, item: int, rng: np.random.Generator) -> list[Fact]:
        year = self.years[item]
        broad = self.kinds[item] + ([Fact("decade", year // 10 * 10)] if year else [])
        if pool := broad or self.phrases[item]:
            return [pool[rng.integers(len(pool))]]
        return self._from_title(item, 1, rng)

    def _specific(self, item: int, rng: np.random.Generator) -> list[Fact]:
        year = self.years[item]
        pool = [self.kinds[item][place] for place in rng.permutation(len(self.kinds[item]))[:2]]
        if year:
            pool.append(Fact("year", year) if rng.random() < 0.3 else Fact("decade", year // 10 * 10))
        if self.phrases[item]:
            pool.append(self.phrases[item][rng.integers(len(self.phrases[item]))])
        for column, known in self.running.items():
            if known[item]:
                pool.append(Fact(column, known[item][rng.integers(len(known[item]))]))
        if len(pool) < 2:
            pool += self._from_title(item, 2 + int(rng.integers(2)) - len(pool), rng)
        size = 2 + int(rng.integers(3))
        return [pool[place] for place in sorted(rng.permutation(len(pool))[:size])] if len(pool) > 1 else []

    def _from_title(self, item: int, size: int, rng: np.random.Generator) -> list[Fact]:
        """Up to `size` words that the item's title shares with others; at most half of its words."""
        shared = self.title_words[item]
        size = min(size, self.title_size[item] // 2)
        return [Fact("title", shared[place]) for place in sorted(rng.permutation(len(shared))[: max(0, size)])]

    def _noun_phrase(self, facts: Sequence[Fact], language: str, rng: np.random.Generator) -> str:
        noun = self.noun[language]
        kinds = sorted((f for f in facts if f.column in self.kind_columns), key=self._place)
        named = [str(fact.value) for fact in facts if fact.column == "title"]
        others = [self._around(fact, language, rng) for fact in facts if fact not in kinds and fact.column != "title"]
        if language == "zh":
            others += [f"名称里带{_list_zh([f'“{self.spelling[w]}”' for w in named], '和')}的"] if named else []
            head = self._zh_kinds(kinds) if kinds else noun["noun"]
            return _spaced(f"一{noun['measure']}{''.join(others)}{head}")
        others += [f"with {_list_en([self._quoted(w) for w in named], 'and')} in its name"] if named else []
        if not kinds:
            return " ".join([noun["a_noun"] if named or rng.random() < 0.5 else "something", *others])
        heads = [f for f in kinds if self._kind(f).get("one")] if self.genre_nouns else []
        adjectives = [self._as(fact) for fact in kinds if fact not in heads[-1:]]
        head = " ".join([*adjectives, self._kind(heads[-1])["one"] if heads else noun["noun"]])
        return " ".join([_article(head), head, *others])

    def _around(self, fact: Fact, language: str, rng: np.random.Generator) -> str:
        if fact.column == "decade":
            return (
                f"from {_decade(int(fact.value), language, rng)}"
                if language == "en"
                else _decade(int(fact.value), "zh", rng) + "的"
            )
        if fact.column == "year":
            return f"from {fact.value}" if language == "en" else f"{fact.value}年的"
        value = str(fact.value)
        value = self.spelling.get(value, value) if fact.column in self.running else value
        return self.words.facts[fact.column].texts[language].format(value=value)

    # ------------------------------------------------------------------ tastes

    def preference(self, history: Sequence[int] | np.ndarray, language: str, rng: np.random.Generator) -> Said | None:
        """The preferences of a history, to follow "I watch ..."; None if nothing stands out."""
        counts = Counter(fact for item in history for fact in self.kinds[item])
        shares = {fact: n / len(history) for fact, n in counts.items()}
        # Weigh a kind's share of the history by its ratio to the catalogue's share: common kinds say less.
        telling = sorted(shares, key=lambda f: (-shares[f] * np.sqrt(shares[f] / self.share[f]), str(f.value)))
        main = sorted([fact for fact in telling if shares[fact] >= OFTEN][:2] or telling[:1], key=self._place)
        era, era_facts = self._era(history, language, rng)
        people = Counter(fact for item in history for fact in self.phrases[item])
        favorites = [fact for fact, n in people.most_common(1) if n > 1]
        facts = [*main, *era_facts]
        parts = []
        covered = sum(any(fact in self.kinds[item] for fact in main) for item in history) / max(1, len(history))
        if main or era:
            often = "mostly" if (covered >= ERA if main else True) else "often"
            parts.append(self._put(often, self._plural(main, language, era), language, rng))
        elif not favorites:
            named = self._title_habits(history)
            if not named:
                return None
            facts = [Fact("title", word) for word in named]
            parts.append(self._put("mostly", self._named(named, language), language, rng))
        if favorites:
            around = self._around(favorites[0], language, rng)
            noun = self.noun[language]
            x = f"{noun['nouns']} {around}" if language == "en" else around + noun["noun"]
            parts.append(self._put("sometimes" if parts else "often", x, language, rng))
            facts += favorites
        some = [fact for fact in telling if fact not in main and SOMETIMES <= shares[fact] < OFTEN]
        if some and not favorites and rng.random() < 0.5:
            parts.append(self._put("sometimes", self._plural(some[:1], language), language, rng))
            facts += some[:1]
        rare = [f for f, share in self.share.items() if share >= COMMON and shares.get(f, 0) <= share / 4]
        if rare and len(history) >= 8 and rng.random() < 0.7:
            chosen = rare[rng.integers(len(rare))]
            parts.append(self._put("rarely", self._plural([chosen], language), language, rng))
            facts.append(chosen)
        return Said(_spaced("，".join(parts)) if language == "zh" else ", ".join(parts), tuple(facts))

    def _era(
        self, history: Sequence[int] | np.ndarray, language: str, rng: np.random.Generator
    ) -> tuple[str, list[Fact]]:
        """The decade of at least half of a history, in words; "" if there is none."""
        decades = Counter(year // 10 * 10 for item in history if (year := self.years[item]))
        decade, count = max(decades.items(), key=lambda pair: (pair[1], pair[0]), default=(0, 0))
        if count < max(2, ERA * len(history)):
            return "", []
        return _decade(decade, language, rng), [Fact("decade", decade)]

    def _title_habits(self, history: Sequence[int] | np.ndarray) -> list[str]:
        """Up to three words shared by at least two titles of a history, the most distinctive first."""
        counts = Counter(word for item in history for word in self.title_words[item])
        shared = [word for word, n in counts.items() if n > 1]
        return sorted(shared, key=lambda word: (-counts[word] * np.sqrt(counts[word] / self.title_count[word]), word))[
            :3
        ]

    def _put(self, phrase: str, x: str, language: str, rng: np.random.Generator) -> str:
        choices = self.words.phrases[phrase][language]
        return choices[rng.integers(len(choices))].format(x=x, do=self.noun[language]["do"])

    def _plural(self, kinds: Sequence[Fact], language: str, era: str = "") -> str:
        noun = self.noun[language]
        if language == "zh":
            said = "和".join(self._zh_kinds([fact]) for fact in kinds) or noun["noun"]
            return f"{era}的{said}" if era else said
        many = [self._kind(f).get("many") if self.genre_nouns else None for f in kinds]
        alone = [text for text in many if text]
        attributes = [self._as(fact) for fact, text in zip(kinds, many, strict=True) if not text]
        together = [f"{' and '.join(attributes)} {noun['nouns']}"] if attributes else []
        text = " and ".join([*together, *alone]) or noun["nouns"]
        return f"{text} from {era}" if era else text

    def _named(self, named: Sequence[str], language: str) -> str:
        noun = self.noun[language]
        if language == "zh":
            return f"名称里带{_list_zh([f'“{self.spelling[w]}”' for w in named], '或')}的{noun['noun']}"
        return f"{noun['nouns']} with {_list_en([self._quoted(w) for w in named], 'or')} in the name"

    # ------------------------------------------------------------------ words

    def _marking_words(self, texts: Sequence[str]) -> tuple[list[list[str]], list[int], Counter[str]]:
        """Per text, the words shared with several but not most others, and its number of words; texts per word.

        Words are in lower case, without stop words; their most frequent spelling goes to `spelling`.
        """
        found = [
            {w.lower(): w for w in _WORD.findall(text) if len(w) > 2 and w.lower() not in self.words.stop_words}
            for text in texts
        ]
        count = Counter(word for own in found for word in own)
        spellings = Counter((word, shown) for own in found for word, shown in own.items())
        best: dict[str, tuple[int, str]] = {}
        for (word, shown), n in spellings.items():
            best[word] = max(best.get(word, (0, "")), (n, shown))
        self.spelling |= {word: shown for word, (_, shown) in best.items()}
        shared = [[w for w in own if SHARED_BY <= count[w] <= len(texts) / 2] for own in found]
        return shared, [len(own) for own in found], count

    def _kind(self, fact: Fact) -> dict[str, str]:
        return self.words.kinds.get(str(fact.value), {})

    def _as(self, fact: Fact) -> str:
        value = str(fact.value)
        genre = fact.column.startswith("genre") and value.istitle() and " " not in value
        return self._kind(fact).get("as") or (value.lower() if genre else value)

    def _zh_kinds(self, kinds: Sequence[Fact]) -> str:
        known = [self._kind(fact).get("zh") for fact in kinds]
        if all(known):
            return self.noun["zh"]["genre"].format(genre="".join(map(str, known)))
        values = "、".join(k or str(fact.value) for k, fact in zip(known, kinds, strict=True))
        return f"{values}{self.noun['zh']['noun']}"

    def _place(self, fact: Fact) -> tuple[int, str]:
        return self.order.get(str(fact.value), -1), str(fact.value)

    def _quoted(self, word: str) -> str:
        return f'"{self.spelling[word]}"'


def _decade(decade: int, language: str, rng: np.random.Generator) -> str:
    short = decade in _DECADES and rng.random() < 0.5
    if language == "en":
        return f"the {_DECADES[decade][0]}" if short else f"the {decade}s"
    if decade >= 2000:
        return f"{decade}年代"
    return f"上世纪{_DECADES[decade][1]}年代" if short else f"{decade // 100 + 1}世纪{decade % 100:02d}年代"


def _article(text: str) -> str:
    first = re.split(r"[\s-]", text)[0]
    if first.isupper() and len(first) > 1:  # spelled letter by letter (or IMAX, with the same article)
        return "an" if first[0] in "AEFHILMNORSX" else "a"
    return "an" if re.match(r"(?!one|once|uni(?!n)|use|eu)[aeiou]", first.lower()) else "a"


def _list_en(parts: Sequence[str], link: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {link} {parts[-1]}"


def _list_zh(parts: Sequence[str], link: str) -> str:
    return parts[0] if len(parts) == 1 else f"{'、'.join(parts[:-1])}{link}{parts[-1]}"


def _spaced(text: str) -> str:
    """Chinese text with a space between Chinese characters and Latin words, but not around digits."""
    text = re.sub(r"([\u4e00-\u9fff])([A-Za-z])", r"\1 \2", text)
    return re.sub(r"([A-Za-z])([\u4e00-\u9fff])", r"\1 \2", text)


def _parts(value: object) -> list[str]:
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [text for part in values if (text := str(part).strip()) and len(text) <= 60 and "\n" not in text]


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
