"""Keeps what a user said out of error messages, whoever wrote the message.

Most errors of the library quote the text at fault, which helps who runs it, but an answer's error ends in the logs of
clients and proxies. So each message is compared with the request before it leaves.
"""

import json
import re
from collections.abc import Collection, Iterator

from instructrec_jax.data.media.picture_references import inline_media

LONGEST = 1000  # characters of a message
PIECE = 8  # any 2 * PIECE - 1 characters of the request are found wherever they stand, and shorter quotations in quotes
QUOTE = re.compile("['\"`]")
GAP = "…"


def words_of_schema(schema: object) -> set[str]:
    """The names of fields and the fixed values in an OpenAPI schema: what an error may name."""
    found: set[str] = set()
    if isinstance(schema, dict):
        found |= {name for name in schema.get("properties", {}) if isinstance(name, str)}
        found |= {value for value in [*_listed(schema.get("enum")), schema.get("const")] if isinstance(value, str)}
    for part in schema.values() if isinstance(schema, dict) else _listed(schema):
        found |= words_of_schema(part)
    return found


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def said_in(body: bytes, known: Collection[str]) -> list[str]:
    """The texts of a JSON body, and its names, but for the known ones. A body that is not JSON is one text."""
    try:
        value = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return [body.decode("utf-8", "replace")]
    # of a picture that is written out, messages quote the beginning at most
    texts = (text[:LONGEST] if inline_media(text) is not None else text for text in _texts(value))
    return [text for text in texts if text and text not in known]


def _texts(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each


def without_words(message: str, said: Collection[str], known: Collection[str]) -> str:
    """The message with a gap wherever it repeats what was said.

    Args:
      said: texts of the request.
      known: names that may stand in quotes although they were said too.
    """
    message = message[:LONGEST]
    text = "\n".join(said)
    if not text:
        return message
    text += "\n" + repr(text)  # messages quote with escapes
    return _without_pieces(_without_quotes(message, text, known), text)


def _without_quotes(message: str, text: str, known: Collection[str]) -> str:
    kept, start = "", 0
    places = [found.start() for found in QUOTE.finditer(message)][:40]
    for first in places:
        if first < start:
            continue
        ends = [last for last in places if last > first and message[last] == message[first]]
        for last in reversed(ends):  # the longest: a quoted text may have quotes itself
            inside = message[first + 1 : last].removesuffix("...").removesuffix("…")
            if inside and inside not in known and inside in text:
                kept, start = kept + message[start:first] + GAP, last + 1
                break
    return kept + message[start:]


def _without_pieces(message: str, text: str) -> str:
    kept, start, place = "", 0, 0
    while place + PIECE <= len(message):
        first, last = place, place + PIECE
        if message[first:last] not in text:
            place += PIECE
            continue
        while first > start and message[first - 1 : last] in text:
            first -= 1
        while last < len(message) and message[first : last + 1] in text:
            last += 1
        if last - first < 2 * PIECE - 1:  # a common word
            place += PIECE
            continue
        kept, start, place = kept + message[start:first] + GAP, last, last
    return kept + message[start:]
