"""Masks personal data before a model, a log or a trace sees a text, and puts it back into the answer."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

from instructrec_jax.data.media.picture_references import inline_media
from instructrec_jax.masking.masker import Masker, Session, Tagger
from instructrec_jax.masking.spans import Span
from instructrec_jax.runs.run import Run
from instructrec_jax.service.settings import PrivacyConfig
from instructrec_jax.service.stream import Piece
from instructrec_jax.tasks.answers import TagsAnswer, Word

Value = TypeVar("Value")


class Privacy:
    """The masking of a service.

    Raises ValueError for settings that cannot be, and a run of names that tags no words.
    """

    def __init__(self, config: PrivacyConfig):
        self.restores = config.restore
        self.tagger = names_tagger(Run.open(config.names, fixed_shapes=True)) if config.names else None
        self.masker = Masker(config, self.tagger) if config else None

    def request(self) -> "Private":
        """A numbering of its own for the texts of one request."""
        return Private(None if self.masker is None else self.masker.session(), self.restores)


@dataclass(frozen=True)
class Private:
    """The personal data of one request; without a session nothing is masked."""

    session: Session | None = None
    restores: bool = True

    @property
    def counts(self) -> Counter[str]:
        """Masked places, by kind."""
        return Counter() if self.session is None else self.session.counts

    async def mask(self, value: Value) -> Value:
        """The value with placeholders in its texts; beside the event loop.

        Names of fields, and pictures and sounds that are written out, stay as they are.
        """
        if self.session is None:
            return value
        return await asyncio.to_thread(partial(_mapped, self.session.mask, value))

    def restore(self, value: Value) -> Value:
        """The value with its placeholders replaced, where the settings say so."""
        return value if self.session is None or not self.restores else _mapped(self.session.restore, value)

    def answer(self, record: dict[str, object]) -> dict[str, object]:
        """The same for a prediction. Where something was masked, it has no places in the text, which is another one."""
        if not self.counts:
            return record
        return _without_places(self.restore(record))

    def pieces(self) -> Callable[[Piece], Piece]:
        """The same for the pieces of an answer, in their order: a placeholder may be split over them."""
        if self.session is None or not self.restores:
            return lambda piece: piece
        stream = self.session.stream()

        def restored(piece: Piece) -> Piece:
            text = stream.update(piece.text)
            return replace(piece, text=text + stream.end() if piece.finish is not None else text)

        return restored


def _mapped(change: Callable[[str], str], value: Value) -> Value:
    if isinstance(value, str):
        return value if inline_media(value) is not None else cast(Value, change(value))
    if isinstance(value, dict):
        return cast(Value, {name: _mapped(change, each) for name, each in value.items()})
    if isinstance(value, list):
        return cast(Value, [_mapped(change, each) for each in value])
    return value


def _without_places(value: Value) -> Value:
    if isinstance(value, dict):
        return cast(
            Value, {name: _without_places(each) for name, each in value.items() if name not in ("start", "end")}
        )
    if isinstance(value, list):
        return cast(Value, [_without_places(each) for each in value])
    return value


def names_tagger(run: Run) -> Tagger:
    """Finds what a token_classification run tags: B-person, I-person -> spans of the kind person.

    Raises ValueError for a run of another task.
    """
    if run.kind != "token_classification":
        raise ValueError(f"mask.names: {run.path} was trained for the task {run.kind}, not for token_classification.")

    def find(text: str) -> Sequence[Span]:
        (answer,) = run.predict([text])
        assert isinstance(answer, TagsAnswer)
        return tagged_spans(answer.words)

    return find


def tagged_spans(words: Sequence[Word]) -> list[Span]:
    """The spans of BIO tags; an I- after another kind begins a span: a wrong tag should hide more, not less."""
    spans: list[Span] = []
    for word in words:
        mark, _, kind = word.tag.partition("-")
        kind = "".join(letter if letter.isalpha() and letter.isascii() else "_" for letter in kind.lower()).strip("_")
        if mark not in ("B", "I") or not kind:
            continue
        if mark == "I" and spans and spans[-1].kind == kind and spans[-1].end <= word.start:
            spans[-1] = Span(spans[-1].start, word.end, kind)
        else:
            spans.append(Span(word.start, word.end, kind))
    return spans
