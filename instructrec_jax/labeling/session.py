"""A labeling session on disk: what was asked, and what people said, which is on disk before the next question.

SESSION/labels.jsonl has one line per answer: the text's number in the pool, its label (or "skip" or "unsure"), who,
when, in which round, and what the model thought. Nothing in it is ever changed: an undone answer is followed by a line
that says so. SESSION/rounds.jsonl has the texts that each round asks, so that a killed session goes on with them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, Required, TypedDict

from instructrec_jax.files import append_jsonl, read_json, read_jsonl, try_lock, write_json

Kind = Literal["label", "skip", "unsure", "undo"]


class Thought(TypedDict, total=False):
    """What a person was shown: the text, and the model's most probable label with its probability."""

    text: str
    thought: str
    probability: float


class Line(Thought, total=False):
    """A line of labels.jsonl."""

    number: Required[int]
    kind: Required[Kind]
    label: str
    who: Required[str]
    when: Required[str]
    round: Required[int]


class Asked(TypedDict):
    """A line of rounds.jsonl: the numbers of the texts that a round asks, in order."""

    round: int
    numbers: list[int]
    strategy: str
    model: str


class About(TypedDict):
    """session.json: what the session labels."""

    pool: str
    fingerprint: str
    labels: list[str]


@dataclass
class Session:
    """See the module. Open it with `Session.open`."""

    folder: Path
    labels: list[str]
    lines: list[Line]
    rounds: list[Asked]
    lock: IO[bytes]

    @classmethod
    def open(cls, folder: Path, about: About) -> "Session":
        """Begins a session in a new folder, or goes on with the one that is there.

        Raises ValueError where another process has it open, where it labels another pool or has other labels, and for
        a damaged file; nothing is deleted.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115
        if not try_lock(lock):
            lock.close()
            raise ValueError(f"{folder} is open in another process: two may not write one session.")
        path = folder / "session.json"
        if not path.exists():
            if (folder / "labels.jsonl").exists():
                raise ValueError(f"{folder} has labels.jsonl but no session.json: choose another --out.")
            write_json(path, about)
        kept = read_json(path, About)
        for name in ("fingerprint", "labels"):
            if kept[name] != about[name]:
                what = "texts" if name == "fingerprint" else "labels"
                raise ValueError(f"{folder} has other {what} than {about['pool']} and the run: choose another --out.")
        lines = read_jsonl(folder / "labels.jsonl", Line) if (folder / "labels.jsonl").exists() else []
        rounds = read_jsonl(folder / "rounds.jsonl", Asked) if (folder / "rounds.jsonl").exists() else []
        return cls(folder, kept["labels"], lines, rounds, lock)

    def close(self) -> None:
        """Lets other processes open the session."""
        self.lock.close()

    def ask(self, numbers: Sequence[int], strategy: str, model: str) -> Asked:
        """Notes the texts of the next round."""
        asked = Asked(round=len(self.rounds) + 1, numbers=list(numbers), strategy=strategy, model=model)
        append_jsonl(self.folder / "rounds.jsonl", [asked])
        self.rounds.append(asked)
        return asked

    def say(
        self, number: int, kind: Kind, who: str, *, label: str | None = None, thought: Thought | None = None
    ) -> None:
        """Appends an answer; it is on disk when this returns.

        Raises ValueError for a label that the session has not, and for nobody's name.
        """
        if not who.strip():
            raise ValueError("--who is empty: name the person who labels.")
        if (kind == "label") != (label is not None) or label is not None and label not in self.labels:
            raise ValueError(f"{label!r} is not one of the labels {', '.join(self.labels)}.")
        line: dict[str, object] = {"number": number, "kind": kind}
        line |= {} if label is None else {"label": label}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line |= {"who": who, "when": now, "round": len(self.rounds), **(thought or {})}
        append_jsonl(self.folder / "labels.jsonl", [line])
        self.lines.append(line)  # type: ignore[arg-type]

    def undo(self, who: str) -> int | None:
        """Takes back a person's last answer; returns the text's number, None where there is nothing to take back."""
        given = self._standing().get(who, {})
        if not given:
            return None
        number = next(reversed(given))
        self.say(number, "undo", who)
        return number

    def _standing(self, since: int = 0) -> dict[str, dict[int, Line]]:
        """who -> number -> the answer that was not undone, in the order in which they were given."""
        found: dict[str, dict[int, Line]] = {}
        for line in self.lines[since:]:
            own = found.setdefault(line["who"], {})
            own.pop(line["number"], None)
            if line["kind"] != "undo":
                own[line["number"]] = line
        return found

    def answered(self, who: str, since: int = 0) -> set[int]:
        """The texts that a person has answered: labeled, skipped or unsure. since: a line of the session."""
        return set(self._standing(since).get(who, {}))

    def taken(self) -> dict[int, str]:
        """number -> label, where all who labeled the text agree."""
        return {number: own[0] for number, own in self._labels().items() if len(set(own)) == 1}

    def contradictions(self) -> dict[int, list[str]]:
        """number -> the labels, where people disagree; these are in no training until they agree."""
        return {number: own for number, own in self._labels().items() if len(set(own)) > 1}

    def disagrees(self, who: str) -> set[int]:
        """The texts that a person has labeled otherwise than somebody else."""
        own = self._standing().get(who, {})
        return {number for number in self.contradictions() if number in own and own[number]["kind"] == "label"}

    def done(self) -> set[int]:
        """The texts that somebody has answered."""
        return {number for own in self._standing().values() for number in own}

    def report(self, who: str, show: Callable[[str], object]) -> None:
        """Says on which texts people disagree, and how far a person agrees with the others."""
        for number, own in self.contradictions().items():
            said = f"contradictory labels of text {number}: {', '.join(own)}"
            show(f"{said}. It is in no training until they agree; --second asks again.")
        for other in self._standing():
            with suppress(ValueError):  # no text in common
                both, share, kappa = self.agreement(who, other) if other != who else (0, 0.0, None)
                if both:
                    said = "" if kappa is None else f", Cohen's kappa {kappa:.2f}"
                    show(f"{who} and {other} agree on {share:.0%} of {both} texts{said}")

    def _labels(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for own in self._standing().values():
            for number, line in own.items():
                if line["kind"] == "label":
                    found.setdefault(number, []).append(line["label"])
        return dict(sorted(found.items()))

    def agreement(self, one: str, other: str) -> tuple[int, float, float | None]:
        """(texts that both labeled, share of equal labels, Cohen's kappa; None where chance agreement is certain).

        κ = (p_o − p_e) / (1 − p_e) (Cohen, 1960). Raises ValueError where both labeled no text.
        """
        first, second = (
            {n: line["label"] for n, line in self._standing().get(who, {}).items() if line["kind"] == "label"}
            for who in (one, other)
        )
        both = sorted(set(first) & set(second))
        if not both:
            raise ValueError(f"{one} and {other} labeled no text in common.")
        observed = sum(first[n] == second[n] for n in both) / len(both)
        counts = [Counter(each[n] for n in both) for each in (first, second)]
        chance = sum(counts[0][label] * counts[1][label] for label in self.labels) / len(both) ** 2
        return len(both), observed, None if chance == 1 else (observed - chance) / (1 - chance)
