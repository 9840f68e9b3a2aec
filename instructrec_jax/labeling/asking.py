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
            self.say("  ".join(f"{row} {name}" for row, name in enumerate(said[:GUESSES], 1)))
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
                self.say("\n".join(f"{row} {name}" for row, name in enumerate(said, 1)))
                continue
            if word in ("s", "?"):
                questions.answer(question, "skip" if word == "s" else "unsure")
                return True
            if word in ("", *shown) or word.isdecimal() and 1 <= int(word) <= len(shown):
                questions.answer(question, "label", word if word in shown else shown[int(word or 1) - 1])
                return True
            self.say(f"{word!r} is no label.{suggest(word, list(shown))} {HELP}")


def _said(question: Question) -> list[str]:
    """The labels, with their probabilities where they are shown."""
    if question.shares is None:
        return question.labels
    return [f"{name} {share:.2f}" for name, share in zip(question.labels, question.shares, strict=True)]
