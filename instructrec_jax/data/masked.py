"""Examples with placeholders in place of personal data: the setting `data.mask`."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from instructrec_jax.data.example import REASONING, BadExample, Example, Message
from instructrec_jax.data.storage import code_version
from instructrec_jax.masking.masker import MaskConfig, Masker

_HIDDEN = "the value is not shown, because data.mask is set: look it up in the file, or unset data.mask to see it here."


@dataclass(frozen=True)
class ExampleMask:
    """Masks the texts of examples: `mask(example) -> Example`. Each example has a numbering of its own.

    Instruction, input, messages (with reasoning and the arguments of calls) and system prompt are masked, and of the
    fields `output` and `candidates` those that are texts. Labels, ids of items and of records, and origins stay.

    Attributes:
      texts: name of a task -> which of the fields `output` and `candidates` are texts in its examples.
    """

    config: MaskConfig
    texts: Callable[[str], Collection[str]]

    def __post_init__(self) -> None:
        _masker(self.config.presidio, *self._lists)  # a wrong setting or a missing package is said at once

    @property
    def _lists(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(self.config.kinds), tuple(self.config.regions)

    def __call__(self, example: Example) -> Example:
        session = _masker(self.config.presidio, *self._lists).session()
        mask: Callable[[Any], Any] = session.mask_value  # keeps the type
        fields = self.texts(example.task)

        def turn(message: Message) -> Message:
            extra = {name: mask(v) if name in REASONING else v for name, v in message.extra.items()}
            if isinstance(calls := extra.get("tool_calls"), list):
                extra["tool_calls"] = [_with_arguments(call, mask) for call in calls]
            return replace(message, content=mask(message.content), extra=extra)

        return replace(  # in the order of a conversation, so that numbers ascend
            example,
            system=mask(example.system),
            messages=tuple(map(turn, example.messages)),
            instruction=mask(example.instruction),
            input=mask(example.input),
            candidates=mask(example.candidates) if "candidates" in fields else example.candidates,
            output=mask(example.output) if "output" in fields else example.output,
        )

    def key(self) -> dict[str, object]:
        """What the masked texts depend on, as JSON."""
        return {**self.config.key(), "code": code_version("masking"), "packages": list(map(_version, _PACKAGES))}


_PACKAGES = ("phonenumbers", "python-stdnum", "regex", "presidio-analyzer")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


@cache
def _masker(presidio: str, kinds: tuple[str, ...], regions: tuple[str, ...]) -> Masker:
    """One for each process: workers get the settings alone."""
    return Masker(MaskConfig(list(kinds), list(regions), presidio))


def _with_arguments(call: dict[str, Any], mask: Callable[[Any], Any]) -> dict[str, Any]:
    name = "function" if "function" in call else ""
    inner = call[name] if name else call
    inner = {**inner, "arguments": mask(inner.get("arguments", {}))}
    return {**call, name: inner} if name else inner


def without_values(error: BadExample) -> BadExample:
    """The error of a bad row without what the row holds."""
    return BadExample(error.field, error.reason, _HIDDEN, error.where)
