"""Classification runs opened to label texts, with uncertainty from ensembles or Monte Carlo dropout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.data.example import BadExample, Example, Output, check_text
from instructrec_jax.data.listed import listed
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.run import Run, require_run
from instructrec_jax.tasks.base import Encoded, Task


def open_tagger(path: Path | Run) -> Run:
    """A run of the task token_classification."""
    return open_run_of(path, "token_classification")


def open_run_of(path: Path | Run, task: str) -> Run:
    """Opens a run directory, unless it is an opened run. Raises ValueError for a run of another task."""
    if not isinstance(path, Run):
        require_run(path)
        path = Run.open(path)
    run = path
    if run.kind != task:
        raise ValueError(f"{run.path} was trained for the task {run.kind}, not for {task}.")
    return run


def encode_one(task: Task, text: str, output: Output, *, where: str, instruction: str = "") -> Encoded:
    """A text encoded for a run's task.

    Args:
      output: any valid target; tasks encode complete examples, but predictions do not depend on the target.

    Raises BadExample for a text that is blank or too long for the run.
    """
    try:
        check_text(text, "text")
    except BadExample as error:
        raise error.at(where) from None
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
    """One or several runs of the task classification with the same labels.

    Several runs form an ensemble (Lakshminarayanan et al., 2017). With `draws`, each run predicts `draws` times with
    dropout on (Monte Carlo dropout, Gal & Ghahramani, 2016). Combined: members = runs × draws.

    Args:
      draws: number of dropout passes per run; 0: one pass without dropout.
      seed: random seed of the draws.
      instruction: the instruction before each text in training, if the text was `input`.

    Raises:
      ValueError: a path that is not a run, another task, or runs with different labels.
    """

    def __init__(
        self,
        runs: str | Path | Run | Sequence[str | Path | Run],
        *,
        draws: int = 0,
        seed: int = 0,
        instruction: str = "",
    ):
        if draws < 0 or draws == 1:
            raise ValueError(f"--draws is {draws}: uncertainty needs at least 2 draws; 0 turns dropout off.")
        given = listed(runs, "runs", (str, Path, Run), "a run directory, or a list of them")
        paths = [run if isinstance(run, Run) else Path(str(run)) for run in given]
        self.runs = [open_run_of(path, "classification") for path in paths]
        self.labels: list[str] = list(self.runs[0].task.labels)
        for opened in self.runs:
            if set(opened.task.labels) != set(self.labels):
                raise ValueError(
                    f"{opened.path} has the labels {opened.task.labels}, but {self.runs[0].path} has {self.labels}: an "
                    "ensemble needs runs with the same labels."
                )
        self.draws, self.seed, self.instruction = draws, seed, instruction

    @property
    def members(self) -> int:
        return len(self.runs) * max(1, self.draws)

    @property
    def cut(self) -> int:
        """Number of texts truncated so far (by the run's `data.truncate`)."""
        return max(run.task.context.counts.get("texts cut", 0) for run in self.runs)

    def prompt(self, text: str) -> str:
        """The text as the runs read it, and as their evaluations write it."""
        return f"{self.instruction}\n{text}" if self.instruction else text

    def encode(self, text: str, where: str) -> list[Encoded]:
        """The text encoded for each run. Raises BadExample for an unusable text."""
        return [
            encode_one(run.task, text, run.task.labels[0], where=where, instruction=self.instruction)
            for run in self.runs
        ]

    def logits(self, encoded: Sequence[Sequence[Encoded]], numbers: Sequence[int] | None = None) -> np.ndarray:
        """float32 [members, texts, labels], in the order of `labels`.

        Args:
          encoded: results of `encode`, one per text.
          numbers: numbers of the texts; the dropout mask depends on (seed, draw, number of the text).
        """
        found = []
        for place, run in enumerate(self.runs):
            texts = [each[place].text for each in encoded]
            order = [run.task.labels.index(label) for label in self.labels]
            if not self.draws:
                found.append(np.stack(run.predictor(texts))[:, order])
                continue
            seeds = np.random.SeedSequence([self.seed, place]).generate_state(self.draws)
            drawn = np.stack([np.stack(run.predictor.draw(texts, seed, numbers)) for seed in seeds])
            if (drawn == drawn[0]).all():
                raise ValueError(
                    "--draws: all draws are equal, because the network has no dropout (see its config.json). Use "
                    "several runs with different seeds instead."
                )
            found += list(drawn[:, :, order])
        logits = np.stack(found)
        if not np.isfinite(logits).all():
            raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
        return logits

    def members_of(self, encoded: Sequence[Sequence[Encoded]], numbers: Sequence[int] | None = None) -> np.ndarray:
        """Probabilities, float64 [members, texts, labels]; arguments as in `logits`."""
        return probabilities(self.logits(encoded, numbers))
