"""The examples that are shown at the end of a run."""

from collections.abc import Mapping, Sequence

from instructrec_jax.tasks.answers import Shown
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.prediction import Predict


def showcase(task: Task, predict: Predict, groups: Mapping[str, Sequence[Encoded]]) -> list[Shown]:
    """The task's five examples, taken round-robin from the groups that the evaluation reports separately.

    Groups may have the same cases with other instructions and are sampled with the same seed, so each group contributes
    other positions of its sample. With several groups, each example names its "group".
    """
    once = predict.remember()
    shown = [(name, task.showcase(once, cases)) for name, cases in groups.items()]
    if len(shown) == 1:
        return shown[0][1]
    longest = max((len(examples) for _, examples in shown), default=0)
    dealt = [(place, *shown[place % len(shown)]) for place in range(longest)]
    return [examples[place] | {"group": name} for place, name, examples in dealt if place < len(examples)]
