"""Held-out tasks, templates and labels: excluded from training, reported apart in the test."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from instructrec_jax.data.example import Example

SEEN, UNSEEN = "seen", "unseen"


@dataclass
class HoldOutConfig:
    """Examples excluded from data.train and data.validation; the test reports on them separately."""

    tasks: list[str] = field(default_factory=list)  # task names; * is a wildcard
    templates: list[str] = field(default_factory=list)  # values of origin.template; * is a wildcard
    labels: list[str] = field(default_factory=list)  # labels; holds out every example with one of them

    def __bool__(self) -> bool:
        return bool(self.tasks or self.templates or self.labels)


def is_held_out(example: Example, config: HoldOutConfig) -> bool:
    def named(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    outputs = example.output if isinstance(example.output, tuple) else (example.output,)
    return (
        named(example.task, config.tasks)
        or named(example.origin.get("template", ""), config.templates)
        or any(str(output) in config.labels for output in outputs)
    )


def check_hold_out(examples: Sequence[Example], config: HoldOutConfig, where: str) -> None:
    """Raises ValueError for a name that no example has: a misspelled name would hold nothing out."""
    for kind in ("tasks", "templates", "labels"):
        for name in getattr(config, kind):
            only = HoldOutConfig(**{kind: [name]})
            if not any(is_held_out(example, only) for example in examples):
                raise ValueError(f"data.hold_out.{kind} names {name!r}, but no example of {where} has it.")
