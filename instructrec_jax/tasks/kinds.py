"""The two kinds of tasks that opened runs do more with than score: rank a catalogue, and write text."""

from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.ranking.ranking_task import RankingTask


def as_ranking(task: Task) -> RankingTask | None:
    """The task, if it ranks the items of a catalogue, else None."""
    return task if isinstance(task, RankingTask) else None


def as_language_model(task: Task) -> LanguageModelTask | None:
    """The task, if it trains a language model (which can generate text), else None."""
    return task if isinstance(task, LanguageModelTask) else None
