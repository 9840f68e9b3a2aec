"""What an audit reads and finds: the examples of all splits with their texts, and what is wrong with one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

from instructrec_jax.data.data_config import Split
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import normalized
from instructrec_jax.data.prompts import answer, render
from instructrec_jax.runs.data import RunData

Kind = Literal["leak", "contradiction", "duplicate", "near-duplicate", "label"]
MEANING: Mapping[Kind, str] = {
    "leak": "a case of another split has the same text, or nearly",
    "contradiction": "an equal text has another label",
    "duplicate": "an earlier example has the same text and answer",
    "near-duplicate": "an earlier example has nearly the same text",
    "label": "the label is probably wrong",
}


@dataclass(frozen=True)
class Finding:
    """Something wrong with an example; `MEANING` says what each kind is.

    Attributes:
      number: of the example in its split.
      where: its file and line.
      label: its answer.
      dropped: whether the clean file leaves it out.
      probability: of the label, out of fold.
      suggested, suggested_probability: the most probable label.
      other, other_label, similarity: the other example, its answer, and the Jaccard similarity of the texts.
    """

    kind: Kind
    split: Split
    number: int
    id: str
    where: str
    text: str
    label: str
    dropped: bool
    probability: float | None = None
    suggested: str | None = None
    suggested_probability: float | None = None
    other: str | None = None
    other_label: str | None = None
    similarity: float | None = None

    def to_record(self) -> dict[str, object]:
        """JSON, without attributes that its kind has not."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Rows:
    """The examples of all splits, one after another: those of data.train first, then data.validation, data.test.

    Attributes:
      numbers: of the examples in their splits.
      texts: what identifies an example; without an instruction that all share, which would make all similar.
      keys: normalized texts.
    """

    splits: list[Split] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def answer(self, row: int) -> str:
        """ "" for an example without one."""
        return answer(self.examples[row]) or ""

    def name(self, row: int) -> str:
        e = self.examples[row]
        return f"{self.splits[row]} {e.id or e.where}"

    def finding(
        self, kind: Kind, row: int, dropped: bool, other: int | None = None, similarity: float | None = None
    ) -> Finding:
        e, text = self.examples[row], self.texts[row]
        found = Finding(kind, self.splits[row], self.numbers[row], e.id, e.where, text, self.answer(row), dropped)
        if other is None:
            return found
        return replace(found, other=self.name(other), other_label=self.answer(other), similarity=similarity)


def read_rows(data: RunData) -> Rows:
    """The examples of the splits that the settings list.

    Raises ValueError for streams, for pictures and sounds, and where data.train is empty.
    """
    rows = Rows()
    for split in get_args(Split):
        if split != "train" and not getattr(data.config.data, split):
            continue
        for number, example in enumerate(data.examples(split)):
            if example.media:
                raise ValueError(f"{example.where}: audit compares texts, but this example has pictures or sounds.")
            rows.splits.append(split)
            rows.numbers.append(number)
            rows.examples.append(example)
    if "train" not in rows.splits:
        raise ValueError("data.train has no examples to audit.")
    alike = len({example.instruction for example in rows.examples}) == 1
    only_inputs = alike and all(example.input for example in rows.examples)
    for example in rows.examples:
        text = str(example.input) if only_inputs else render(example)
        rows.texts.append(text)
        rows.keys.append(normalized("\n".join([text, *example.candidates, *example.history])))
    return rows
