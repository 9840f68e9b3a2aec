"""The `Example`: the record that every source yields and every task reads."""

import difflib
import json
import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from instructrec_jax.data.media.picture import MARK, Media, Picture, Sound

Output = str | float | int | tuple[str, ...] | None

ROLES = ("system", "user", "assistant", "tool")
_SPOKEN_BY = {  # other names of the roles, as in ShareGPT
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # its value is the call
    "observation": "tool",
    "function": "tool",  # OpenAI's before tool_calls
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")  # types of a content's parts
REASONING = ("reasoning_content", "reasoning", "thinking")  # names of a turn's reasoning in chat templates
FOR_TEMPLATES = (*REASONING, "tool_calls", "tool_call_id", "name")  # keys of a message for the chat template


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
      role: one of `ROLES`.
      content: the text. Empty only in a turn with tool calls or reasoning.
      learn: whether an assistant turn is trained on; False: context only.
      extra: further keys for the tokenizer's chat template, see `FOR_TEMPLATES`.
    """

    role: str
    content: str
    learn: bool = True
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def to_record(self) -> dict[str, object]:
        """A JSON-serializable dict; `read_message` is the inverse."""
        record: dict[str, object] = {"role": self.role, "content": self.content, **self.extra}
        return record if self.learn else record | {"weight": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One instruction with its answer, if known.

    Attributes:
      instruction: the instruction text. Empty only beside an `input`, `messages`, `images` or
        `sounds`.
      input: the text that the instruction is about; None: none.
      output: the answer: a text, a label name, a number or an item id; a tuple of several labels or items, or of one
        tag per word. None: unknown (the example can only be predicted).
      messages: a conversation, oldest turn first, instead of or beside the instruction.
      candidates: ids (or texts) of the items to choose from.
      history: ids of the items seen before, oldest first.
      task: name of the task; groups sources in a mixture.
      id: name of the record in reports.
      origin: provenance of a generated example: template, variant, user, split ...
      system: system prompt, before instruction or messages.
      tools: JSON schemas of the functions that the assistant may call, for the tokenizer's chat template.
      words: the words of `input`, one label each, where splitting `input` at spaces would not give them (words that
        are empty or contain a space).
      images: the pictures, in order; `<image>` marks their places in texts.
      sounds: the sounds, in order.
      where: file and line, or data set and row, of the record, for error messages. Ignored by comparisons.
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
    system: str | None = None
    tools: tuple[Mapping[str, object], ...] = field(default=(), hash=False)
    words: tuple[str, ...] = ()
    images: tuple[Picture, ...] = ()
    sounds: tuple[Sound, ...] = ()
    where: str = field(default="", compare=False)

    @property
    def media(self) -> tuple[Picture, ...]:
        """The pictures and the sounds."""
        return self.images + self.sounds

    def to_record(self) -> dict[str, object]:
        """A JSON-serializable dict without the empty fields; `from_record` is the inverse."""
        record: dict[str, object] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if name in ("messages", "images", "sounds"):
                value = [each.to_record() for each in value]
            elif name == "origin":
                value = dict(value)
            elif isinstance(value, tuple):
                value = list(value)
            if name == "output" and value is not None or value not in (None, "", [], {}):
                record[name] = value  # an output of 0, "" or [] is not missing
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, object], where: str = "") -> "Example":
        """The inverse of `to_record`, which leaves out `where`.

        Raises:
          BadExample: an unknown key, or a value that `check_example` refuses.
        """
        if not isinstance(record, Mapping):
            raise BadExample("record", "wrong type", f"expected an object with named fields, found {show(record)}.")
        for name in record:
            if name not in _FIELDS:
                raise BadExample(str(name), "unknown field", f"an example has the fields {', '.join(_FIELDS)}.")
        messages = record.get("messages", [])
        if not isinstance(messages, list | tuple):
            raise BadExample("messages", "wrong type", f"expected a list of messages, found {show(messages)}.")
        turns = tuple(read_message(m, f"messages[{number}]") for number, m in enumerate(messages))
        tools = read_tools(record.get("tools"))

        def listed(name: str) -> object:
            value = record.get(name, ())
            return tuple(value) if isinstance(value, list) else value

        return cls(
            instruction=check_text(
                record.get("instruction", ""),
                "instruction",
                allow_blank=bool(turns or any(record.get(name) for name in ("input", "images", "sounds"))),
            ),
            input=_text_or_none(record.get("input"), "input"),
            output=_check_output(listed("output") if "output" in record else None),
            messages=check_messages(turns),
            system=_text_or_none(record.get("system"), "system"),
            candidates=check_texts(listed("candidates"), "candidates"),
            history=check_texts(listed("history"), "history"),
            words=_check_words(listed("words")),
            images=_read_media(record.get("images", ()), "images", Picture),
            sounds=_read_media(record.get("sounds", ()), "sounds", Sound),
            task=check_text(record.get("task", ""), "task", allow_blank=True),
            id=check_text(record.get("id", ""), "id", allow_blank=True),
            origin=_check_origin(record.get("origin", {})),
            tools=tools,
            where=where,
        )


_FIELDS = tuple(f.name for f in fields(Example) if f.name != "where")


class BadExample(ValueError):
    """A record that is not a valid `Example`.

    Attributes:
      field: the field of the example, e.g. `output` or `messages[2].content`; "" for an unreadable record.
      reason: category for counting: malformed line, missing column, wrong type, empty text, unknown label ...
      detail: the value found and the remedy, in a sentence.
      where: file and line, or data set and row; "" until the source fills it in.
    """

    def __init__(self, field: str, reason: str, detail: str, where: str = "") -> None:
        super().__init__(field, reason, detail, where)
        self.field, self.reason, self.detail, self.where = field, reason, detail, where

    def at(self, where: str) -> "BadExample":
        """The same error with `where` set."""
        return BadExample(self.field, self.reason, self.detail, where)

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.where, self.field and f"field {self.field!r}") if part)
        return f"{place}: {self.reason}: {self.detail}" if place else f"{self.reason}: {self.detail}"


def is_blank(value: object) -> bool:
    """Whether a cell is null or an empty text, list or object. (0 and false are values.)"""
    return value is None or isinstance(value, str | list | tuple | dict) and not value


def read_message(turn: object, place: str, ignore: frozenset[str] = frozenset()) -> Message:
    """Reads a turn, {role, content} or {from, value}. An unknown key is an error unless it is ignored by name.

    A content may be a list of parts: texts are joined, thinking becomes `reasoning_content`, others are errors. A turn
    of `function_call`, or with such a key, is a turn of the assistant with `tool_calls`.

    `weight` (0 or 1) and `train` (true or false) say whether an assistant turn is trained on. The keys `FOR_TEMPLATES`
    go to the tokenizer's chat template.

    Args:
      ignore: keys to leave out.

    Raises:
      BadExample: a wrong type or an unknown key.
    """
    if not isinstance(turn, Mapping):
        raise BadExample(place, "wrong type", f"expected {{role, content}}, found {show(turn)}.")
    rest = {str(key): value for key, value in turn.items() if key not in ignore and not is_blank(value)}
    role = rest.pop("role" if "role" in rest else "from", None)
    content = rest.pop("content" if "content" in rest else "value", turn.get("content", turn.get("value")))
    if not isinstance(role, str):
        raise BadExample(f"{place}.role", "missing column", f"expected role (or from), found {show(turn)}.")
    if role == "function_call" or "function_call" in rest:
        called, content = (content, None) if role == "function_call" else (rest.pop("function_call"), content)
        if "tool_calls" in rest:
            raise BadExample(place, "two calls", "it has tool_calls beside a function_call: remove one of them.")
        rest["tool_calls"] = _decoded(called, place)
    role = _SPOKEN_BY.get(role, role)
    if isinstance(content, list | tuple):
        content, thoughts = _joined(content, f"{place}.content", ignore)
        if thoughts and any(name in rest for name in REASONING):
            raise BadExample(f"{place}.content", "two thoughts", "it has thinking parts beside a key with reasoning.")
        rest |= {"reasoning_content": thoughts} if thoughts else {}
    extra = {name: rest.pop(name) for name in FOR_TEMPLATES if name in rest}
    for name in (*REASONING, "tool_call_id", "name"):
        if name in extra:
            check_text(extra[name], f"{place}.{name}")
    if "tool_calls" in extra:
        extra["tool_calls"] = _tool_calls(extra["tool_calls"], place)
    learn = _is_learned(rest, role, place)
    if rest:
        names = ", ".join(f"messages.{name}" for name in rest)
        detail = f"this key of a message is unknown: to leave it out, set fields.ignore to [{names}]."
        raise BadExample(f"{place}.{next(iter(rest))}", "unread field", detail)
    may_be_blank = "tool_calls" in extra or any(name in extra for name in REASONING)
    if not may_be_blank and "content" not in turn and "value" not in turn:
        raise BadExample(place, "missing column", f"expected content (or value), found {show(turn)}.")
    content = check_text("" if content is None and may_be_blank else content, f"{place}.content", may_be_blank)
    return Message(role, content, learn, extra)


def _joined(parts: Iterable[object], place: str, ignore: frozenset[str]) -> tuple[str, str]:
    """(text, thinking) of the parts of a content. Raises `BadExample` naming a part of another type."""
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(parts):
        here = f"{place}[{number}]"
        if not isinstance(part, Mapping):
            raise BadExample(here, "wrong type", f'expected {{"type": "text", "text": ...}}, found {show(part)}.')
        rest = {str(key): value for key, value in part.items() if key not in ignore and not is_blank(value)}
        kind = rest.pop("type", "text" if "text" in rest else None)
        if kind == "image" and not rest:  # its picture is among those of the example
            texts.append(MARK)
            continue
        name, found = ("text", texts) if kind in _TEXT_PARTS else (kind, thoughts)
        if kind not in (*_TEXT_PARTS, *REASONING):
            detail = f"a part of type {show(kind)} is not read, only text and image: remove the part or the row."
            raise BadExample(here, "unread part", detail)
        found.append(check_text(rest.pop(name, ""), f"{here}.{name}", allow_blank=True))
        if rest:
            named = ", ".join(f"messages.{key}" for key in rest)
            detail = f"this key of a part is unknown: to leave it out, set fields.ignore to [{named}]."
            raise BadExample(f"{here}.{next(iter(rest))}", "unread field", detail)
    return "".join(texts), "".join(thoughts)


def _decoded(call: object, place: str) -> object:
    """A call, or a list of calls, as ShareGPT has it: often as JSON text."""
    if not isinstance(call, str):
        return call
    try:
        return json.loads(call)
    except ValueError as error:
        shape = 'expected the JSON of a call, {"name": ..., "arguments": {...}}'
        raise BadExample(place, "wrong type", f"function_call: {shape}, found {show(call)} ({error}).") from None


def _is_learned(rest: dict[str, object], role: str, place: str) -> bool:
    """Whether to train on the turn; removes the keys `weight` and `train` from `rest`."""
    learn = True
    for name in ("weight", "train"):
        if name not in rest:
            continue
        value = rest.pop(name)
        if value not in (0, 1) or not isinstance(value, bool | int | float):
            detail = f"found {show(value)}: use 1 or true to train on a turn, 0 or false for context only."
            raise BadExample(f"{place}.{name}", "wrong type", detail)
        if value and role != "assistant":
            detail = f"only assistant turns are trained on, but this role is {role}: remove {name}, or set it to 0."
            raise BadExample(f"{place}.{name}", "not learned", detail)
        learn = learn and bool(value)
    return learn or role != "assistant"


def _tool_calls(calls: object, place: str) -> list[dict[str, object]]:
    """Tool calls as chat templates read them, with arguments as an object (decoded if the file has a JSON text)."""
    shape = 'tool_calls: expected a list of {"function": {"name": ..., "arguments": {...}}}'
    read: list[dict[str, object]] = []
    for call in calls if isinstance(calls, list | tuple) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else call
        is_named = isinstance(function, Mapping) and isinstance(function.get("name"), str)
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not is_named:
            raise BadExample(place, "wrong type", f"{shape}, found {show(call)}.")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise BadExample(place, "wrong type", f"{shape}; the arguments are invalid JSON ({error}).") from None
        if not isinstance(arguments, Mapping):
            raise BadExample(place, "wrong type", f"{shape}; the arguments are {show(arguments)}.")
        made = {**function, "arguments": dict(arguments)}
        read.append({**call, "function": made} if "function" in call else {"type": "function", "function": made})
    return read


def read_tools(value: object) -> tuple[Mapping[str, object], ...]:
    """The tools of a record, given as a list of JSON schemas or as its JSON text. Raises `BadExample` otherwise."""
    if is_blank(value) or isinstance(value, str) and not value.strip():
        return ()
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError as error:
            raise BadExample("tools", "wrong type", f"expected JSON, found {show(value)} ({error}).") from None
    if not isinstance(found, list | tuple) or not all(isinstance(tool, Mapping) for tool in found):
        detail = f"expected a list of JSON schemas, found {show(value)}; to leave it out, set fields.ignore to [tools]."
        raise BadExample("tools", "wrong type", detail)
    return tuple(found)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 60


def show(value: object) -> str:
    """A value and its type, short enough for an error message."""
    return "null" if value is None else f"{type(value).__name__} {_shortener.repr(value)}"


def suggest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean "x"?', or "" when no choice resembles the word."""
    close = difflib.get_close_matches(word[:200], [choice for choice in choices if len(choice) <= 200], 1)
    return f' Did you mean "{close[0]}"?' if close else ""


def check_text(value: object, field: str, allow_blank: bool = False) -> str:
    """Returns the text unchanged.

    Raises:
      BadExample: not a text, blank, or with characters that no tokenizer accepts (NUL, lone surrogates).
    """
    if not isinstance(value, str):
        raise BadExample(field, "wrong type", f"expected text, found {show(value)}.")
    if not allow_blank and not value.strip():
        raise BadExample(field, "empty text", f"expected text, found {value[:20]!r}: fill it in or remove the row.")
    if "\x00" in value:
        place = value.index("\x00")
        detail = f"character {place} is NUL (\\x00), so the file may be damaged: remove it ({show(value)})."
        raise BadExample(field, "unusable character", detail)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        detail = (
            f"character {error.start} is half a surrogate pair (\\u{ord(value[error.start]):04x}), not text: "
            "write the file again from the original text, as UTF-8."
        )
        raise BadExample(field, "unusable character", detail) from None
    return value


def check_number(value: object, field: str) -> int | float:
    """Returns the number unchanged. Raises `BadExample` when it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadExample(field, "wrong type", f"expected a number, found {show(value)}.")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise BadExample(field, "not a finite number", f"found {len(str(value)):,} digits, more than a float holds.")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadExample(field, "not a finite number", f"found {value}: correct the value or remove the row.")
    return value


def check_texts(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise BadExample(field, "wrong type", f"expected a tuple of texts, found {show(value)}.")
    for number, text in enumerate(value):
        check_text(text, f"{field}[{number}]")
    return value


def check_example(example: Example) -> Example:
    """Returns the example if every field has the type that `Example` documents.

    Raises:
      BadExample: a wrong type, an empty text, an unusable character or a number that is not finite.
    """
    may_be_blank = bool(example.messages or example.input or example.media)
    check_text(example.instruction, "instruction", allow_blank=may_be_blank)
    _text_or_none(example.input, "input")
    _check_output(example.output)
    check_messages(example.messages)
    _text_or_none(example.system, "system")
    check_texts(example.candidates, "candidates")
    check_texts(example.history, "history")
    _check_words(example.words)
    _check_media(example.images, "images", Picture)
    _check_media(example.sounds, "sounds", Sound)
    check_text(example.task, "task", allow_blank=True)
    check_text(example.id, "id", allow_blank=True)
    _check_origin(example.origin)
    return example


def _text_or_none(value: object, field: str) -> str | None:
    return None if value is None else check_text(value, field)


def _check_output(output: object) -> Output:
    if output is None:
        return None
    if isinstance(output, str):
        return check_text(output, "output")
    return check_texts(output, "output") if isinstance(output, tuple) else check_number(output, "output")


def _check_words(words: object) -> tuple[str, ...]:
    if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
        raise BadExample("words", "wrong type", f"expected a tuple of texts, found {show(words)}.")
    return words


def _read_media(records: object, place: str, kind: type[Media]) -> tuple[Media, ...]:
    try:
        return tuple(map(kind.from_record, records))  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"expected {kind.noun}s as `{kind.__name__}.to_record` writes them, found {show(records)} ({error})."
        raise BadExample(place, "wrong type", detail) from None


def _check_media(found: object, place: str, kind: type[Media]) -> None:
    if not isinstance(found, tuple) or not all(type(each) is kind for each in found):
        raise BadExample(place, "wrong type", f"expected a tuple of {kind.noun}s, found {show(found)}.")


def _check_origin(origin: object) -> Mapping[str, str]:
    if not isinstance(origin, Mapping):
        raise BadExample("origin", "wrong type", f"expected a mapping of texts, found {show(origin)}.")
    for name, text in origin.items():
        check_text(name, "origin")
        check_text(text, f"origin.{name}", allow_blank=True)
    return origin


def check_messages(messages: object) -> tuple[Message, ...]:
    if not isinstance(messages, tuple):
        raise BadExample("messages", "wrong type", f"expected a tuple of messages, found {show(messages)}.")
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, Message):
            raise BadExample(place, "wrong type", f"expected a Message, found {show(message)}.")
        if message.role not in ROLES:
            detail = f"found {show(message.role)}; the roles are {', '.join(ROLES)}."
            raise BadExample(f"{place}.role", "unknown role", detail)
        check_text(message.content, f"{place}.content", allow_blank=bool(message.extra))
    return messages


def check_labels(example: Example, labels: Iterable[str]) -> None:
    """Checks the output, or each of several outputs, against the labels (a missing output passes).

    Raises:
      BadExample: an output that is not a label.
    """
    labels = list(labels) if not isinstance(labels, list | tuple | frozenset | set) else labels
    several = example.output if isinstance(example.output, tuple) else None
    one = () if example.output is None else (example.output,)
    outputs: tuple[object, ...] = one if several is None else several
    for number, output in enumerate(outputs):
        place = "output" if several is None else f"output[{number}]"
        if not isinstance(output, str):
            detail = f"found {show(output)}, not a name: map numbers to names with fields.label_names."
            raise BadExample(place, "unknown label", detail)
        if output not in labels:
            listed = ", ".join(sorted(labels)[:20]) + (", ..." if len(labels) > 20 else "")
            detail = f"found {show(output)}; the labels are {listed}.{suggest(output, labels)}"
            raise BadExample(place, "unknown label", detail)
