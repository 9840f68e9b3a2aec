"""A page of examples beside their changed copies, to look at: one file that needs no network and no JavaScript."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instructrec_jax.data.augmented import METHODS
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.report import environment
from instructrec_jax.files import write_text


@dataclass(frozen=True)
class Pair:
    """An example and a copy.

    Attributes:
      old, new: pieces of the two texts, and whether each is only there.
      target: that of the copy.
    """

    methods: str
    old: Sequence[tuple[str, bool]]
    new: Sequence[tuple[str, bool]]
    target: str

    @classmethod
    def of(cls, example: Example, copy: Example) -> "Pair":
        old, new = (re.findall(r"\S+\s*", _text(each)) for each in (example, copy))
        matcher = difflib.SequenceMatcher(None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False)
        sides: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
        for kind, a, b, c, d in matcher.get_opcodes():
            for side, words in zip(sides, ("".join(old[a:b]), "".join(new[c:d])), strict=True):
                if words:
                    side.append((words, kind != "equal"))
        output = copy.output
        target = " ".join(output) if isinstance(output, tuple) else "" if output is None else str(output)
        return cls(copy.origin.get(METHODS, ""), *sides, target)


def _text(example: Example) -> str:
    said = [turn.content for turn in example.messages if turn.role == "user"]
    return "\n".join(filter(None, [*said, example.input or example.instruction]))


def write_pairs(path: Path, pairs: Sequence[Pair], report: str, name: str) -> Path:
    """Writes the page. report: what was written and left out, in lines; name: of the file that the pairs are from."""
    page = environment().get_template("pairs.html.jinja").render(pairs=pairs, report=report, name=name)
    return write_text(path, page)
