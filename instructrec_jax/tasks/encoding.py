"""Encodes examples for a task: an unusable example is an error with file and line, or is skipped."""

import re
from collections.abc import Sequence

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.skipped import OnBadExample, SkippedRow
from instructrec_jax.tasks.base import Encoded, Task

REASON = "unusable for the task"
HINT = "Correct the row, or set data.on_bad_example to skip, to skip and list such rows."


def encode_usable(
    task: Task, examples: Sequence[Example], on_bad_example: OnBadExample, hint: str = HINT
) -> tuple[list[Encoded], list[SkippedRow]]:
    """(encoded examples, skipped rows). Finds unusable examples by bisection.

    Args:
      on_bad_example: `error` raises at the first unusable example, `skip` leaves them out and lists them.
      hint: the remedy in that error.

    Raises:
      BadExample: an unusable example, with file and line.
      ValueError: an unusable example that comes from no file; or an error that no single example causes.
    """
    counted = _counts(task)
    try:
        return _encode(task, examples), []
    except ValueError as error:
        if not all(example.where for example in examples):
            raise
        first = error
    _reset(task, counted)
    left, skipped = list(examples), []
    while True:
        bad = _named(left, first) if task.encodes_together else _bad(task, left, first, on_bad_example == "skip")
        _reset(task, counted)
        if not bad:
            raise first
        if on_bad_example == "error":
            found = bad[min(bad)]
            raise BadExample(found.field, found.reason, f"{found.detail} {hint}", found.where) from first
        for _, found in sorted(bad.items()):
            skipped.append(SkippedRow(found.where, found.field, found.reason, found.detail))
        left = [example for number, example in enumerate(left) if number not in bad]
        if not left:
            return [], skipped
        try:
            return _encode(task, left), skipped
        except ValueError as error:
            first = error
            _reset(task, counted)


def check_usable(task: Task, example: Example) -> None:
    """Raises BadExample for an example that the task cannot use."""
    counted = _counts(task)
    try:
        _encode(task, [example])
    except ValueError as error:
        raise _placed(error, example) from error
    finally:
        _reset(task, counted)


def _encode(task: Task, examples: Sequence[Example]) -> list[Encoded]:
    for number, example in enumerate(examples):
        if unread := _unread(task, example):
            raise ValueError(
                f"example {example.id or number!r}: this task does not read {', '.join(unread)}. To ignore "
                f"that, set fields.ignore to [{', '.join(unread)}]."
            )
    return task.encode(examples)


def _unread(task: Task, example: Example) -> list[str]:
    """The parts of an example that the task would ignore."""
    for media, name in ((example.images, "image"), (example.sounds, "audio")):
        read = task.context.pixels
        is_target = task.learns_images and name == "image"
        if media and not is_target and (read is None or type(media[0]) is not read.kind):
            return [name]
    if task.reads == "conversation":
        return []
    found = ["tools"] if example.tools else []
    for turn in example.messages:
        found += [f"messages.{name}" for name in turn.extra] + ([] if turn.learn else ["messages.weight"])
    if task.reads == "fields":
        found += [name for name in ("messages", "system") if getattr(example, name)]
    return list(dict.fromkeys(found))


def _named(examples: Sequence[Example], error: ValueError) -> dict[int, BadExample]:
    """The example that the error of a whole call names, by id or number."""
    name = re.search(r"example (?:'([^']*)'|(\d+))", str(error))
    if name is None:
        return {}
    said = name[1] or name[2]
    numbers = [number for number, example in enumerate(examples) if example.id == said]
    numbers = numbers or [int(said)] * (said.isdecimal() and int(said) < len(examples))
    return {number: _placed(error, examples[number]) for number in numbers[:1]}


def _bad(task: Task, examples: Sequence[Example], error: ValueError, all_of_them: bool) -> dict[int, BadExample]:
    """Number -> error of the first unusable example, or of all; empty where no single example is at fault."""
    found: dict[int, BadExample] = {}
    parts = [(0, len(examples), error)]  # ranges that fail, the first range last
    while parts:
        start, stop, problem = parts.pop()
        if stop - start == 1:
            if not found and _kind(problem) != _kind(error):
                return {}
            found[start] = _placed(problem, examples[start])
            if not all_of_them:
                break
            continue
        middle = (start + stop) // 2
        for part in ((middle, stop), (start, middle)):
            try:
                _encode(task, examples[slice(*part)])
            except ValueError as again:
                parts.append((*part, again))
    return found


def _kind(error: ValueError) -> str:
    return re.sub(r"example \d+", "example", str(error))


def _placed(error: ValueError, example: Example) -> BadExample:
    if isinstance(error, BadExample):
        return error.at(example.where)
    return BadExample("", REASON, re.sub(r"^example \d+:? ", "", str(error)), example.where)


def _counts(task: Task) -> list[dict[str, int]]:
    return [dict(each.context.counts) for each in (task, *task.subtasks.values())]


def _reset(task: Task, counted: list[dict[str, int]]) -> None:
    for each, counts in zip((task, *task.subtasks.values()), counted, strict=True):
        each.context.counts.clear()
        each.context.counts.update(counts)
