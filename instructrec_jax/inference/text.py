"""From tokens to text: where an answer stops, and what of it can be shown already."""

import os
from collections.abc import Callable, Sequence

import regex

UNKNOWN = "\ufffd"  # what a tokenizer writes for bytes that are no character (yet)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there is one."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def certain(text: str, stop: Sequence[str]) -> int:
    """How many characters at the beginning of a growing text will stay as they are, and be shown.

    Not certain are bytes of a character that is not complete, the last character (an accent or the other half of a
    joined emoji may follow), and what may be the beginning of a stop text.
    """
    text = text.rstrip(UNKNOWN)
    last = regex.findall(r"\X", text)[-1:]
    held = max([len("".join(last)), *(n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))])
    return len(text) - held


class TextStream:
    """Turns a growing list of tokens into pieces of text that never have to be taken back.

    Args:
      decode: all tokens so far -> their text.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()):
        self.decode, self.stop, self.shown = decode, stop, ""

    def update(self, tokens: list[int], *, final: bool = False) -> str:
        """What can be shown beyond what was, given all tokens so far; everything, where they are the `final` ones."""
        text, stopped = cut_at_stop(self.decode(tokens), self.stop)
        if not (final or stopped):
            text = text[: certain(text, self.stop)]
            if not text.startswith(self.shown):  # some tokenizers change their mind about bytes: wait
                return ""
        new = text[len(os.path.commonprefix([text, self.shown])) :]
        self.shown += new
        return new
