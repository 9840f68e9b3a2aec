"""A changed copy of a text, as a function of the text, the settings and a key.

Why our own and not nlpaug or textattack: the bits of each change hang on a key (seed, example, copy) and nothing else,
and labels of words are carried over.
"""

import hashlib
import math
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from instructrec_jax.augmentation.edits import Draw, Token, deleted, joined, misspelled, replaced, split, swapped
from instructrec_jax.augmentation.protection import places_of, protected
from instructrec_jax.augmentation.synonyms import Thesaurus, open_thesaurus

METHODS = ("synonyms", "swap", "delete", "typos")  # in the order in which they are applied
NETWORK_METHODS = ("mask_fill", "back_translation", "paraphrase")  # of the verb augment
ALL_METHODS = (*METHODS, *NETWORK_METHODS)
MOST_COPIES = 100


@dataclass
class AugmentConfig:
    """Changed copies of a source's training examples; each pass over them takes the next copy of each.

    Rates are shares of the words that may change: see `docs/augmentation.md`.
    """

    synonyms: float = 0.0  # Share of words replaced by a synonym.
    delete: float = 0.0  # Share of words left out.
    swap: float = 0.0  # Share of words that change places with the next one.
    typos: float = 0.0  # Share of words with a typing error.
    copies: int = 3  # Changed copies of each example, beside the example itself.
    thesaurus: str = ""  # WordNet folder, or MyThes .dat file; empty: /usr/share/wordnet.
    capitalized: bool = False  # Change words with capitals, too; else they are taken for names.
    protect: list[str] = field(default_factory=list)  # Regular expressions: words in which one is found stay.

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return any(getattr(self, name) for name in METHODS)

    @property
    def methods(self) -> list[str]:
        return [name for name in METHODS if getattr(self, name)]

    def check(self, name: str = "augment") -> None:
        """Raises ValueError for a setting that cannot be. name: of these settings, for the message."""
        for method in METHODS:
            rate = getattr(self, method)
            if not math.isfinite(rate) or not 0 <= rate <= 1:
                raise ValueError(f"{name}.{method} is {rate}: a rate is a share of words, from 0 to 1.")
        if not 1 <= self.copies <= MOST_COPIES:
            raise ValueError(f"{name}.copies is {self.copies}: choose 1 to {MOST_COPIES}.")
        for pattern in self.protect:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name}.protect: {pattern!r} is no regular expression ({error}).") from None
        if not self and self != AugmentConfig():
            raise ValueError(f"{name} sets no method: give a rate to one of {', '.join(METHODS)}.")


@dataclass(frozen=True)
class Change:
    """A changed text.

    Attributes:
      tokens: of it; their numbers are those of the original's tokens.
      methods: what changed it; () for a text that stayed.
    """

    text: str
    tokens: Sequence[Token]
    methods: tuple[str, ...]


class Changer(Protocol):
    """Changes a text, or its words; arguments as in `Augmenter.change`."""

    def __call__(
        self,
        text: str | Sequence[str],
        draw: Draw,
        *,
        words: Collection[str] = (),
        quoted: Sequence[str] = (),
        fixed: Collection[int] = (),
    ) -> Change: ...


def random_numbers(*key: str) -> Draw:
    """Numbers in [0, 1), a function of the key alone, on every machine and version of Python."""
    digest = hashlib.sha256("\x00".join(key).encode()).digest()
    return random.Random(int.from_bytes(digest, "big")).random


@dataclass(frozen=True)
class Augmenter:
    """Changes texts. Raises ValueError for settings that cannot be, and for a thesaurus that is none."""

    config: AugmentConfig

    def __post_init__(self) -> None:
        self.config.check()
        if self.config.synonyms:
            _ = self.thesaurus

    @property
    def thesaurus(self) -> Thesaurus:
        """Read once in each process."""
        return open_thesaurus(self.config.thesaurus)

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern) for pattern in self.config.protect]

    def change(
        self,
        text: str | Sequence[str],
        draw: Draw,
        *,
        words: Collection[str] = (),
        quoted: Sequence[str] = (),
        fixed: Collection[int] = (),
    ) -> Change:
        """A changed text.

        Args:
          text: or its words, with a space between them.
          words: which stay, in lower case.
          quoted: texts whose occurrences stay.
          fixed: numbers of tokens that stay.
        """
        front, tokens = self.tokens(text, words=words, quoted=quoted, fixed=fixed)
        methods = []
        for method in self.config.methods:
            changed = self._apply(method, tokens, draw)
            if changed != tokens:
                methods.append(method)
            tokens = changed
        return Change(front + joined(tokens), tokens, tuple(methods))

    def tokens(
        self,
        text: str | Sequence[str],
        *,
        words: Collection[str] = (),
        quoted: Sequence[str] = (),
        fixed: Collection[int] = (),
    ) -> tuple[str, list[Token]]:
        """(white space in front, the tokens of a text with `free` set). Arguments: see `change`."""
        if isinstance(text, str):
            body, front = text.lstrip(), text[: len(text) - len(text.lstrip())]
            tokens, places = split(body), places_of(body, quoted)
        else:
            front, places = "", []
            tokens = [Token(word, " " if n + 1 < len(text) else "", n) for n, word in enumerate(text)]
        tokens = [Token(t.text, t.space, t.number, t.number not in fixed) for t in tokens]
        return front, protected(
            tokens, words=words, places=places, patterns=self._patterns, capitalized=self.config.capitalized
        )

    def _apply(self, method: str, tokens: list[Token], draw: Draw) -> list[Token]:
        rate = getattr(self.config, method)
        if method == "synonyms":
            return replaced(tokens, rate, draw, self.thesaurus)
        return {"swap": swapped, "delete": deleted, "typos": misspelled}[method](tokens, rate, draw)
