"""Asks a person for labels on a terminal: numbers or names of labels, skip, unsure, undo, quit."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from instructrec_jax.data.example import suggest
from instructrec_jax.evaluation.tables import clean
from instructrec_jax.labeling.questions import Question, Questions

GUESSES = 5  # labels that are shown with a text
HELP = "number or name of a label; Enter: the first; s: skip; ?: unsure; u: undo; l: all labels; q: quit"


def _typed() -> str:
    return sys.stdin.readline()


@dataclass(frozen=True)
class Terminal:
    """See `questions.Asker`.

    Attributes:
      read: the next line of input, "" at its end.
      say: shows a line.
    """

    read: Callable[[], str] = _typed
    say: Callable[[str], object] = print

    def ask(self, questions: Questions) -> bool:
        """Asks until all are answered (True), or the person quits or input ends (False)."""
        self.say(HELP)
        while (question := questions.next()) is not None:
            self.say(f"\n[{question.place} of {question.count}] {clean(question.text)}")
            said = _said(question)
            self.say("  ".join(said[:GUESSES]))
            if not self._answer(questions, question, said):
                return False
        return True

    def _answer(self, questions: Questions, question: Question, said: list[str]) -> bool:
        """One answer, or one that is taken back; False: the person quits."""
        shown = question.labels
        while True:
            line = self.read()
            if not line or line.strip() == "q":
                return False
            word = line.strip()
            if word == "u":
                back = questions.undo()
                self.say("nothing to undo" if back is None else f"took back the answer to text {back}")
                return True
            if word == "l":
                self.say("\n".join(said))
                continue
            if word in ("s", "?"):
                questions.answer(question, "skip" if word == "s" else "unsure")
                return True
            if word in ("", *shown):
                questions.answer(question, "label", word or shown[0])
                return True
            if not question.by_name and word.isdecimal() and 1 <= int(word) <= len(shown):
                questions.answer(question, "label", shown[int(word) - 1])
                return True
            self.say(f"{word!r} is no label.{suggest(word, list(shown))} {HELP}")


def _said(question: Question) -> list[str]:
    """The labels, with their numbers and, where they are shown, their probabilities."""
    said = list(question.labels)
    if question.shares is not None:
        said = [f"{name} ({share:.2f})" for name, share in zip(said, question.shares, strict=True)]
    return said if question.by_name else [f"{row} {name}" for row, name in enumerate(said, 1)]
