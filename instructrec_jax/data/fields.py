"""Maps the columns of a record to the fields of an `Example`."""

import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from instructrec_jax.data.conversations import (
    JOINT,
    is_dialogue,
    join_columns,
    read_messages,
    with_earlier_turns,
    with_own_keys,
    without_nulls,
)
from instructrec_jax.data.example import (
    BadExample,
    Example,
    Message,
    Output,
    check_example,
    check_labels,
    check_number,
    check_text,
    is_blank,
    read_tools,
    show,
)
from instructrec_jax.data.field_values import (
    KEPT,
    as_number,
    id_text,
    kept_text,
    missing_column,
    origin_of,
    own_words,
    record_id,
)
from instructrec_jax.data.labels import Labels, chosen, named
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import NO_FILES, PictureFolder, read_sounds, row_pictures
from instructrec_jax.data.unread import MEANING, check_ignored, unread_fields

OutputType = Literal["auto", "text", "number", "list", "candidate"]  # auto: the type in the file


@dataclass
class FieldsConfig:
    """The source of each field of an example.

    A value is one of:
      a column name, `text` (a dotted path reaches inside: `translation.de`, `answers.text.0`);
      a template with columns in braces, `Is this review positive? {text}` (`{{` and `}}` are literal braces);
      a fixed text after an equals sign, `=Summarize the text.`;
      null: the field is empty.

    The defaults read records with the field names of `Example`, hence also Alpaca files (instruction, input, output)
    and conversations (messages). With a default, the column may be missing, except `instruction` (without `input`) and
    `output` in a record without messages; usual names are then looked for (`text` and `label`: see `usual_columns`).
    Every other column must exist.

    A conversation is a list of {role, content} or of {from, value}. Of several columns joined (`prompt + completion`),
    the last one is trained on; a text stands for a turn of the user in the first and of the assistant in the others.

    With output_type candidate, an answer is the candidate's label if the record has labels (`choices.label` beside
    `choices.text`); otherwise a number counted from 0 or a letter from A.
    """

    instruction: str | None = "instruction"  # A column, a template "Translate: {text}", or a fixed text "=Translate.".
    input: str | None = "input"  # Text that the instruction is about: likewise (a list of words is joined).
    output: str | None = "output"  # The target: likewise. Null: no target (data to predict).
    output_type: OutputType = "auto"  # text: 318 -> "318"; number: "3.5" -> 3.5; candidate: 0, A or its label.
    label_names: dict[int, str] = field(default_factory=dict)  # Names of class numbers: {0: negative, 1: positive}.
    messages: str | None = "messages"  # Column with a conversation, or columns joined: prompt + completion.
    system: str | None = "system"  # System prompt: a column, a template, or "=a fixed text".
    tools: str | None = "tools"  # Column with the tools that the assistant may call: a list of JSON schemas.
    ignore: list[str] = field(default_factory=list)  # Columns to leave out, and keys of messages: messages.weight.
    keep: list[str] = field(default_factory=list)  # Columns that no task reads, for groups: see `evaluate --by`.
    candidates: str | None = "candidates"  # Ids or texts to choose from: a list, or text (see separator; else one).
    history: str | None = "history"  # Ids of items seen, oldest first: list or text (see separator); or earlier turns.
    task: str | None = "task"  # Task name, unless the source sets one.
    id: str | None = "id"  # Name of the record in reports.
    origin: str | None = "origin"  # Column with the provenance: a text, or an object (of lists, the first entry).
    image: str | None = "image"  # Column with a picture or a list of them: path, bytes or base64 (also: images).
    audio: str | None = "audio"  # Column with a sound or a list of them: path, bytes or base64.
    separator: str = ""  # Splits a text cell into a list, as in "12|55|9": useful in CSV files.


_MISSING = object()
_IMAGES = "images"  # the other name of the column of pictures
_MEDIA = ("image", "audio")


@dataclass(frozen=True, slots=True)
class _Recipe:
    """A parsed value of `FieldsConfig`: a column, or alternating texts and columns."""

    parts: tuple[tuple[str, str | None], ...]  # (fixed text, column after it or None), as string.Formatter splits them
    column: str | None  # the value is this column, of any type

    @property
    def columns(self) -> list[str]:
        return [self.column] if self.column else [column for _, column in self.parts if column]


def _parse(field: str, value: str) -> _Recipe:
    place = f"setting `fields.{field}`"
    if field == "messages" and JOINT in value:
        columns = [column.strip() for column in value.split(JOINT.strip())]
        if not all(columns) or len(set(columns)) < len(columns):
            raise ValueError(f"{place}: {value!r} must join different columns, as in prompt + completion.")
        return _Recipe(tuple(("", column) for column in columns), None)
    if value.startswith("="):
        if not value[1:].strip():
            raise ValueError(f"{place}: no text follows the equals sign; use null to leave the field empty.")
        return _Recipe(((value[1:], None),), None)
    if "{" not in value and "}" not in value:
        if not value.strip():
            raise ValueError(f"{place}: empty; name a column, or use null to leave the field empty.")
        return _Recipe((), value)
    try:
        pieces = list(string.Formatter().parse(value))
    except ValueError as error:
        message = f"{place}: {value!r} is not a valid template ({error}); write {{{{ and }}}} for literal braces."
        raise ValueError(message) from None
    for _, column, spec, conversion in pieces:
        if column is not None and (not column.strip() or spec or conversion):
            raise ValueError(f"{place}: the braces of the template {value!r} may hold a column name only.")
    return _Recipe(tuple((text, column) for text, column, _, _ in pieces), None)


def look_up(row: Mapping[str, object], path: str) -> object:
    """The value of a column or of a dotted path into it; `_MISSING` if there is none."""
    if path in row:
        return row[path]
    value: object = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def no_numbers(task: str) -> bool:
    """No task learns from numbers. (A function of the module, because workers receive it.)"""
    return False


class FieldMapper:
    """Turns records into examples: `mapper(row) -> Example`.

    Args:
      fields: the source of each field.
      task: task name of every example; "": the record's own.
      labels: if given, every output must be one of them.
      class_names: label names of class columns, by column (from `datasets` or tfds).
      numbers: whether the task named so learns from numbers, which are then read from text cells.
      mask: replaces personal data in each example; see `data.masked`.
      optional_output: whether an example may have no output.

    Raises:
      ValueError: an invalid setting. Calling the mapper raises `BadExample`.
    """

    def __init__(
        self,
        fields: FieldsConfig,
        *,
        task: str = "",
        labels: Sequence[str] | None = None,
        class_names: Mapping[str, Sequence[str]] | None = None,
        numbers: Callable[[str], bool] = no_numbers,
        mask: Callable[[Example], Example] | None = None,
        optional_output: bool = False,
    ) -> None:
        self.fields, self.task, self.numbers, self.mask = fields, task, numbers, mask
        self.optional_output = optional_output
        self.labels = None if labels is None else Labels(labels)
        self.answer_styles: Counter[str] = Counter()  # of output_type candidate, see `labels.chosen`
        self.class_names = {c: dict(enumerate(names)) for c, names in (class_names or {}).items()}
        values = {name: getattr(fields, name) for name in _MAPPED}
        values = {name: None if name == value and name in fields.ignore else value for name, value in values.items()}
        self.recipes = {name: None if value is None else _parse(name, value) for name, value in values.items()}
        for name in ("messages", "origin", "tools", "image", "audio"):
            recipe = self.recipes[name]
            if recipe and not recipe.column and not (name == "messages" and JOINT in (values[name] or "")):
                raise ValueError(f"setting `fields.{name}`: {values[name]!r} must be a column name.")
        if not any(self.recipes[name] for name in ("instruction", "messages", "input", *_MEDIA)):
            raise ValueError("settings `fields`: instruction, input, messages, image and audio are all null; set one.")
        if fields.label_names and fields.output_type in ("number", "text", "candidate"):
            message = f"label_names contradicts output_type: {fields.output_type}; drop one."
            raise ValueError(f"settings `fields`: {message}")

        named = {column for recipe in self.recipes.values() if recipe for column in recipe.columns}
        named |= {self._candidate_labels()} - {""}
        named |= {_IMAGES} if fields.image == "image" and _IMAGES not in fields.ignore else set()
        self.used = named | {column.split(".")[0] for column in [*named, *fields.keep]} | set(fields.keep)
        self.ignored = check_ignored(fields.ignore, named) | {name for name, value in values.items() if value is None}
        self.ignored_keys = frozenset(
            name.removeprefix("messages.") for name in self.ignored if name.startswith("messages.")
        )

    def columns(self) -> set[str]:
        """The columns to read; of a dotted path also its first part."""
        return self.used | (MEANING - self.ignored)

    def unread(self, row: Mapping[str, object], all_columns: Sequence[str] | None = None) -> list[str]:
        """The non-empty columns of a row that are neither read nor ignored: see `data.unread`."""
        rest = unread_fields(row, self.used, self.ignored)
        unseen = [] if all_columns is None else [name for name in all_columns if name not in row]
        return rest + [name for name in unseen if name not in self.used and name not in self.ignored]

    def _candidate_labels(self) -> str:
        """The column with the candidates' labels: `choices.label` beside `choices.text`; "" if none."""
        column = (self.recipes["candidates"] and self.recipes["candidates"].column) or ""
        return column.removesuffix("text") + "label" if column.endswith(".text") else ""

    def __call__(
        self,
        row: Mapping[str, object],
        all_columns: Sequence[str] | None = None,
        folder: PictureFolder = NO_FILES,
    ) -> Example:
        """Maps a row, whose pictures lie in `folder`. `all_columns`: those to name in an error where it holds fewer."""
        there = list(row) if all_columns is None else list(all_columns)

        def value(name: str) -> object:
            recipe = self.recipes[name]
            return None if recipe is None else self._value(name, recipe, row, there)

        unread_fields(row, self.used, self.ignored)
        row, images = self._images(row, value("image"), folder)
        sounds = read_sounds(value("audio"), folder)
        messages, tools = self._messages(row, there), read_tools(value("tools"))
        if all_columns is not None:  # a row of an Arrow table
            messages, tools = with_own_keys(messages), read_tools(without_nulls(tools))
        instruction, output = value("instruction"), value("output")
        candidates, history = self._ids("candidates", value("candidates")), value("history")
        if self.fields.output_type == "candidate":
            called = look_up(row, self._candidate_labels())
            output = chosen(output, candidates, None if called is _MISSING else called, self.answer_styles)
        listed, own = value("input"), self.task or self._text("task", value("task"), True) or ""
        recipe = self.recipes["instruction"]
        no_instruction = recipe is None or not self.is_named("instruction") and "instruction" not in row
        alone = bool(messages) or no_instruction and not (is_blank(listed) and not images and not sounds)
        example = Example(
            instruction=self._text("instruction", instruction, alone) or "",
            input=self._text("input", listed, True),
            output=None if self._may_lack(output, messages) else self._output(output, own),
            messages=messages,
            candidates=candidates,
            history=() if is_dialogue(history) else self._ids("history", history),
            task=own,
            id=record_id(value("id")),
            origin=origin_of(value("origin"), self.fields.origin or "") | self._kept(row),
            system=self._text("system", value("system"), True),
            tools=tools,
            words=own_words(listed) if isinstance(output, list | tuple) else (),
            images=images,
            sounds=sounds,
        )
        if is_dialogue(history):
            example = with_earlier_turns(example, history)
        check_example(example)
        if self.labels is not None:
            check_labels(example, self.labels.names)
        return example if self.mask is None else self.mask(example)

    def _kept(self, row: Mapping[str, object]) -> dict[str, str]:
        """The columns of `fields.keep` that the row has, under names of their own in its origin."""
        found = {KEPT + name: look_up(row, name) for name in self.fields.keep}
        return {key: said for key, cell in found.items() if cell is not _MISSING and (said := kept_text(cell, key))}

    def _may_lack(self, output: object, messages: Sequence[Message]) -> bool:
        if self.optional_output and (output is None or isinstance(output, str) and not output.strip()):
            return True
        return output is None and (bool(messages) or not self.recipes["output"])

    def _messages(self, row: Mapping[str, object], there: list[str]) -> tuple[Message, ...]:
        recipe = self.recipes["messages"]
        if recipe is None:
            return ()
        if recipe.column:
            value = self._value("messages", recipe, row, there)
            return read_messages(value, self.is_named("messages"), self.ignored_keys)
        found = {column: look_up(row, column) for column in recipe.columns}
        for column, cell in found.items():
            if cell is _MISSING:
                raise missing_column("messages", column, there)
        return join_columns(found, self.ignored_keys)

    def _images(
        self, row: Mapping[str, object], own: object, folder: PictureFolder
    ) -> tuple[Mapping[str, object], tuple[Picture, ...]]:
        """(the row without pictures in its messages, all pictures). own: the value of the field."""
        if self.recipes["image"] is None:
            return row, ()
        more = None if self.is_named("image") or _IMAGES in self.ignored else row.get(_IMAGES)
        column = (self.recipes["messages"] and self.recipes["messages"].column) or ""
        turns, pictures = row_pictures({"image": own, _IMAGES: more}, row.get(column), folder)
        return ({**row, column: turns} if column in row else row), pictures

    def columns_of(self, name: str) -> list[str]:
        """The columns that a field is read from."""
        recipe = self.recipes[name]
        return [] if recipe is None else recipe.columns

    def is_named(self, name: str) -> bool:
        """Whether the user named this field's column, so that it must exist."""
        recipe = self.recipes[name]
        return recipe is not None and recipe.column != name

    def _value(self, name: str, recipe: _Recipe, row: Mapping[str, object], there: list[str]) -> object:
        if recipe.column:
            value = look_up(row, recipe.column)
            if value is not _MISSING:
                return value
            if recipe.column == name and (name not in ("instruction", "output") or self._has_messages(row)):
                return None
            if name == "output" and self.optional_output:
                return None
            if recipe.column == name == "instruction" and any(self._has(each, row) for each in ("input", *_MEDIA)):
                return None  # the input is a text of its own, and a picture or sound needs none
            raise missing_column(name, recipe.column, there)
        text = ""
        for fixed, column in recipe.parts:
            text += fixed
            if column is not None:
                value = look_up(row, column)
                if value is _MISSING:
                    raise missing_column(name, column, there)
                text += self._filling(name, column, value)
        return text

    def _has_messages(self, row: Mapping[str, object]) -> bool:
        return self._has("messages", row)

    def _has(self, name: str, row: Mapping[str, object]) -> bool:
        """Whether a record has a value for a field that is read from a column (or any template)."""
        recipe = self.recipes[name]
        if recipe is None or not recipe.column:
            return recipe is not None
        value = look_up(row, recipe.column)
        if name == "image" and value is _MISSING and not self.is_named(name):
            value = row.get(_IMAGES)
        return value is not _MISSING and not is_blank(value)

    def _filling(self, name: str, column: str, value: object) -> str:
        place = f"{name} (column {column})"
        if column in self.class_names:
            return named(value, self.class_names[column], place)
        if isinstance(value, str):
            return check_text(value, place)
        try:
            return str(check_number(value, place))
        except BadExample as error:
            if error.reason != "wrong type":
                raise
            raise BadExample(place, "wrong type", f"expected text or a number, found {show(value)}.") from None

    def _text(self, name: str, value: object, optional: bool) -> str | None:
        if name == "input" and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            value = " ".join(value)  # words, or sentences
        if optional and (value is None or isinstance(value, str) and not value.strip()):
            return None
        if value is None:
            raise BadExample(name, "empty text", "found null: fill it in or remove the row.")
        try:
            return check_text(value, name)
        except BadExample as error:
            recipe = self.recipes[name]
            if error.reason == "wrong type" and recipe is not None and recipe.column:
                hint = f'to make text of it, set fields.{name} to "{{{recipe.column}}}"'
                if isinstance(value, bytes):
                    hint = "write the column as text, not as binary"
                elif not isinstance(value, int | float):
                    hint = f"name the text inside of it in fields.{name}, or write it as text"
                hint += f"; to leave the column out, set fields.{name} to null." if optional else "."
                raise BadExample(name, error.reason, f"{error.detail[:-1]}; {hint}") from None
            raise

    def _output(self, value: object, task: str) -> Output:
        recipe = self.recipes["output"]
        names = self.fields.label_names or self.class_names.get((recipe and recipe.column) or "", {})
        kind = self.fields.output_type
        if kind == "auto" and not names and isinstance(value, str) and self.numbers(task):
            kind = "number"
        if isinstance(value, str) and kind == "list":
            value = self._split("output", value)
        if isinstance(value, list | tuple):
            if kind in ("text", "number"):
                raise BadExample("output", "wrong type", f"expected one {kind}, found {show(value)}.")
            places = [f"output[{number}]" for number in range(len(value))]
            return tuple(
                named(v, names, p) if names else self._label(v) or id_text(v, p)
                for v, p in zip(value, places, strict=True)
            )
        if kind == "list":
            raise BadExample("output", "wrong type", f"expected a list, found {show(value)}.")
        if value is None or isinstance(value, str) and not value.strip():
            detail = f"found {show(value)}: fill it in, remove the row, or set fields.output to null."
            raise BadExample("output", "empty text", detail)
        if names and kind == "auto":
            return named(value, names, "output")
        if kind in ("auto", "text") and (label := self._label(value)) is not None:
            return label
        if kind == "text":
            return id_text(value, "output")
        if kind == "number":
            return check_number(as_number(value) if isinstance(value, str) else value, "output")
        if isinstance(value, bool):
            detail = f"found {show(value)}: name both values with fields.label_names: {{0: no, 1: yes}}."
            raise BadExample("output", "wrong type", detail)
        if not isinstance(value, str | int | float):
            raise BadExample("output", "wrong type", f"expected text, a number or a list, found {show(value)}.")
        return value

    def _label(self, value: object) -> str | None:
        """The task's label that equals a value (text, number or boolean) in normalized form, or None."""
        return None if self.labels is None else self.labels.find(value)

    def _split(self, name: str, value: str) -> list[str]:
        if not self.fields.separator:
            detail = f"expected a list, found {show(value)}: set fields.separator to the cell's separator."
            raise BadExample(name, "wrong type", detail)
        return [part.strip() for part in value.split(self.fields.separator)] if value.strip() else []

    def _ids(self, name: str, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            whole = name == "candidates" and self.is_named(name) and not self.fields.separator  # such as rejected
            value = [] if not value.strip() else [value] if whole else self._split(name, value)
        if not isinstance(value, list | tuple):
            hint = f"set fields.{name} to null if the column is unrelated."
            raise BadExample(name, "wrong type", f"expected a list of ids, found {show(value)}; {hint}")
        return tuple(id_text(item, f"{name}[{number}]") for number, item in enumerate(value))


_MAPPED = (
    *("instruction", "input", "output", "messages", "system", "tools"),
    *("candidates", "history", "task", "id", "origin", "image", "audio"),
)
