"""Replaces personal data by placeholders (`<EMAIL_1>`) and puts it back.

    masker = Masker(MaskConfig(kinds=["all"]))
    session = masker.session()                       # one request: all texts of a conversation
    session.mask("Write to ann@example.com.")        # 'Write to <EMAIL_1>.'
    session.restore("Sent to <EMAIL_1>.")            # 'Sent to ann@example.com.'

Nothing here logs, and no error holds a character of a text.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import regex

from instructrec_jax.masking.presidio import presidio_tagger
from instructrec_jax.masking.spans import Span, merged
from instructrec_jax.masking.streaming import RestoredStream

Tagger = Callable[[str], Sequence[Span]]

LITERAL = "literal"  # the kind of a text that looks like one of the session's own placeholders
PLACEHOLDER = regex.compile(r"<[A-Z][A-Z_]{0,30}_[1-9][0-9]{0,8}>")
_KIND = regex.compile(r"[a-z][a-z_]{0,30}")
_ROUNDS = 8


@dataclass
class MaskConfig:
    """Personal data that placeholders replace."""

    # secret, credentials (of URLs), iban, national_id, card, email, mac, ip, phone; [all]: each of them; []: nothing
    kinds: list[str] = field(default_factory=list)
    # countries whose telephone numbers are found without + and country code
    regions: list[str] = field(default_factory=lambda: ["US", "GB", "DE", "FR", "ES", "IT", "CN", "JP"])
    presidio: str = ""  # language (en) in which Presidio looks for names and places too; empty: it does not

    def __bool__(self) -> bool:
        """Whether anything is masked."""
        return bool(self.kinds or self.presidio)

    def key(self) -> dict[str, object]:
        """What the masked texts depend on, as JSON: equal for settings that mask alike."""
        from instructrec_jax.masking.kinds import chosen_kinds  # compiles many expressions; most runs mask nothing

        return {"kinds": chosen_kinds(self.kinds), "regions": sorted(set(self.regions)), "presidio": self.presidio}


class Masker:
    """Finds personal data; `session` replaces it.

    Args:
      tagger: finds further spans (names, places), of kinds of its own: called once with every text.

    Raises:
      ValueError: an unknown kind or region, a missing package (the error names the extra), or nothing to mask.
    """

    def __init__(self, config: MaskConfig, tagger: Tagger | None = None) -> None:
        from instructrec_jax.masking import kinds  # compiles many expressions; most runs mask nothing

        self.kinds, self.regions = kinds.chosen_kinds(config.kinds), tuple(config.regions)
        if "phone" in self.kinds:
            kinds.check_phone_regions(self.regions)
        self._find = kinds.find
        taggers = [] if tagger is None else [tagger]
        self._taggers = [*taggers, presidio_tagger(config.presidio)] if config.presidio else taggers
        if not self.kinds and not self._taggers:
            raise ValueError("there is nothing to mask: name kinds of personal data, or all.")

    def session(self) -> "Session":
        """A new numbering, for the texts of one request."""
        return Session(self)

    def find(self, text: str) -> list[Span]:
        """Personal data in a text, in order, without overlaps."""
        return merged([*self._find(text, self.kinds, self.regions), *self.tagged(text)])

    def found(self, text: str) -> list[Span]:
        """The same without taggers."""
        return self._find(text, self.kinds, self.regions)

    def tagged(self, text: str) -> list[Span]:
        """What the taggers find. Raises ValueError for a span outside of the text or a kind that is no name."""
        spans: list[Span] = []
        for tagger in self._taggers if text.strip() else ():
            try:
                spans += tagger(text)
            except Exception as error:  # whose message may quote the text
                raise ValueError(f"the tagger of names failed with {type(error).__name__}.") from None
        for span in spans:
            if span.end > len(text) or not _KIND.fullmatch(span.kind) or span.kind == LITERAL:
                raise ValueError("the tagger of names gave a span outside of the text, or of a kind that is no name.")
        return spans


class Session:
    """The placeholders of one request. The same value has the same placeholder in all of its texts.

    A value is the exact text: `Ann@example.com` and `ann@example.com` are two, so that each is put back as it was. What
    looks like a placeholder in a text stays, and the session leaves its number out; where the session has given the
    number away before, that text is itself replaced (`<LITERAL_1>`), so that it never becomes another's data.

    Attributes:
      counts: replaced places by kind, for metrics.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._placeholders: dict[tuple[str, str], str] = {}  # (kind, value) -> placeholder
        self._values: dict[str, str] = {}  # placeholder -> value
        self._reserved: set[str] = set()
        self._numbers = Counter[str]()
        self.counts = Counter[str]()

    def __repr__(self) -> str:
        return f"Session({dict(self.counts)})"

    def mask(self, text: str) -> str:
        """The text with placeholders in place of personal data."""
        typed = list(PLACEHOLDER.finditer(text))
        self._reserved.update(found[0] for found in typed if found[0] not in self._values)
        literals = [Span(found.start(), found.end(), LITERAL) for found in typed if found[0] in self._values]
        spans = [*self._masker.found(text), *self._masker.tagged(text), *literals]
        # what stands beside a placeholder may only now be found: repeated, so that masking twice is masking once
        for _ in range(_ROUNDS):
            if not spans:
                break
            text = self._replace(text, merged(spans))
            spans = self._masker.found(text)
        return text

    def mask_value(self, value: object) -> object:
        """A JSON value with the texts in it masked; keys stay."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, Mapping):
            return {name: self.mask_value(entry) for name, entry in value.items()}
        return type(value)(map(self.mask_value, value)) if isinstance(value, list | tuple) else value

    def _replace(self, text: str, spans: Sequence[Span]) -> str:
        pieces, end = [], 0
        for span in spans:
            pieces += [text[end : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            end = span.end
        return "".join([*pieces, text[end:]])

    def _placeholder(self, kind: str, found: str) -> str:
        value = self.restore(found) if kind != LITERAL else found  # a placeholder of an earlier round may be inside
        self.counts[kind] += 1
        made = self._placeholders.get((kind, value))
        while made is None or made in self._reserved:
            self._numbers[kind] += 1
            made = f"<{kind.upper()}_{self._numbers[kind]}>"
        self._placeholders[kind, value] = made
        self._values[made] = value
        return made

    def restore(self, text: str) -> str:
        """The text with the values in place of this session's placeholders; others stay."""
        return PLACEHOLDER.sub(lambda found: self._values.get(found[0], found[0]), text)

    def stream(self) -> RestoredStream:
        """Restores an answer that comes in pieces."""
        return RestoredStream(self._values)

    @property
    def values(self) -> Mapping[str, str]:
        """Placeholder -> value: what must not be logged."""
        return dict(self._values)
