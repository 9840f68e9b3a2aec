"""Which task a config builds, by name."""

from importlib import import_module
from typing import Any

import pytest

from instructrec_jax.tasks import MultitaskConfig
from instructrec_jax.tasks.base import Task, TaskContext
from instructrec_jax.tasks.multitask import MultitaskTask
from instructrec_jax.tasks.task_config import SubtaskConfig, TaskConfig
from instructrec_jax.tasks.text.masked_lm import MaskedLMTask
from instructrec_jax.tasks.text.text_config import LabelsConfig, MaskedLMConfig

CHOICES = {
    name: kind
    for name, kind in TaskConfig.get_known_choices().items()
    if kind.__module__.startswith("instructrec_jax.")
}  # other tests register some of their own


@pytest.mark.parametrize("name", CHOICES)
def test_each_config_names_a_task_of_its_own(name: str) -> None:
    module, _, task = CHOICES[name].task_class.partition(":")
    assert issubclass(getattr(import_module(f"instructrec_jax.tasks.{module}"), task), Task)
    assert [other for other, kind in CHOICES.items() if kind.task_class == CHOICES[name].task_class] == [name]


def test_what_names_no_task_builds_none() -> None:
    context = TaskContext(None, 8)
    for config in (TaskConfig(), LabelsConfig(["a", "b"])):
        with pytest.raises(TypeError, match=f"{type(config).__name__} is not a task: set --task.type"):
            config.build(context)
    with pytest.raises(TypeError, match="set --task.type"):  # a subtask without a type
        MultitaskConfig([SubtaskConfig("one"), SubtaskConfig("two", MaskedLMConfig())]).build(context)


def test_a_config_builds_its_task_and_multitask_those_of_its_subtasks(tokenizer: Any) -> None:
    context = TaskContext(tokenizer, 16)
    assert type(MaskedLMConfig().build(context)) is MaskedLMTask
    both = MultitaskConfig([SubtaskConfig("one", MaskedLMConfig()), SubtaskConfig("two", MaskedLMConfig(0.3))])
    task = both.build(context)
    assert isinstance(task, MultitaskTask) and [type(each) for each in task.tasks.values()] == [MaskedLMTask] * 2
