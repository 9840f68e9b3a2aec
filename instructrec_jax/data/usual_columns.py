"""Finds the columns of usual names (`text` and `label`, say) where a file lacks the default ones.

    messages      conversations, conversation, dialogue, dialog
    pieces        prompt + completion, of which one is a list of messages
    preferences   chosen beside rejected, with or without prompt; rejected is ignored
    words         tokens, words, or text ...                 with tags, ner_tags, pos_tags, labels
    pair          premise + hypothesis, sentence1 + sentence2, question1 + question2 ...
    question      question + context                         with answer, answers (SQuAD's too)
    text          text, sentence, review, content ..., prompt, query, question
                                                             with label, class, category, completion, response ...

Only fields that are left at their defaults are looked for, and only if their default column is missing. Where several
columns fit, none is taken.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from instructrec_jax.data.column_names import (
    ANSWERS,
    CONTEXTS,
    LABELS,
    MESSAGES,
    NUMBERS,
    PAIRS,
    PREFERENCES,
    PROMPTS,
    QUESTIONS,
    TAGS,
    TEXTS,
    WORDS,
)
from instructrec_jax.data.conversations import JOINT
from instructrec_jax.data.example import Example, is_blank
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.media.picture_references import NO_FILES, PictureFolder


def usual_fields(fields: FieldsConfig, columns: Sequence[str], row: Mapping[str, object]) -> FieldsConfig:
    """The fields with the usual columns in place of missing default ones.

    Args:
      columns: all columns of the source.
      row: one of its records; tells lists and objects from texts.
    """
    if fields.messages not in (None, "messages"):
        return fields  # the user named the conversation
    if fields.messages is not None and fields.messages in columns and not is_blank(row.get(fields.messages)):
        return fields
    if _is_missing(fields, "messages", columns) and _is_missing(fields, "instruction", columns):
        found = _only(MESSAGES, [name for name in columns if _may_be_turns(row, name)])
        if found is not None:
            return replace(fields, messages=found)
        if _is_missing(fields, "output", columns) and (pieces := _pieces(fields, columns, row)) is not None:
            return pieces
    asked = _asked(columns, row) if _is_missing(fields, "instruction", columns) else {}
    if fields.input != "input" or "input" in columns:
        asked = {} if "input" in asked else asked
    taken = {*asked.values(), fields.instruction, fields.input}
    said = _said(columns, row, taken, tags="instruction" not in asked and "input" in asked)
    changes: dict[str, str] = asked | (said if _is_missing(fields, "output", columns) else {})
    if fields.origin != "origin" or "origin" in columns:
        changes.pop("origin", None)
    return replace(fields, **changes) if changes else fields  # type: ignore[arg-type]  # texts only


class RecordMapper:
    """Turns records into examples, as `FieldMapper`, where each may have other columns: usual names are found in each.

    Args:
      make: the mapper of the given fields.
    """

    def __init__(self, fields: FieldsConfig, make: Callable[[FieldsConfig], FieldMapper] = FieldMapper) -> None:
        self.fields, self.make = fields, make
        self.mappers: dict[tuple[str, ...], FieldMapper] = {}  # by columns

    def __call__(
        self, row: Mapping[str, object], all_columns: Sequence[str] | None = None, folder: PictureFolder = NO_FILES
    ) -> Example:
        """The example of a record; arguments and errors as those of a `FieldMapper`."""
        names = tuple(row if all_columns is None else all_columns)
        if names not in self.mappers:
            if len(self.mappers) == 100:  # what a long-lived object remembers is bounded
                self.mappers.clear()
            self.mappers[names] = self.make(usual_fields(self.fields, names, row))
        return self.mappers[names](row, all_columns, folder)


def usual_note(source: str, before: FieldsConfig, after: FieldsConfig) -> str:
    """One line on the fields that `usual_fields` found."""
    named = {name: value for name, value in vars(after).items() if value != getattr(before, name)}
    listed = ", ".join(f"{name}: {value}" for name, value in named.items())
    left = [name for name in after.ignore if name not in before.ignore]
    more = f"; the answers of {left[0]} are left out: training is on the chosen ones" if left else ""
    return f"source {source}: columns found by their usual names: fields: {{{listed}}}{more}"


def _may_be_turns(row: Mapping[str, object], name: str) -> bool:
    """Whether a column holds lists. (A column that was not read may.)"""
    return name not in row or isinstance(row[name], list | tuple)


def _pieces(fields: FieldsConfig, columns: Sequence[str], row: Mapping[str, object]) -> FieldsConfig | None:
    """The fields of a prompt with its completion, or with a chosen and a rejected answer; None: others."""
    by_name = {name.strip().lower(): name for name in columns}
    prompt, is_pair = by_name.get("prompt"), set(PREFERENCES) <= set(by_name)
    said = by_name[PREFERENCES[0]] if is_pair else by_name.get("completion")
    if said is None or prompt is None and not (is_pair and _may_be_turns(row, said)):
        return None
    if not is_pair and isinstance(row.get(by_name.get("label", "")), bool):
        return None  # the label says whether the completion is a good one
    ignore = [*fields.ignore, by_name[PREFERENCES[1]]] if is_pair else fields.ignore
    if prompt is None:
        return replace(fields, messages=said, ignore=ignore)
    if isinstance(row.get(prompt), list | tuple) or isinstance(row.get(said), list | tuple):
        return replace(fields, messages=f"{prompt}{JOINT}{said}", ignore=ignore)
    return replace(fields, instruction=prompt, output=said, ignore=ignore) if is_pair else None


def _is_missing(fields: FieldsConfig, name: str, columns: Sequence[str]) -> bool:
    """Whether a field is left at its default, whose column the source lacks."""
    return getattr(fields, name) == name and name not in columns


def _asked(columns: Sequence[str], row: Mapping[str, object]) -> dict[str, str]:
    """instruction and input."""
    by_name = {name.strip().lower(): name for name in columns}
    for name in WORDS:
        if name in by_name and isinstance(row.get(by_name[name]), list | tuple):
            return {"input": by_name[name]}
    for first, second in PAIRS:
        if first in by_name and second in by_name:
            return {"instruction": by_name[first], "input": by_name[second]}
    question, context = _only(QUESTIONS, columns), _only(CONTEXTS, columns)
    if question is not None and context is not None:
        return {"instruction": question, "input": context}
    found = _only((*TEXTS, *PROMPTS), columns)
    return {} if found is None else {"instruction": found}


def _said(columns: Sequence[str], row: Mapping[str, object], taken: Iterable[str | None], tags: bool) -> dict[str, str]:
    """output; and origin, for the places of SQuAD's answers."""
    rest = [name for name in columns if name not in taken]
    kinds = (TAGS, LABELS) if tags else (LABELS + ANSWERS, NUMBERS)
    for names in kinds:
        if (found := _only(names, rest)) is not None:
            value = row.get(found)
            if isinstance(value, Mapping) and "text" in value:
                return {"output": f"{found}.text"} | ({"origin": found} if "answer_start" in value else {})
            return {"output": found}
        if any(name.strip().lower() in names for name in rest):
            return {}  # several
    return {}


def _only(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The one column with one of the names, or None."""
    found = [name for name in columns if name.strip().lower() in names]
    return found[0] if len(found) == 1 else None
