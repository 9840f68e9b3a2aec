"""Projected gradients of training examples, kept in the run directory: gradients/DIGEST/step-N/part-M.safetensors.

The digest is of everything that they depend on: the weights of the checkpoint, the training data as the task reads
them, the settings, and this package's own code. So other ones are never read. A stopped computation resumes after its
last part. The folder may be deleted at any time.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from instructrec_jax.data.storage import code_version
from instructrec_jax.explanation.example_gradients import ExampleGradients
from instructrec_jax.files import replacing
from instructrec_jax.runs.config import to_dict
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded, pieces
from instructrec_jax.tasks.encoded_store import token_key

logger = logging.getLogger(__name__)
ROOMS = ("adapters", "backbones", "data", "explanation", "tasks")  # whose code gradients depend on
PART = 2048  # training examples of a file, whose projections are in memory at once


@dataclass(frozen=True)
class KeptGradients:
    """The projected gradients of all training examples at one checkpoint.

    Args:
      train: the encoded training examples.
    """

    run: Run
    step: int
    gradients: ExampleGradients
    train: Iterable[Encoded]

    def parts(self) -> Iterator[np.ndarray]:
        """float32 [up to `PART` examples, dimension] each, in the order of the training examples.

        The gradient of an example with several encodings (windows of a text) is their sum.
        """
        folder = self.run.path / "gradients" / self._digest() / f"step-{self.step}"
        examples, writes = pieces(self.train), True
        for number in range(2**31):
            some = list(islice(examples, PART))
            if not some:
                return
            path = folder / f"part-{number}.safetensors"
            found = _read(path, len(some))
            if found is None:
                found = summed(self.gradients, some)
                try:
                    if writes:
                        with replacing(path) as file:
                            file.write(save({"gradients": found}))
                except OSError as error:  # such as a read-only run directory
                    logger.warning("the gradients of training examples cannot be kept: %s", error)
                    writes = False
            yield found

    def _digest(self) -> str:
        run, config = self.run, self.run.config
        examples, settings = run.data.examples("train"), to_dict(config)
        sources = [
            token_key(
                run.task, settings["task"], source.fingerprint, np.arange(len(source)), config.data.on_bad_example
            )
            for source in examples.sources
        ]
        depends = {
            "weights": replace(run, step=self.step).weights_digest(),
            "sources": [[source.fingerprint for source in examples.sources], sources],
            "held_out": repr(config.data.hold_out),
            "settings": [settings[name] for name in ("task", "lora", "seed")],
            "dtype": config.backbone.dtype,
            "projection": self.gradients.dimension,
            "code": code_version(*ROOMS),
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:32]


def summed(gradients: ExampleGradients, groups: list[list[Encoded]], *, answers: bool = False) -> np.ndarray:
    """float32 [groups, dimension]: the sum over the encodings of each example."""
    each = gradients.of(chain.from_iterable(groups), answers=answers)
    starts = np.cumsum([0, *(len(own) for own in groups[:-1])])
    return np.add.reduceat(each, starts, axis=0)


def _read(path: Path, count: int) -> np.ndarray | None:
    """What was kept; None: nothing, or a damaged file."""
    if not path.is_file():
        return None
    try:
        found = load_file(path)["gradients"]
    except (SafetensorError, KeyError, OSError) as error:
        logger.warning("%s: damaged (%s); computing the gradients again.", path, error)
        return None
    if found.ndim == 2 and len(found) == count and found.dtype == np.float32:
        return found
    logger.warning("%s: does not hold the gradients of %d examples; computing them again.", path, count)
    return None
