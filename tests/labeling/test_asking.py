"""Questions on a terminal: what a person types, and what the session keeps of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.labeling.asking import Terminal
from instructrec_jax.labeling.questions import Questions
from instructrec_jax.labeling.session import About, Session

TEXTS = [f"text {number}\x1b[2J" for number in range(5)]
SHARES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])


LABELS = ("low", "mid", "high")


def asked(
    folder: Path, *typed: str, who: str = "ada", shares: np.ndarray | None = SHARES, labels: Sequence[str] = LABELS
) -> tuple[bool, Session, str]:
    session = Session.open(folder, About(pool="p", fingerprint="f", labels=list(labels)))
    lines: Iterator[str] = iter(typed)
    said: list[str] = []
    questions = Questions(session, [3, 0, 4], TEXTS, who, shares)
    done = Terminal(lambda: next(lines, ""), said.append).ask(questions)
    session.close()
    return done, session, "\n".join(said)


def test_answers(tmp_path: Path) -> None:
    done, session, said = asked(tmp_path, "\n", "high\n", "2\n")
    assert done and session.taken() == {0: "high", 3: "mid", 4: "low"}
    assert session.lines[0]["thought"] == "mid" and session.lines[0]["probability"] == 0.7
    assert session.lines[0]["text"] == TEXTS[3]
    assert "[1 of 3] text 3" in said and "1 mid (0.70)  2 high (0.20)  3 low (0.10)" in said and "\x1b" not in said


def test_undo_skip_unsure_and_words_that_are_no_label(tmp_path: Path) -> None:
    done, session, said = asked(tmp_path, "u\n", "hihg\n", "9\n", "0\n", "s\n", "u\n", "1\n", "?\n", "l\n", "3\n")
    assert done and session.taken() == {3: "mid", 4: "mid"} and session.answered("ada") == {0, 3, 4}
    assert "nothing to undo" in said and 'Did you mean "high"?' in said and "took back the answer to text 3" in said
    assert [line["kind"] for line in session.lines] == ["skip", "undo", "label", "unsure", "label"]


def test_the_end_of_input_keeps_what_was_said_and_the_next_time_goes_on(tmp_path: Path) -> None:
    done, session, _ = asked(tmp_path, "1\n")
    assert not done and session.taken() == {3: "mid"}
    done, session, said = asked(tmp_path, "q\n")
    assert not done and "[2 of 3] text 0" in said
    done, session, _ = asked(tmp_path, "1\n", "1\n")
    assert done and session.taken() == {0: "low", 3: "mid", 4: "high"}


def test_a_second_person_does_not_see_the_models_guess(tmp_path: Path) -> None:
    asked(tmp_path, "1\n", "1\n", "1\n")
    done, session, said = asked(tmp_path, "2\n", "2\n", "2\n", who="bob", shares=None)
    assert done and "0." not in said and "1 low  2 mid  3 high" in said
    assert session.agreement("ada", "bob")[0] == 3 and "thought" not in session.lines[-1]


def test_labels_that_are_numbers_are_called_by_their_names_alone(tmp_path: Path) -> None:
    done, session, said = asked(tmp_path, "0\n", "3\n", "2\n", "\n", labels=["0", "1", "2"])
    assert done and session.taken() == {3: "0", 0: "2", 4: "2"}
    assert "\n1 (0.70)  2 (0.20)  0 (0.10)" in said and "'3' is no label" in said
