"""From tokens to text: stop sequences, and the part of a growing answer that can be streamed."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import regex
from tokenizers.decoders import ByteLevel

UNKNOWN = "\ufffd"  # a tokenizer's text for bytes that do not form a complete character
# A letter, digit, space or ideograph that begins a character, as nearly always (Unicode's annex 29); from the end.
_BEGINS = regex.compile(r"(?r)(?<!\p{GCB=Prepend})[ -~\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff]")


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop sequence, and whether one was found."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def certain(text: str, stop: Sequence[str]) -> int:
    """Number of leading characters of a growing text that can no longer change.

    The uncertain end consists of an incomplete character's bytes, the last character (an accent or the second half of a
    joined emoji may follow) and a possible beginning of a stop sequence.
    """
    text = text.rstrip(UNKNOWN)
    begin = _BEGINS.search(text)  # only the characters from here on can be part of the last one
    last = regex.findall(r"\X", text[begin.start() if begin else 0 :])[-1:]
    held = max([len("".join(last)), *(n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))])
    return len(text) - held


class TokenTexts(Protocol):
    """What makes texts of tokens: a tokenizer, or one of another vocabulary than texts have."""

    @property
    def all_special_tokens(self) -> Sequence[str]: ...
    @property
    def all_special_ids(self) -> Sequence[int]: ...
    def decode(self, token_ids: list[int], skip_special_tokens: bool = ...) -> object: ...


def decodes_by_bytes(tokenizer: TokenTexts) -> bool:
    """Whether the text of tokens is that of their bytes, so that a growing answer needs its new tokens only."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    cleans = getattr(tokenizer, "clean_up_tokenization_spaces", False)
    return isinstance(getattr(backend, "decoder", None), ByteLevel) and not cleans


class AnswerText:
    """The text of an answer's tokens, and whether a stop sequence ends it.

    Args:
      ends: tokens that end an answer; its text is what precedes the first.
    """

    def __init__(self, tokenizer: TokenTexts, ends: Sequence[int], stop: Sequence[str]):
        # a stop sequence that is a special token never appears in decoded text
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.stop_ids = {special[text] for text in stop if text in special}
        self.tokenizer, self.ends, self.stop = tokenizer, self.stop_ids | set(ends), tuple(stop)
        self._by_bytes = decodes_by_bytes(tokenizer)
        self._tokens: list[int] = []  # of a text without an incomplete character at its end
        self._text = ""

    def __call__(self, tokens: list[int]) -> str:
        """The text before the first end, with stop sequences that are not special tokens."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        tokens = tokens[:end]
        if not self._by_bytes:
            return self._decode(tokens)
        if tokens[: len(self._tokens)] != self._tokens:  # another answer
            self._tokens, self._text = [], ""
        text = self._text + self._decode(tokens[len(self._tokens) :])
        if not text.endswith(UNKNOWN):
            self._tokens, self._text = tokens, text
        return text

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def stops(self, tokens: list[int]) -> bool:
        """Whether the tokens contain a stop sequence."""
        return bool(self.stop_ids & set(tokens)) or (bool(self.stop) and cut_at_stop(self(tokens), self.stop)[1])


class TextStream:
    """Turns a growing list of tokens into pieces of text that are final.

    Args:
      decode: all tokens so far -> their text.
      stop: stop sequences.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()):
        self.decode, self.stop, self.shown = decode, stop, ""

    def update(self, tokens: list[int], *, final: bool = False) -> str:
        """The next piece of final text, given all tokens so far; with `final` all of the rest."""
        text, stopped = cut_at_stop(self.decode(tokens), self.stop)
        if not (final or stopped):
            text = text[: certain(text, self.stop)]
        if text.startswith(self.shown):
            new = text[len(self.shown) :]
        elif final or stopped:
            new = text[len(os.path.commonprefix([text, self.shown])) :]
        else:  # some tokenizers revise the text of earlier bytes: wait
            return ""
        self.shown += new
        return new
