"""Asks a person for labels on a terminal: numbers or names of labels, skip, unsure, undo, quit."""

from collections.abc import Callable, Sequence

import numpy as np

from instructrec_jax.data.example import suggest
from instructrec_jax.evaluation.tables import clean
from instructrec_jax.labeling.session import Session, Thought

GUESSES = 5  # labels that are shown with a text
HELP = "number or name of a label; Enter: the first; s: skip; ?: unsure; u: undo; l: all labels; q: quit"


def ask(
    session: Session,
    numbers: Sequence[int],
    texts: Sequence[str],
    who: str,
    shares: np.ndarray | None,
    read: Callable[[], str],
    show: Callable[[str], object],
) -> bool:
    """Asks a person for the texts with these numbers that they have not answered; whether all are answered.

    Args:
      texts: of the whole pool.
      shares: the model's probabilities of `numbers`, float64 [numbers, labels]; None: labels are shown in their order,
        and nothing that the model thought.
      read: the next line of input, "" at its end.
    """
    show(HELP)
    place = {number: row for row, number in enumerate(numbers)}
    while True:
        answered = session.answered(who)
        number = next((each for each in numbers if each not in answered), None)
        if number is None:
            return True
        own = None if shares is None else shares[place[number]]
        order = list(range(len(session.labels))) if own is None else np.argsort(-own, kind="stable").tolist()
        shown = [session.labels[at] for at in order]
        said = [name if own is None else f"{name} {own[at]:.2f}" for name, at in zip(shown, order, strict=True)]
        show(f"\n[{sum(n in answered for n in numbers) + 1} of {len(numbers)}] {clean(texts[number])}")
        show("  ".join(f"{row} {name}" for row, name in enumerate(said[:GUESSES], 1)))
        thought = Thought(text=texts[number])
        if own is not None:
            thought |= Thought(thought=shown[0], probability=float(own[order[0]]))
        if not _answer(session, number, shown, said, who, thought, read, show):
            return False


def _answer(
    session: Session,
    number: int,
    shown: Sequence[str],
    said: Sequence[str],
    who: str,
    thought: Thought,
    read: Callable[[], str],
    show: Callable[[str], object],
) -> bool:
    """One answer, or one that is taken back; False: the person quits."""
    while True:
        line = read()
        if not line or line.strip() == "q":
            return False
        word = line.strip()
        if word == "u":
            back = session.undo(who)
            show("nothing to undo" if back is None else f"took back the answer to text {back}")
            return True
        if word == "l":
            show("\n".join(f"{row} {name}" for row, name in enumerate(said, 1)))
            continue
        if word in ("s", "?"):
            session.say(number, "skip" if word == "s" else "unsure", who, thought=thought)
            return True
        if word in ("", *shown) or word.isdecimal() and 1 <= int(word) <= len(shown):
            label = word if word in shown else shown[int(word or 1) - 1]
            session.say(number, "label", who, label=label, thought=thought)
            return True
        show(f"{word!r} is no label.{suggest(word, list(shown))} {HELP}")
