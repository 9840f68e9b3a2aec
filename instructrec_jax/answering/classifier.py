"""Classification runs, opened to label texts and to say how sure they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.data.example import BadExample, Example, check_text
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.run import Run, require_run
from instructrec_jax.tasks.base import Encoded, Task, TaskConfig
from instructrec_jax.tasks.text.classification import ClassificationConfig
from instructrec_jax.tasks.text.token_classification import TokenClassificationConfig


def open_tagger(path: Path) -> Run:
    """A run of the task token_classification."""
    return open_run_of(path, TokenClassificationConfig)


def open_run_of(path: Path, task: type[TaskConfig]) -> Run:
    """Opens a run directory. Raises ValueError for a run of another task."""
    require_run(path)
    run = Run.open(path)
    if not isinstance(run.config.task, task):
        raise ValueError(f"{path} was trained for the task {run.kind}, not for {task.get_choice_name(task)}.")
    return run


def encode_one(task: Task, text: str, output: Any, *, where: str, instruction: str = "") -> Encoded:
    """A text as a run reads it. Tasks encode examples with an answer, so any will do: nothing looks at it.

    Raises BadExample for a text that is blank, or too long for the run.
    """
    check_text(text, "text")
    asked, read = (instruction, text) if instruction else (text, None)
    try:
        found = task.encode([Example(instruction=asked, input=read, output=output, id=where)])
    except ValueError as error:
        raise BadExample("text", "unusable text", str(error), where) from None
    if not found:
        detail = f"it is longer than data.max_length ({task.context.max_length} tokens), and data.truncate is drop."
        raise BadExample("text", "text too long", detail, where)
    return found[0]


class Classifier:
    """One or several runs of the task classification, with the same labels.

    Several runs are an ensemble (Lakshminarayanan et al., 2017); with `draws`, each run is used so many times with
    dropout on (Monte Carlo dropout, Gal & Ghahramani, 2016). Both may go together: members = runs × draws.

    Args:
      draws: 0: each run once, without dropout.
      seed: of the draws.
      instruction: what stood before each text in training (`instruction`, where the text was `input`).

    Raises:
      ValueError: no run, another task, or runs whose labels differ.
    """

    def __init__(self, runs: Sequence[Path], *, draws: int = 0, seed: int = 0, instruction: str = ""):
        if draws < 0 or draws == 1:
            raise ValueError(f"--draws is {draws}: uncertainty needs at least 2 draws; 0 takes none.")
        self.runs = [open_run_of(run, ClassificationConfig) for run in runs]
        self.labels: list[str] = list(self.runs[0].task.labels)
        for run, opened in zip(runs, self.runs, strict=True):
            if set(opened.task.labels) != set(self.labels):
                raise ValueError(
                    f"{run} has the labels {opened.task.labels}, but {runs[0]} has {self.labels}: an ensemble needs "
                    "runs of one task."
                )
        self.draws, self.seed, self.instruction = draws, seed, instruction

    @property
    def members(self) -> int:
        return len(self.runs) * max(1, self.draws)

    @property
    def cut(self) -> int:
        """How many texts had to be cut so far (the run's `data.truncate`)."""
        return max(run.task.context.counts.get("texts cut", 0) for run in self.runs)

    def encode(self, text: str, where: str) -> list[Encoded]:
        """The text as each run reads it; BadExample for one that none can read."""
        return [
            encode_one(run.task, text, run.task.labels[0], where=where, instruction=self.instruction)
            for run in self.runs
        ]

    def logits(self, encoded: Sequence[Sequence[Encoded]], numbers: Sequence[int] | None = None) -> np.ndarray:
        """float32 [members, texts, labels], in the order of `labels`.

        Args:
          encoded: of each text, what `encode` gave.
          numbers: of the texts: the dropout bits of a draw hang on (seed, draw, number of the text).
        """
        found = []
        for place, run in enumerate(self.runs):
            texts = [each[place].text for each in encoded]
            order = [run.task.labels.index(label) for label in self.labels]
            if not self.draws:
                found.append(np.stack(run.predict(texts))[:, order])
                continue
            seeds = np.random.SeedSequence([self.seed, place]).generate_state(self.draws)
            drawn = np.stack([np.stack(run.predict.draw(texts, seed, numbers)) for seed in seeds])
            if (drawn == drawn[0]).all():
                raise ValueError(
                    "all draws are the same: the network has no dropout (see its config.json), so --draws tells "
                    "nothing. Give several runs of different seeds instead."
                )
            found += list(drawn[:, :, order])
        logits = np.stack(found)
        if not np.isfinite(logits).all():
            raise ValueError("the model gives outputs that are not finite: a run that diverged labels nothing.")
        return logits

    def members_of(self, encoded: Sequence[Sequence[Encoded]], numbers: Sequence[int] | None = None) -> np.ndarray:
        """Probabilities, float64 [members, texts, labels]; arguments as of `logits`."""
        return probabilities(self.logits(encoded, numbers))
