"""A trial of `tune`: which settings were tried, how the training went, and the process that it runs in."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from instructrec_jax.evaluation.tables import Summary
from instructrec_jax.files import read_json, write_json, write_text
from instructrec_jax.parsing import json_value
from instructrec_jax.runs.config import Config, to_yaml
from instructrec_jax.runs.directory import is_finished

State = Literal["running", "finished", "stopped", "failed"]
POLL = 0.2  # seconds between looks at metrics.jsonl
SAID = 500  # characters of an error that are kept
TRAIN = (sys.executable, "-m", "instructrec_jax.train", "--config_path")


@dataclass
class Trial:
    """A trial, as it is kept in OUT/trials/NUMBER.json.

    Attributes:
      changes: the searched settings, by dotted name.
      state: stopped: it was worse than most at the same step.
      evaluations: (step, value of the metric) of each evaluation on data.validation.
      seconds: of its training, also of interrupted parts.
      note: why it failed.
    """

    number: int
    changes: dict[str, object]
    state: State = "running"
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def best(self, *, greater: bool) -> tuple[int, float]:
        """(step, value) of the best evaluation, which has the checkpoint that a run keeps."""
        return (max if greater else min)(self.evaluations, key=lambda each: each[1])


def file_of(out: Path, number: int) -> Path:
    return out / "trials" / f"{number}.json"


def run_of(out: Path, number: int) -> Path:
    return out / "runs" / str(number)


def keep(out: Path, trial: Trial) -> None:
    write_json(file_of(out, trial.number), asdict(trial))


def read_trial(out: Path, number: int) -> Trial | None:
    """A trial of an earlier call. Raises ValueError for a file that is none."""
    path = file_of(out, number)
    if not path.exists():
        return None
    try:
        kept = Trial(**read_json(path, dict[str, object]))  # type: ignore[arg-type]
        kept.evaluations = [(int(step), float(value)) for step, value in kept.evaluations]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a trial ({error}). Delete it, and the trial is made again.") from None
    return kept


def evaluations(run_dir: Path, metric: str) -> Iterator[tuple[int, float]]:
    """(step, value) of the evaluations so far; the last line of metrics.jsonl may be incomplete."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for line in lines:
        row = json_value(line.decode())
        if isinstance(row, dict) and row.get("kind") == "evaluation" and isinstance(row.get(metric), int | float):
            yield int(row["step"]), float(row[metric])


def goal_of(run_dir: Path) -> tuple[str, bool] | None:
    """(metric, whether greater is better) of a run; None before its first step."""
    path = run_dir / "summary.json"
    if not path.exists():
        return None
    kept = read_json(path, Summary)
    return kept["metric"], kept["greater_is_better"]


def trained(config: Config, trial: Trial, log: Path, stops: Callable[[int, float], bool]) -> Trial:
    """Trains a trial, or resumes it, in a process of its own, which Ctrl-C and SIGTERM end after a save.

    Args:
      config: its settings.
      log: what the process says, for people.
      stops: (step, value) of an evaluation -> whether the trial should end there.

    Raises KeyboardInterrupt where the training was ended from outside: the trial is running until it is resumed.
    """
    settings, run_dir = log.with_suffix(".yaml"), Path(config.run_dir)
    write_text(settings, to_yaml(config))
    trial.evaluations, began = [], time.monotonic()
    with log.open("ab") as said:
        process = subprocess.Popen(
            [*TRAIN, str(settings)], stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while trial.state == "running":
            code = process.poll()  # before the file is read, so that nothing is missed
            goal = goal_of(run_dir)
            found = [] if goal is None else list(evaluations(run_dir, goal[0]))
            for step, value in found[len(trial.evaluations) :]:
                trial.evaluations.append((step, value))
                if stops(step, value):  # whatever it has done since, so that a search is a function of the values
                    _end(process)
                    trial.state = "stopped"
                    break
            if code == 0 and trial.state == "running" and not is_finished(run_dir):
                raise KeyboardInterrupt  # somebody else's SIGTERM ended the training, which is saved
            if code is not None and trial.state == "running":
                trial.state = "failed" if code or not trial.evaluations else "finished"
                trial.note = _reason(log) if trial.state == "failed" else ""
            time.sleep(POLL)
    except KeyboardInterrupt:
        _end(process)  # it saves, and is resumed by the next call
        raise
    finally:
        trial.seconds = round(trial.seconds + time.monotonic() - began, 1)
    return trial


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)  # of a process that has ended: nothing
    process.wait()


def _reason(log: Path) -> str:
    """The error at the end of a log, or its last line."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip()
    found = re.findall(r"^(?:error|\w+Error): .*", text, re.MULTILINE)
    return (found or text.splitlines() or ["no output"])[-1][:SAID]
