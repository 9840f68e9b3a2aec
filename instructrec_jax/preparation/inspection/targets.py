"""The target of a table: which column it is, and the task that its values need."""

import re
from collections import Counter
from collections.abc import Sequence

from instructrec_jax.data.column_names import ANSWERS, LABELS, NUMBERS, PROMPTS, TEXTS
from instructrec_jax.preparation.inspection.columns import TIMES, Column, number
from instructrec_jax.preparation.inspection.table import Guess, Setting, Table, as_list, names_of, need_writer

SEPARATORS = ("|", ";", ",")
MOST_CLASSES = 20  # whole numbers with more different values are a quantity


def target_of(table: Table, columns: Sequence[Column]) -> Column | None:
    """The target among the columns: the user's, one with a usual name, or the only one that looks like labels."""
    if table.target is not None:
        return table.columns[table.target]
    for names in (("output", *LABELS, *ANSWERS), NUMBERS):
        found = [column for column in table.named(names) if column in columns and column.kind != "empty"]
        if len(found) > 1:
            raise ValueError(f"several columns may be the target ({names_of(c.name for c in found)}): --target COLUMN.")
        if found:
            return found[0]
    found = [c for c in columns if c.name.lower() not in (*TIMES, *TEXTS, *PROMPTS) and _may_be_label(c)]
    if len(found) > 1:
        raise ValueError(f"several columns may be the target ({names_of(c.name for c in found)}): --target COLUMN.")
    return found[0] if found else None


def _may_be_label(column: Column) -> bool:
    if is_id(column) or column.kind in ("empty", "object", "messages", "mixed"):
        return False
    if column.kind in ("number", "bool", "list"):
        return True
    return _is_class(column) or bool(_separator(column))


def _is_class(column: Column) -> bool:
    few = max(2, min(500, column.filled_rows // 2))
    return 1 <= column.different <= few and column.words <= 6


def is_id(column: Column) -> bool:
    name = column.name.lower()
    numbered = name.endswith("id") and column.all_different
    return numbered or name in ("id", "index", "uid", "uuid", "guid", "url", "unnamed: 0") or name.endswith("_id")


def labeled(table: Table, fields: dict[str, Setting], inputs: tuple[str, ...], target: Column) -> Guess:
    """A text (or a pair) with a target of any kind."""
    name, kind, count = target.name, target.kind, target.count
    if not target.filled_rows:
        raise ValueError(f"the target {name!r} is blank in every row.")
    if kind in ("object", "messages", "mixed"):
        raise ValueError(f"the target {name!r} holds {kind} values: a text, a number or a list is needed.")
    check_cells(target)
    fields = {**fields, "output": Setting(name, "the target")}
    if kind == "list":
        said = [str(each) for value in target.filled for each in as_list(value)]
        labels = set(said)
        if len(labels) > max(2, len(said) // 2) or sum(len(each.split()) for each in labels) > 6 * len(labels):
            need_writer(table, f"the target {name!r} holds lists of written texts ({len(labels):,} different ones)")
            task = {"type": Setting("summarization", f"the network writes one of the texts of {name!r}")}
            return Guess(task, fields, inputs, name)
        task = {"type": Setting("multilabel", f"a row has any of {len(labels)} labels")}
        return Guess(task, fields, inputs, name, blank_targets=True)
    if target.different == 1:
        raise ValueError(f"the target {name!r} has the same value in every row: there is nothing to learn.")
    if kind == "number" and (why := _quantity(target)):
        if target.has_texts:
            fields["output_type"] = Setting("number", "the cells are texts")
        return Guess({"type": Setting("regression", why)}, fields, inputs, name)
    if kind == "bool":
        fields["label_names"] = Setting({0: "false", 1: "true"}, "names of the two values")
    elif kind == "number" and target.has_others:
        fields["output_type"] = Setting("text", "the numbers are names of classes; label_names would give them words")
    elif separator := _separator(target):
        fields |= {"output_type": Setting("list", "a cell holds several labels"), "separator": Setting(separator)}
        return Guess({"type": Setting("multilabel", "a row has several labels")}, fields, inputs, name)
    if kind in ("number", "bool") or _is_class(target):
        return Guess(
            {"type": Setting("classification", f"{name!r} has {count} different values")}, fields, inputs, name
        )
    if name.lower() in LABELS and target.words <= 6:
        raise ValueError(
            f"the target {name!r} has {count} different values in {target.filled_rows:,} rows, too many for labels: "
            "more rows per label are needed, or another --target."
        )
    need_writer(table, f"the target {name!r} holds texts of its own ({count} different ones)")
    return Guess({"type": Setting("language_model", f"the network writes {name!r}")}, fields, inputs, name)


NUMBER_IN_WRITING = re.compile(r"[-+]?[$€£¥]? ?[-+]?\d{1,3}([.,' ]?\d{3})*([.,]\d+)? ?[%$€£¥]?")


def check_cells(target: Column) -> None:
    """Raises ValueError for texts that are meant as numbers or lists, but would be read as labels."""
    name, texts = target.name, target.texts
    if target.kind != "text":
        return
    odd = [text for text in texts if number(text) is None]
    bracketed = all(text.strip().startswith("[") and text.strip().endswith("]") for text in texts)
    if odd and bracketed and any("," in text for text in texts):
        raise ValueError(
            f"the target {name!r} holds lists written as texts, such as {odd[0][:60]!r}: write a;b;c, or lists in a "
            ".jsonl or .parquet file."
        )
    written = [text for text in odd if NUMBER_IN_WRITING.fullmatch(text.strip())]
    by_name = name.lower() in NUMBERS
    if odd and len(written) == len(odd) and (by_name or any(set(text) & set("%$€£¥") for text in odd)):
        raise ValueError(f"the target {name!r} holds numbers such as {odd[0]!r}: write them plainly, like 1234.5.")
    if 0 < len(odd) <= len(texts) / 5 and (by_name or len({number(text) for text in texts}) > MOST_CLASSES):
        raise ValueError(
            f"the target {name!r} holds numbers, but also {odd[0][:60]!r}: correct such cells, or leave them blank."
        )


def _quantity(target: Column) -> str:
    """Why numbers are a quantity; "" if they are classes."""
    values, name = set(target.numbers), target.name
    if target.has_decimals:
        return f"{name!r} holds numbers with decimals"
    if len(values) > MOST_CLASSES:
        return f"{name!r} holds {len(values)} different numbers"
    return f"{name!r} is a number by its name; classification would ignore the order" if name.lower() in NUMBERS else ""


def _separator(target: Column) -> str:
    """What separates several labels of a cell; "" if cells hold one label."""
    for separator in SEPARATORS:
        parts = [[part.strip() for part in text.split(separator)] for text in target.texts]
        several = sum(len(each) > 1 for each in parts)
        different = {part for each in parts for part in each}
        short = all(0 < len(part) <= 40 and len(part.split()) <= 3 for part in different)
        few = len(different) <= max(2, len(parts) // 2)
        if several >= 0.1 * len(parts) and short and few and _recombine([frozenset(each) for each in parts]):
            return separator
    return ""


def _recombine(parts: Sequence[frozenset[str]]) -> bool:
    """Whether labels occur in different sets, unlike the parts of a name such as "Yes, sure"."""
    sets = set(parts)
    counts = Counter(part for each in sets for part in each)
    several = [each for each in sets if len(each) > 1]
    return sum(any(counts[part] > 1 for part in each) for each in several) >= len(several) / 2
