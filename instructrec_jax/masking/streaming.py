"""Puts values back into a text that arrives in pieces: a placeholder may be split over them."""

from collections.abc import Mapping

import regex

_BEGUN = regex.compile(r"<[A-Z_0-9]*\Z")


class RestoredStream:
    """`update` each piece, then `end`: the results together are the restored text.

    Held back is only the end of a piece that begins one of the placeholders.

    Args:
      values: placeholder -> value.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._begun = {name[:size] for name in self._values for size in range(1, len(name))}
        self._any = regex.compile("|".join(map(regex.escape, self._values))) if self._values else None
        self._held = ""

    def update(self, piece: str) -> str:
        """What can be shown after this piece."""
        text, self._held = self._held + piece, ""
        open_end = _BEGUN.search(text, text.rfind("<")) if "<" in text else None
        if open_end is not None and open_end[0] in self._begun:
            text, self._held = text[: open_end.start()], open_end[0]
        return self._restored(text)

    def end(self) -> str:
        """The rest: what was held back and did not become a placeholder."""
        text, self._held = self._held, ""
        return text

    def _restored(self, text: str) -> str:
        return text if self._any is None else self._any.sub(lambda found: self._values[found[0]], text)
