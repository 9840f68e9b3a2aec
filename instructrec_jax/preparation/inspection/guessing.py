"""What a table is for: the task and the fields, each with the reason for the guess."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, get_args

from instructrec_jax.data.column_names import CONTEXTS, LABELS, PAIRS, PROMPTS, QUESTIONS, TAGS, TEXTS
from instructrec_jax.data.conversations import JOINT
from instructrec_jax.data.fields import FieldsConfig, look_up
from instructrec_jax.data.usual_columns import usual_fields
from instructrec_jax.preparation.inspection.columns import Column, Row, filled
from instructrec_jax.preparation.inspection.table import Guess, Setting, Table, as_list, names_of, need_writer
from instructrec_jax.preparation.inspection.targets import check_cells, is_id, labeled, target_of
from instructrec_jax.preparation.readers.table import USUAL

CANDIDATES = ("choices", "options", "candidates", "endings", "choices.text")
CHOSEN = ("answer", "answerkey", "answer_key", "label", "gold", "correct", "correct_answer", "output", "target")
RETRIEVED = ("positive", "passage", "document", "relevant", "answer", "response")
AnswerPlace = Literal["no answer", "in the text", "elsewhere"]
DEFAULTS = ("input", "messages", "system", "tools", "candidates", "history", "task", "origin")


def guess(table: Table) -> Guess:
    """The task and the fields of a table.

    Raises ValueError where no task fits, several do, or the task needs another backbone: says what to add.
    """
    if not table.rows:
        raise ValueError("there are no rows.")
    if table.target is not None and table.target not in table.columns:
        raise ValueError(f"--target {table.target!r} is not a column; the columns are {names_of(table.columns)}.")
    if pictures := [column.name for column in table.named(("image", "images")) if column.kind != "empty"]:
        raise ValueError(
            f"the column {pictures[0]!r} holds pictures, for which no configuration is guessed: write one as "
            "docs/images.md shows (without --out, the rows are shown)."
        )
    only = next(iter(table.columns))
    if len(table.columns) == 1 and (separators := [s for s in ";\t|" if s in only]):
        raise ValueError(
            f"there is one column, {only!r}: the cells seem to be separated by {separators[0]!r}. Save the file with "
            "commas as .csv, or with tabs as .tsv."
        )
    forms: tuple[Callable[[Table], Guess | None], ...] = (
        _pieces,
        _chat,
        _interactions,
        _tags,
        _choice,
        _question,
        _pair,
        _text,
    )
    found = next(made for form in forms if (made := form(table)) is not None)
    for column in (*found.inputs, found.target):
        if set("{}") & set(column) or column.startswith("="):
            raise ValueError(f"the column {column!r} needs another name: `fields` reads braces and = as a template.")
    return _without_others(found, table)


# ---------------------------------------------------------------- forms, the most special first


def _pieces(table: Table) -> Guess | None:
    """A prompt and its completion as messages, or chosen answers beside rejected ones."""
    if table.target is not None:
        return None
    row = {name: column.filled[0] for name, column in table.columns.items() if column.filled}
    found = usual_fields(FieldsConfig(), list(table.columns), row)
    messages, is_preferred = found.messages or "", bool(found.ignore)
    if JOINT not in messages and not is_preferred:
        return None
    need_writer(table, "the columns hold prompts with answers")
    if JOINT in messages:
        prompt, said = messages.split(JOINT)
        fields = {"messages": Setting(messages, f"{said!r} continues {prompt!r}, and is trained on")}
    elif messages in table.columns:
        prompt = said = messages
        fields = {"messages": Setting(said, "the conversation; every turn of the assistant is trained on")}
    else:
        prompt, said = str(found.instruction), str(found.output)
        fields = {"instruction": Setting(prompt, "the prompt"), "output": Setting(said, "its answer")}
    why = "the network writes the chosen answers; the rejected ones are left out" if is_preferred else ""
    return Guess({"type": Setting("language_model", why or f"the network writes {said!r}")}, fields, (prompt,), said)


def _chat(table: Table) -> Guess | None:
    found = [column for column in table.columns.values() if column.kind == "messages"]
    if not found:
        return None
    name = found[0].name
    need_writer(table, f"the column {name!r} holds conversations")
    why = f"{name!r} holds conversations (lists of role and content)"
    fields = {"messages": Setting(name, "the conversation; every turn of the assistant is trained on")}
    return Guess({"type": Setting("language_model", why)}, fields, (name,), name)


def _interactions(table: Table) -> Guess | None:
    """Raises ValueError for interactions of users with items."""
    simple = {name.lower().replace("_", ""): name for name in table.columns}
    user, item, time, rating = (
        [simple[name] for name in USUAL[kind] if name in simple] for kind in ("user", "item", "time", "rating")
    )
    words = max((column.words for column in table.columns.values() if column.kind == "text"), default=0.0)
    source = shlex.quote(table.files[0]) if table.files else "FILE"
    command = f"python -m instructrec_jax.prepare table --source {source} --items ITEMS_FILE --out FOLDER"
    if user and item and words < 4:
        raise ValueError(
            f"these are interactions of users with items (columns {user[0]!r} and {item[0]!r}), which"
            f" `prepare table` reads: {command}"
        )
    if (user or item) and (time or rating) and words < 2 and table.target is None:
        missing = "item" if user else "user"
        raise ValueError(
            f"these seem to be interactions of users with items (column {(user or item)[0]!r}, and no texts): name the "
            f"column of the {missing}s: {command} --{missing}_column COLUMN"
        )
    return None


def _tags(table: Table) -> Guess | None:
    columns = list(table.columns.values())
    lists = [column for column in columns if column.kind == "list"]
    texts = [column for column in columns if column.kind == "text"]
    for tagged in (lists, texts):
        named = [column for column in tagged if column.name.lower() in TAGS]
        target = named[0] if named else next((c for c in tagged if c.name.lower() in LABELS), None)
        if table.target is not None:
            target = next((column for column in tagged if column.name == table.target), None)
        if target is None or len(named) > 1 and table.target is None and tagged is texts:
            continue
        if len(named) > 1 and table.target is None:
            raise ValueError(f"several columns hold tags ({names_of(c.name for c in named)}): choose with --target.")
        if _tags_of(target)[1] < 2 or tagged is texts and not _few_words(target):
            continue
        for words in tagged:
            if words is not target and _tags_of(words) == _tags_of(target):
                check_cells(target)
                return _tagged(words, target, in_text=tagged is texts)
    return None


def _tagged(words: Column, target: Column, in_text: bool) -> Guess:
    reason = f"{target.name!r} has one tag for each word of {words.name!r} in every row"
    fields = {
        "input": Setting(words.name, "the words"),
        "output": Setting(target.name, "one tag per word"),
    }
    if in_text:
        fields["output_type"] = Setting("list", "a cell holds the tags of all words")
        fields["separator"] = Setting(" ", "between tags")
    return Guess({"type": Setting("token_classification", reason)}, fields, (words.name,), target.name)


def _choice(table: Table) -> Guess | None:
    listed = table.named(CANDIDATES, "list")
    objects = [c for c in table.named(CANDIDATES, "object") if all(_has(v, "text", "label") for v in c.filled)]
    answers = [c for c in table.named(CHOSEN) if table.target in (None, c.name)]
    asked = table.named(
        ("question", "prompt", "stem", "ctx", "query", "instruction", "premise", "goal", *TEXTS), "text"
    )
    if not (listed or objects) or not answers or not asked:
        return None
    column, target = (listed or objects)[0], answers[0]
    by_text = bool(listed) and all(
        value in said
        for value, said in zip(target.values, column.values, strict=True)
        if value and isinstance(said, list)
    )
    _check_count_from_0(column, target, by_text or bool(objects))
    kind = "choice" if table.writes else "similarity"
    why = f"each row lists its own candidates in {column.name!r}; "
    why += "a language model chooses by likelihood" if table.writes else "an encoder chooses by the vectors' similarity"
    fields = {"instruction": Setting(asked[0].name, "the question")}
    context = table.named(("article", "passage", "context"), "text")
    if context and context[0] is not asked[0]:
        fields["input"] = Setting(context[0].name, "the text that it is about")
    fields["candidates"] = Setting(column.name if listed else f"{column.name}.text", "the candidates")
    fields["output"] = Setting(target.name, "the right one")
    if not by_text:
        fields["output_type"] = Setting("candidate", "the right one's number (from 0), letter or label, not its text")
    inputs = (asked[0].name, *([context[0].name] if "input" in fields else []), column.name)
    return Guess({"type": Setting(kind, why)}, fields, inputs, target.name)


def _check_count_from_0(column: Column, target: Column, has_names: bool) -> None:
    if has_names or target.kind != "number":
        return
    if target.low >= 1 and target.high == column.most_entries:
        raise ValueError(
            f"the answers of {target.name!r} seem to count the candidates from 1: count from 0, or write letters."
        )


def _question(table: Table) -> Guess | None:
    asked, contexts = table.named(QUESTIONS, "text"), table.named(CONTEXTS, "text")
    answers = table.named(("answers", "answer", "output", "target"), "text", "object", "list", "mixed", "number")
    answers = [column for column in answers if table.target in (None, column.name)]
    if not (asked and contexts and answers):
        return None
    question, context, target = asked[0], contexts[0], answers[0]
    fields = {
        "instruction": Setting(question.name, "the question"),
        "input": Setting(context.name, "the text that holds the answer"),
    }
    squad = target.kind == "object" and all(_has(value, "text") for value in target.filled)
    if target.kind == "object" and not squad:
        return None
    path = f"{target.name}.text" if squad else target.name
    fields["output"] = Setting(path, "the answer")
    if squad and all(_has(value, "answer_start") for value in target.filled):
        fields["origin"] = Setting(target.name, "where the answer starts")
    found = Guess({"type": Setting("span")}, fields, (question.name, context.name), path)
    places = [answer_place(row, found) for row in table.sample]
    share = places.count("in the text") / max(1, len(places) - places.count("no answer"))
    if table.writes:
        return replace(found, task={"type": Setting("question_answering", "the network writes the answer")})
    if share < 0.9:
        need_writer(table, f"only {share:.0%} of the answers are in their {context.name!r}, so they have to be written")
    return replace(found, blank_targets=squad or target.kind == "list")


def answer_place(row: Row, found: Guess) -> AnswerPlace:
    """Where the answer of a row stands, for a guess of the task span."""
    said = filled(look_up(row, found.target))
    listed = [str(each) for each in as_list(said)] if isinstance(said, str | int | float | list) else []
    context = look_up(row, str(found.fields["input"].value))
    if not listed:
        return "no answer"
    return "in the text" if isinstance(context, str) and any(each in context for each in listed) else "elsewhere"


def with_answers(found: Guess, places: Mapping[AnswerPlace, int]) -> Guess:
    """The guess of the task span, with the settings that its rows need."""
    blank, inside, elsewhere = (places.get(place, 0) for place in get_args(AnswerPlace))
    share = inside / max(1, inside + elsewhere)
    context = found.fields["input"].value
    task = {"type": Setting("span", f"{share:.0%} of the answers are part of {context!r}")}
    if found.blank_targets and blank:
        task["no_answer"] = Setting(True, f"{blank:,} questions have no answer")
    if elsewhere:
        task["on_missing_answer"] = Setting("skip", "a few answers are not in their context; they are counted")
    return replace(found, task=task, blank_targets=found.blank_targets and bool(blank))


def _pair(table: Table) -> Guess | None:
    pairs = (*PAIRS, *((asked, other) for asked in QUESTIONS for other in RETRIEVED[:-2]))
    for first, second in pairs:
        found = table.named((first, second), "text")
        if len(found) < 2 or table.target in (first, second):
            continue
        left, right = found
        fields = {"instruction": Setting(left.name, "the first text"), "input": Setting(right.name, "the second one")}
        rest = [c for c in table.columns.values() if c not in found]
        target = target_of(table, rest)
        if target is not None:
            return labeled(table, fields, (left.name, right.name), target)
        fields = {
            "instruction": Setting(left.name, "the text to match"),
            "output": Setting(right.name, "the text that belongs to it; the others of the batch are negatives"),
        }
        negatives = min(9, right.different // 10 - 1)
        if negatives < 1:
            raise ValueError(f"{right.count} different texts in {right.name!r} are too few to choose among.")
        task = {
            "type": Setting("similarity", f"pairs of texts that belong together ({left.name}, {right.name})"),
            "negatives": Setting(
                negatives, "random answers of other rows that an evaluation compares with the right one"
            ),
        }
        return Guess(task, fields, (left.name,), right.name)
    return None


def _text(table: Table) -> Guess:
    columns = list(table.columns.values())
    target = target_of(table, columns)
    texts = [c for c in columns if c is not target and c.kind in ("text", "mixed") and not is_id(c)]
    if target is None:  # of two columns of texts, the last one is written
        listed = [c for c in texts if c.words >= 2]
        if len(listed) != 2:
            raise ValueError(
                f"nothing to learn was found: the columns are {names_of(table.columns)}. A text and a target (label, "
                "number, tags, answer) are needed; name the target with --target COLUMN."
            )
        target, texts = listed[1], listed[:1]
    if not texts:
        raise ValueError(
            f"there is no column of texts beside the target {target.name!r}; the columns are {names_of(table.columns)}."
        )
    longest = max(texts, key=lambda column: column.words)
    usual = [c for c in table.named(("instruction", *TEXTS, *PROMPTS)) if c in texts and c.words >= longest.words / 4]
    chosen = usual[0] if usual else longest
    others = [c for c in texts if c is not chosen and c.words >= 2]
    why = "a usual name" if usual else "the longest texts"
    fields = {"instruction": Setting(chosen.name, f"the text ({why})")}
    inputs = [chosen.name]
    if chosen.name == "instruction" and any(c.name == "input" for c in texts):
        fields["input"] = Setting("input", "the text that the instruction is about")
        inputs.append("input")
    elif others and not set("{}") & set(chosen.name + others[0].name):
        both = f"{{{others[0].name}}} {{{chosen.name}}}"
        fields["instruction"] = Setting(chosen.name, f'the text ({why}); to read two columns, write "{both}"')
    return labeled(table, fields, tuple(inputs), target)


# ---------------------------------------------------------------- small helpers


def _without_others(found: Guess, table: Table) -> Guess:
    """The guess with the rest of the columns ignored, and default fields off that would read an unrelated column."""
    fields = dict(found.fields)
    for name in DEFAULTS:
        if name in table.columns and name not in fields and table.columns[name].kind != "empty":
            fields[name] = Setting(None, f"the column {name!r} is not used")
    if "instruction" not in fields and "instruction" in table.columns and found.type != "language_model":
        fields["instruction"] = Setting(None, "the column 'instruction' is not used")
    columns = [str(setting.value) for name, setting in fields.items() if name not in ("output_type", "separator")]
    columns = [column for value in columns for column in value.split(JOINT)]
    read = {*columns, *(name.split(".")[0] for name in columns)}
    filled = [name for name, column in table.columns.items() if column.kind != "empty"]
    rest = [name for name in filled if name not in (*read, "id", *fields)]
    if rest:
        fields["ignore"] = Setting(rest, "columns that are not read")
    return Guess(found.task, fields, found.inputs, found.target, found.blank_targets)


def _has(value: object, *names: str) -> bool:
    return isinstance(value, Mapping) and all(name in value for name in names)


def _tags_of(column: Column) -> tuple[int, int]:
    """(equal for columns with as many entries, or words, in every row; the most in a row)."""
    if column.kind == "list":
        return column.list_lengths, column.most_entries
    return column.word_counts, column.most_words


def _few_words(column: Column) -> bool:
    """Whether words repeat as tags do."""
    words = [word for text in column.texts for word in text.split()]
    return len(set(words)) <= max(2, len(words) // 3)
