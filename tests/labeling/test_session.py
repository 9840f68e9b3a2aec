"""Sessions: what people said is never lost, goes on after a kill, and is counted as they meant it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from instructrec_jax.files import read_jsonl
from instructrec_jax.labeling.questions import Questions
from instructrec_jax.labeling.session import About, Session

ABOUT = About(pool="pool.jsonl", fingerprint="abc", labels=["yes", "no"])
KILLED = """
import os, signal, sys
from pathlib import Path
from instructrec_jax.labeling.session import About, Session
session = Session.open(Path(sys.argv[1]), About(pool="pool.jsonl", fingerprint="abc", labels=["yes", "no"]))
session.ask([4, 2, 7], "entropy", "run")
session.say(4, "label", "ada", label="yes", thought={"thought": "no", "probability": 0.6})
session.say(2, "unsure", "ada")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_session_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with open(folder / "labels.jsonl", "ab") as file:  # and a line that it began
        file.write(b'{"number": 7, "ki')
    session = Session.open(folder, ABOUT)
    assert session.rounds[0]["numbers"] == [4, 2, 7] and session.answered("ada") == {4, 2}
    assert session.taken() == {4: "yes"}
    session.say(7, "label", "ada", label="no")
    session.close()
    lines = read_jsonl(folder / "labels.jsonl")
    assert [line["number"] for line in lines] == [4, 2, 7] and lines[0]["thought"] == "no" and lines[0]["round"] == 1
    assert all(line["who"] == "ada" and str(line["when"]).endswith("+00:00") for line in lines)


def test_undo_takes_back_the_last_answer_of_a_person_and_keeps_the_lines(tmp_path: Path) -> None:
    session = Session.open(tmp_path, ABOUT)
    assert session.undo("ada") is None
    session.say(1, "label", "ada", label="yes")
    session.say(2, "label", "ada", label="no")
    session.say(3, "label", "bob", label="no")
    assert session.undo("ada") == 2 and session.answered("ada") == {1}
    session.say(2, "label", "ada", label="yes")
    assert session.taken() == {1: "yes", 2: "yes", 3: "no"}
    assert session.undo("ada") == 2 and session.undo("ada") == 1 and session.undo("ada") is None
    session.close()
    again = Session.open(tmp_path, ABOUT)
    assert again.taken() == {3: "no"} and len(again.lines) == 7


def test_contradictions_are_kept_apart_and_agreement_is_cohens(tmp_path: Path) -> None:
    session = Session.open(tmp_path, ABOUT)
    for number, (one, other) in enumerate(["yy", "yn", "nn", "yy", "ny"]):
        session.say(number, "label", "ada", label="yes" if one == "y" else "no")
        session.say(number, "label", "bob", label="yes" if other == "y" else "no")
    session.say(9, "label", "bob", label="yes")
    session.say(8, "skip", "ada")
    assert session.contradictions() == {1: ["yes", "no"], 4: ["no", "yes"]}
    assert session.taken() == {0: "yes", 2: "no", 3: "yes", 9: "yes"} and session.done() == {*range(5), 8, 9}
    both, share, kappa = session.agreement("ada", "bob")
    chance = (3 / 5) * (3 / 5) + (2 / 5) * (2 / 5)
    assert (both, share) == (5, 0.6) and kappa == pytest.approx((0.6 - chance) / (1 - chance))
    said: list[str] = []
    session.report("ada", said.append)
    assert "text 1: yes, no" in said[0] and "ada and bob agree on 60% of 5 texts" in said[-1]
    with pytest.raises(ValueError, match="ada and eve labeled no text in common"):
        session.agreement("ada", "eve")


def test_people_who_disagree_are_asked_again(tmp_path: Path) -> None:
    session = Session.open(tmp_path, ABOUT)
    for who, said in (("ada", "yes"), ("bob", "no")):
        session.say(1, "label", who, label=said)
        session.say(2, "label", who, label="yes")
    session.say(3, "label", "eve", label="no")
    assert session.disagrees("ada") == session.disagrees("bob") == {1} and session.disagrees("eve") == set()
    texts = [f"text {number}" for number in range(4)]
    questions = Questions(session, sorted(session.disagrees("ada")), texts, "ada", None, since=len(session.lines))
    asked = questions.next()
    assert asked is not None and asked.number == 1
    questions.answer(asked, "label", "no")
    assert questions.next() is None and session.disagrees("ada") == set()
    assert session.taken() == {1: "no", 2: "yes", 3: "no"} and len(session.lines) == 6


def test_bad_input_is_named(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "one", ABOUT)
    with pytest.raises(ValueError, match="'maybe' is not one of the labels yes, no"):
        session.say(0, "label", "ada", label="maybe")
    with pytest.raises(ValueError, match="--who is empty"):
        session.say(0, "skip", " ")
    with pytest.raises(ValueError, match="is open in another process"):
        Session.open(tmp_path / "one", ABOUT)
    session.close()
    for changed, said in (({"fingerprint": "x"}, "other texts"), ({"labels": ["a", "b"]}, "other labels")):
        with pytest.raises(ValueError, match=f"{said}.*choose another --out"):
            Session.open(tmp_path / "one", ABOUT | changed)  # type: ignore[arg-type]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "labels.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"no session.json"):
        Session.open(tmp_path / "two", ABOUT)
    assert (tmp_path / "two" / "labels.jsonl").read_text() == "{}\n"
