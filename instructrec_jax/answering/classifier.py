"""Classification runs opened to label texts, with uncertainty from ensembles or Monte Carlo dropout."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from instructrec_jax.answering.ensembles import ensemble_of
from instructrec_jax.data.example import BadExample, Example, Output, check_text
from instructrec_jax.data.listed import listed
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.run import Run, require_run
from instructrec_jax.tasks.averaging import Mixture, mixed
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.text.text_config import ONE_LABEL


def open_tagger(path: Path | Run) -> Run:
    """A run of the task token_classification."""
    return open_run_of(path, "token_classification")


def open_run_of(path: Path | Run, *tasks: str) -> Run:
    """Opens a run directory, unless it is an opened run. Raises ValueError for a run of none of these tasks."""
    if not isinstance(path, Run):
        require_run(path)
        path = Run.open(path)
    run = path
    if run.kind not in tasks:
        raise ValueError(f"{run.path} was trained for the task {run.kind}, not for {' or '.join(tasks)}.")
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
    """A run whose task gives each text one label, an ensemble of them, or several runs with the same labels.

    Several runs form an ensemble with equal weights (Lakshminarayanan et al., 2017). With `draws`, each member predicts
    `draws` times with dropout on (Monte Carlo dropout, Gal & Ghahramani, 2016). Combined: members = runs × draws.

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
        opened = [open_run_of(path, *ONE_LABEL) for path in paths]
        self.run = opened[0] if len(opened) == 1 else ensemble_of(opened)
        self.labels: list[str] = list(self.run.task.labels)
        self.draws, self.seed, self.instruction = draws, seed, instruction
        one = self.run.mixture or Mixture.equal("probability", 1)
        times = max(1, draws)
        weights, temperatures = (np.repeat(each, times).tolist() for each in (one.weights, one.temperatures))
        self.mixture = replace(one, weights=tuple(w / times for w in weights), temperatures=tuple(temperatures))

    @property
    def members(self) -> int:
        return len(self.mixture.weights)

    @property
    def cut(self) -> int:
        """Number of texts truncated so far (by the run's `data.truncate`)."""
        return self.run.task.context.counts.get("texts cut", 0)

    def prompt(self, text: str) -> str:
        """The text as the runs read it, and as their evaluations write it."""
        return f"{self.instruction}\n{text}" if self.instruction else text

    def encode(self, text: str, where: str) -> Encoded:
        """The encoded text. Raises BadExample for an unusable text."""
        return encode_one(self.run.task, text, self.labels[0], where=where, instruction=self.instruction)

    def logits(self, encoded: Sequence[Encoded], numbers: Sequence[int] | None = None) -> np.ndarray:
        """float32 [members, texts, labels], in the order of `labels`.

        Args:
          encoded: results of `encode`, one per text.
          numbers: numbers of the texts; the dropout mask depends on (seed, draw, number of the text).
        """
        found = []
        for place, member in enumerate(self.run.predictor.each):
            texts = [each.text for each in (encoded if member.reads is None else member.reads(encoded))]
            if not self.draws:
                found.append(np.stack(member(texts)))
                continue
            seeds = np.random.SeedSequence([self.seed, place]).generate_state(self.draws)
            drawn = np.stack([np.stack(member.draw(texts, seed, numbers)) for seed in seeds])
            if (drawn == drawn[0]).all():
                raise ValueError(
                    "--draws: all draws are equal, because the network has no dropout (see its config.json). Use "
                    "several runs with different seeds instead."
                )
            found += list(drawn)
        logits = np.stack(found)
        if not np.isfinite(logits).all():
            raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
        return logits

    def mean(self, logits: np.ndarray) -> np.ndarray:
        """The average, float64 [texts, labels], of the members' logits [members, texts, labels]; see `averaging`.

        A run's calibration is in the logits of its members already; that of an ensemble is of the average.
        """
        found = mixed("labels", logits, self.mixture)
        calibration = self.run.calibration if self.run.members else None
        return found if calibration is None else calibration(found)

    def members_of(self, encoded: Sequence[Encoded], numbers: Sequence[int] | None = None) -> np.ndarray:
        """Probabilities of each member, float64 [members, texts, labels]; arguments as in `logits`."""
        return self.shares(self.logits(encoded, numbers))

    def shares(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of each member, float64 [members, texts, labels], from the result of `logits`."""
        return probabilities(logits / np.array(self.mixture.temperatures)[:, None, None])
