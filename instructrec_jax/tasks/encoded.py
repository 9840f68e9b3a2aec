"""An example as a task reads it."""

from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example

Goal = TypeVar("Goal", covariant=True, default=Any)


@dataclass(frozen=True)
class Encoded(Generic[Goal]):
    """An example ready for batches: its tokens, and its target in the form of the task's loss.

    Each task has its own type of target; plain `Encoded` is that of any task.
    """

    text: Text
    target: Goal
    example: Example
