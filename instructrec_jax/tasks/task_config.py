"""What the settings of every task are, and those of several tasks at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

import draccus

from instructrec_jax.augmentation.augmenter import ALL_METHODS
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.tasks.search_space import SearchSpace

if TYPE_CHECKING:
    from instructrec_jax.tasks.base import Task, TaskContext


class TaskConfig(draccus.ChoiceRegistry):
    """The task to train."""

    task_class: ClassVar[str] = ""  # MODULE:CLASS of the task, in `tasks`

    def build(self, context: "TaskContext") -> "Task":
        """The task. Its module is imported only here, because it needs jax, which settings and `--help` do not.

        Raises TypeError for a config that is not one of a task.
        """
        if not self.task_class:
            raise TypeError(f"{type(self).__name__} is not a task: set --task.type.")
        module, name = self.task_class.split(":")
        made: Task = getattr(import_module(f"instructrec_jax.tasks.{module}"), name)(self, context)
        return made

    @property
    def complete(self) -> bool:
        """Whether all settings are set; else `learn` takes the missing ones from the training examples."""
        return True

    def learn(self, examples: Sequence[Example]) -> "TaskConfig":
        """The config with its missing settings (labels, say) taken from the training examples."""
        return self

    @property
    def name(self) -> str:
        """The value of `--task.type`."""
        return self.get_choice_name(type(self))

    @property
    def label_names(self) -> list[str] | None:
        """The labels to choose from (empty: those of the training examples); None for a task without labels."""
        return None

    @property
    def search_space(self) -> SearchSpace:
        """What `tune` searches beside the learning rate and the weight decay, or in their place."""
        return {}

    answers_are_numbers: ClassVar[bool] = False  # whether the task learns from numbers

    def reads_numbers(self, task: str) -> bool:
        """Whether the targets of examples of this task name are numbers (the name matters to `multitask` only)."""
        return self.answers_are_numbers

    ranks_catalogue: ClassVar[bool] = False  # whether the task ranks the items of a catalogue
    answers_are_text: ClassVar[bool] = False  # whether a language model writes the answers, as text
    reads_images: ClassVar[bool] = False  # whether the task can read images or sounds, with a network of these alone
    draws_images: ClassVar[bool] = False  # whether it draws the images that it reads, with an image tokenizer
    draws_texts: ClassVar[bool] = False  # whether it draws what a text says
    compares_images: ClassVar[bool] = False  # whether the task needs an image network and a text network (CLIP)
    reads_sounds: ClassVar[bool] = False  # whether the task writes what it hears, with an encoder–decoder that hears
    asks_about_images: ClassVar[bool] = False  # whether it reads images between words, with a decoder that does
    targets_are_places: ClassVar[bool] = False  # whether targets are places in the texts, which data.mask would move

    def text_fields(self, task: str) -> tuple[str, ...]:
        """Which of output and candidates are texts (not labels, ids or numbers) in examples of this task name.

        The name matters to `multitask` only.
        """
        return ("output",) if self.answers_are_text else ()

    augmented_by: ClassVar[tuple[str, ...]] = ALL_METHODS  # methods of augmentation that leave its targets true
    tags_words: ClassVar[bool] = False  # whether an output is one tag per word, which go with the words

    def augmentations(self, task: str) -> tuple[str, ...]:
        """`augmented_by` of examples of this task name, which matters to `multitask` only."""
        return self.augmented_by

    def has_tags(self, task: str) -> bool:
        """`tags_words` of examples of this task name, which matters to `multitask` only."""
        return self.tags_words


@dataclass
class SubtaskConfig:
    """A subtask."""

    name: str = ""  # value of `task` of its examples (set by their source or their record)
    task: TaskConfig = field(default_factory=TaskConfig)
    weight: float = 1.0  # weight of its targets in the loss


@TaskConfig.register_subclass("multitask")
@dataclass
class MultitaskConfig(TaskConfig):
    """Train several tasks at once; an example belongs to the task that its field `task` names."""

    task_class = "multitask:MultitaskTask"
    tasks: list[SubtaskConfig] = field(default_factory=list)  # for each: name, task (type and settings), weight

    @property
    def complete(self) -> bool:
        return all(subtask.task.complete for subtask in self.tasks)

    def reads_numbers(self, task: str) -> bool:
        return any(subtask.task.reads_numbers(task) for subtask in self.tasks if subtask.name == task)

    @property
    def targets_are_places(self) -> bool:  # type: ignore[override]
        return any(subtask.task.targets_are_places for subtask in self.tasks)

    @property
    def compares_images(self) -> bool:  # type: ignore[override]
        return any(subtask.task.compares_images for subtask in self.tasks)

    @property
    def draws_images(self) -> bool:  # type: ignore[override]
        return any(subtask.task.draws_images for subtask in self.tasks)

    @property
    def draws_texts(self) -> bool:  # type: ignore[override]
        return any(subtask.task.draws_texts for subtask in self.tasks)

    @property
    def asks_about_images(self) -> bool:  # type: ignore[override]
        return all(subtask.task.asks_about_images for subtask in self.tasks)

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        return all(subtask.task.reads_images for subtask in self.tasks)

    @property
    def reads_sounds(self) -> bool:  # type: ignore[override]
        return all(subtask.task.reads_sounds for subtask in self.tasks)

    def text_fields(self, task: str) -> tuple[str, ...]:
        return tuple(name for each in self.tasks if each.name == task for name in each.task.text_fields(task))

    def augmentations(self, task: str) -> tuple[str, ...]:
        return next((each.task.augmentations(task) for each in self.tasks if each.name == task), ())

    def has_tags(self, task: str) -> bool:
        return any(each.name == task and each.task.has_tags(task) for each in self.tasks)

    def learn(self, examples: Sequence[Example]) -> "MultitaskConfig":
        def learned(subtask: SubtaskConfig) -> SubtaskConfig:
            if subtask.task.complete:
                return subtask
            own = [number for number, example in enumerate(examples) if example.task == subtask.name]
            return replace(subtask, task=subtask.task.learn(Mapped(examples.__getitem__, own)))

        return replace(self, tasks=[learned(subtask) for subtask in self.tasks])
