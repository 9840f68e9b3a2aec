"""What training must not see, so that a test can tell what was learnt from what was known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from instructrec_jax.data.example import Example

SEEN, UNSEEN = "seen", "unseen"


@dataclass
class HoldOutConfig:
    """Examples that data.train and data.validation leave out; the test reports on them apart from the others."""

    tasks: list[str] = field(default_factory=list)  # names of tasks; * stands for anything
    templates: list[str] = field(default_factory=list)  # values of the examples' origin.template; * for anything
    labels: list[str] = field(default_factory=list)  # answers (any of several)

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
    """Raises ValueError for a name that none of the examples has: a misspelt one would hold nothing out."""
    for kind in ("tasks", "templates", "labels"):
        for name in getattr(config, kind):
            only = HoldOutConfig(**{kind: [name]})
            if not any(is_held_out(example, only) for example in examples):
                raise ValueError(f"data.hold_out.{kind} names {name!r}, but no example of {where} has it.")
