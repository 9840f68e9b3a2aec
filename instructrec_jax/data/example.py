"""The one record that every source yields and every task reads."""

import difflib
import hashlib
import json
import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Output = str | float | int | tuple[str, ...] | None

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One instruction and, when it is known, the answer.

    Attributes:
      instruction: what to do, in words. May be empty only when `messages` are given.
      input: what to do it to; None when the instruction says it all.
      output: the answer: a text, the name of a label, a number, the id of an item; a tuple holds several
        labels or items, or one tag per word. None: unknown (nothing to learn from, only to predict).
      messages: a conversation, oldest turn first, instead of or beside the instruction.
      candidates: ids (or texts) of the items to choose among.
      history: ids of the items already seen, oldest first.
      task: name of the task; groups sources in a mixture.
      id: whatever identifies the record to a reader.
      origin: where a generated example came from: template, variant, user, split ...
    """

    instruction: str
    input: str | None = None
    output: Output = None
    messages: tuple[Message, ...] = ()
    candidates: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    task: str = ""
    id: str = ""
    origin: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_record(self) -> dict[str, Any]:
        """A dict that JSON can hold, without the empty fields; `from_record` makes an equal example of it."""
        record: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if name == "messages":
                value = [{"role": m.role, "content": m.content} for m in value]
            elif name == "origin":
                value = dict(value)
            elif isinstance(value, tuple):
                value = list(value)
            if name == "output" and value is not None or value not in (None, "", [], {}):
                record[name] = value  # an output of 0, "" or [] is an output
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Example":
        """The inverse of `to_record`.

        Raises:
          BadExample: an unknown key, or a value that `check_example` refuses.
        """
        if not isinstance(record, Mapping):
            raise BadExample("record", "wrong type", f"expected an object with named fields, found {show(record)}.")
        known = [f.name for f in fields(cls)]
        for name in record:
            if name not in known:
                raise BadExample(str(name), "unknown field", f"an example has the fields {', '.join(known)}.")
        values: dict[str, Any] = {"instruction": "", **record}
        for name in ("output", "candidates", "history"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        messages = values.get("messages", [])
        if not isinstance(messages, list | tuple):
            raise BadExample("messages", "wrong type", f"expected a list of messages, found {show(messages)}.")
        turns = []
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
                detail = f"expected an object with role and content, found {show(message)}."
                raise BadExample(f"messages[{number}]", "wrong type", detail)
            turns.append(Message(message["role"], message["content"]))
        values["messages"] = tuple(turns)
        return check_example(cls(**values))


class BadExample(ValueError):
    """One record that cannot become an `Example`.

    Attributes:
      field: the field of the example, e.g. `output` or `messages[2].content`; "" for an unreadable record.
      reason: a few words that records can be counted by: malformed line, missing column, wrong type, empty
        text, unknown label ...
      detail: a sentence with what was found and what to do about it.
      where: file and line, or data set and row; "" until the source that read the record fills it in.
    """

    def __init__(self, field: str, reason: str, detail: str, where: str = "") -> None:
        super().__init__(field, reason, detail, where)
        self.field, self.reason, self.detail, self.where = field, reason, detail, where

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.where, self.field and f"field {self.field!r}") if part)
        return f"{place}: {self.reason}: {self.detail}" if place else f"{self.reason}: {self.detail}"


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 60


def show(value: Any) -> str:
    """A value and its type, short enough for an error message."""
    return "null" if value is None else f"{type(value).__name__} {_shortener.repr(value)}"


def suggest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean "x"?', or nothing when no choice resembles the word."""
    close = difflib.get_close_matches(word[:200], [choice for choice in choices if len(choice) <= 200], 1)
    return f' Did you mean "{close[0]}"?' if close else ""


def check_text(value: Any, field: str, allow_blank: bool = False) -> str:
    """The text itself, unchanged.

    Raises:
      BadExample: not a text, blank, or with characters that no tokenizer can take.
    """
    if not isinstance(value, str):
        raise BadExample(field, "wrong type", f"expected text, found {show(value)}.")
    if not allow_blank and not value.strip():
        raise BadExample(field, "empty text", f"expected text, found {value[:20]!r}: fill it in or remove the row.")
    if "\x00" in value:
        place = value.index("\x00")
        detail = f"character {place} is NUL (\\x00), the sign of a damaged file: remove it ({show(value)})."
        raise BadExample(field, "unusable character", detail)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        detail = (
            f"character {error.start} is half a surrogate pair (\\u{ord(value[error.start]):04x}), not text: "
            "write the file anew from the original text, as UTF-8."
        )
        raise BadExample(field, "unusable character", detail) from None
    return value


def check_number(value: Any, field: str) -> int | float:
    """The number itself, unchanged. Raises `BadExample` when it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadExample(field, "wrong type", f"expected a number, found {show(value)}.")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise BadExample(field, "not a finite number", f"found {len(str(value)):,} digits, more than a float holds.")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadExample(field, "not a finite number", f"found {value}: give the true value or remove the row.")
    return value


def check_texts(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise BadExample(field, "wrong type", f"expected several texts, found {show(value)}.")
    for number, text in enumerate(value):
        check_text(text, f"{field}[{number}]")
    return value


def check_example(example: Example) -> Example:
    """The example itself, if every field holds what the class promises.

    Raises:
      BadExample: a wrong type, an empty text, an unusable character or a number that is not finite.
    """
    check_text(example.instruction, "instruction", allow_blank=bool(example.messages))
    if example.input is not None:
        check_text(example.input, "input")
    if isinstance(example.output, str):
        check_text(example.output, "output")
    elif isinstance(example.output, tuple):
        check_texts(example.output, "output")
    elif example.output is not None:
        check_number(example.output, "output")
    check_messages(example.messages)
    check_texts(example.candidates, "candidates")
    check_texts(example.history, "history")
    check_text(example.task, "task", allow_blank=True)
    check_text(example.id, "id", allow_blank=True)
    if not isinstance(example.origin, Mapping):
        raise BadExample("origin", "wrong type", f"expected names with texts, found {show(example.origin)}.")
    for name, text in example.origin.items():
        check_text(name, "origin")
        check_text(text, f"origin.{name}", allow_blank=True)
    return example


def check_messages(messages: tuple[Message, ...]) -> None:
    if not isinstance(messages, tuple):
        raise BadExample("messages", "wrong type", f"expected a tuple of messages, found {show(messages)}.")
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, Message):
            raise BadExample(place, "wrong type", f"expected a Message, found {show(message)}.")
        if message.role not in ROLES:
            detail = f"found {show(message.role)}; the roles are {', '.join(ROLES)}."
            raise BadExample(f"{place}.role", "unknown role", detail)
        if message.role == "system" and number > 0:
            detail = "a system message can only be the first: move it or join it to the first one."
            raise BadExample(f"{place}.role", "misplaced system message", detail)
        check_text(message.content, f"{place}.content")


def check_labels(example: Example, labels: Iterable[str]) -> None:
    """Checks the output, or each of several outputs, against the known labels (an absent output passes).

    Raises:
      BadExample: an output that is no label.
    """
    labels = list(labels) if not isinstance(labels, list | tuple | frozenset | set) else labels
    several = isinstance(example.output, tuple)
    outputs: Any = example.output if several else () if example.output is None else (example.output,)
    for number, output in enumerate(outputs):
        place = f"output[{number}]" if several else "output"
        if not isinstance(output, str):
            detail = f"found {show(output)}, which is no name: map numbers to names with fields.label_names."
            raise BadExample(place, "unknown label", detail)
        if output not in labels:
            listed = ", ".join(sorted(labels)[:20]) + (", ..." if len(labels) > 20 else "")
            detail = f"found {show(output)}; the labels are {listed}.{suggest(output, labels)}"
            raise BadExample(place, "unknown label", detail)


def fingerprint(examples: Iterable[Example]) -> str:
    """64 hex digits for the examples and their order, the same on every machine: SHA-256 of their JSON."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(fingerprint_bytes(example))
    return digest.hexdigest()


def fingerprint_bytes(example: Example) -> bytes:
    return json.dumps(example.to_record(), sort_keys=True).encode() + b"\n"
