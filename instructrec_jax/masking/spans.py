"""Found places of personal data, and which of them count where they overlap."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Characters `start` to `end` - 1 of a text.

    Attributes:
      kind: what they are, in lower case with underscores: `email`, `national_id`, `person` ...
    """

    start: int
    end: int
    kind: str

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span from {self.start} to {self.end} holds no character.")


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans without overlaps, in order, which cover all that the given ones cover.

    Overlapping spans become one, of the kind of the longest (the first given, of equally long ones): to cut one of them
    would leave a part of a value in the text.
    """
    found: list[Span] = []
    longest: list[int] = []
    for span in sorted(spans, key=lambda each: each.start):  # stable: the order given is that of priority
        size = span.end - span.start
        if not found or span.start >= found[-1].end:
            found.append(span)
            longest.append(size)
            continue
        last = found[-1]
        kind = span.kind if size > longest[-1] else last.kind
        longest[-1] = max(longest[-1], size)
        found[-1] = Span(last.start, max(last.end, span.end), kind)
    return found
