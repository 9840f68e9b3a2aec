"""`prepare inspect SOURCE` without --out: what training would make of the files. Nothing is written.

All rows are read once, in order; memory holds eight bytes a row for each count of duplicates. Texts are rendered and
tokenized for a random sample of rows, which is all of them in files of up to `SAMPLE` rows.
"""

import hashlib
import logging
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from instructrec_jax import remote
from instructrec_jax.data.conversations import JOINT
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.fingerprints import fingerprint_bytes
from instructrec_jax.data.hub import DatasetRows, class_names, open_dataset
from instructrec_jax.data.media.picture_references import NO_FOLDERS, PictureFolders, folders_of
from instructrec_jax.data.own_template import Pieces, Rendering
from instructrec_jax.data.prompts import (
    Tokens,
    as_text,
    find_template,
    opening_tokens,
    question,
    render,
    shown_input,
    tokenize_pieces,
    written,
)
from instructrec_jax.data.rows import ChainedRows, Rows, find_files, open_rows
from instructrec_jax.data.skipped import SkippedRow, listing
from instructrec_jax.data.sources import with_usual_fields
from instructrec_jax.data.templates import TEMPLATES, Template
from instructrec_jax.data.unread import unread_note
from instructrec_jax.preparation.inspection.columns import SAMPLE
from instructrec_jax.preparation.inspection.sizing import Network, open_network
from instructrec_jax.preparation.own_config import InspectConfig

log = logging.getLogger(__name__)

EXAMPLES = 3
LONGEST = 1_000  # characters of a piece of an example that are shown
ROOM = 2_000_000  # characters that are tokenized together
LISTED = 1_000  # bad rows whose errors are remembered; all are counted
OPENING, CLOSING = "⟦", "⟧"
QUANTILES = {"least": 0.0, "median": 0.5, "90%": 0.9, "99%": 0.99, "most": 1.0}


@dataclass
class Shown:
    """What a source would become.

    Attributes:
      form: of the records, in words.
      fields: the settings that read it, other than defaults.
      rows: number of all rows.
      bad: number of rows that training would refuse or skip; `errors` has the first of them.
      examples: the first rendered ones, with what is trained on between `OPENING` and `CLOSING`.
      lengths: int64 [measured], tokens of the sampled examples, sorted; `trained` of them are trained on.
      duplicates: rows that repeat an earlier example; questions: that repeat only its question; ids: that repeat an id.
      notes: on unread fields, templates and files.
    """

    form: str
    fields: str
    rows: int
    max_length: int
    bad: int = 0
    errors: list[SkippedRow] = field(default_factory=list)
    examples: list[tuple[str, str]] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    trained: int = 0
    duplicates: int = 0
    questions: int = 0
    ids: int = 0
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The findings as text."""
        lines = [
            f"form        {self.form}",
            f"fields      {self.fields}",
            f"rows        {self.rows:,}, {self.bad:,} bad",
        ]
        lines += [f"note        {note}" for note in self.notes]
        if len(self.lengths):
            values = [int(np.quantile(self.lengths, q, method="higher")) for q in QUANTILES.values()]
            told = ", ".join(f"{name} {value:,}" for name, value in zip(QUANTILES, values, strict=True))
            over = float((self.lengths > self.max_length).mean())
            lines.append(f"tokens      {told} (of {len(self.lengths):,} examples)")
            lines.append(f"            {over:.1%} have more than max_length {self.max_length:,}")
            if self.trained:
                lines.append(f"            {self.trained / self.lengths.sum():.1%} of the tokens are trained on")
        told = f"{self.duplicates:,} examples, {self.questions:,} questions with another answer, {self.ids:,} ids"
        lines.append(f"duplicates  {told}")
        for number, (where, text) in enumerate(self.examples, 1):
            lines += ["", f"example {number} ({where}); trained on: {OPENING}...{CLOSING}", text]
        if self.bad:
            them = "1 bad row. Correct it" if self.bad == 1 else f"{self.bad:,} bad rows. Correct them"
            lines += ["", f"{them}, or set on_bad_example: skip.", listing(self.errors)]
        return "\n".join(lines)


def show(config: InspectConfig) -> Shown:
    """Reads the files as training would.

    Raises ValueError for files that cannot be read and for settings that cannot work.
    """
    if not config.files:
        raise ValueError("name one or more data files: prepare inspect FILE...")
    name = ", ".join(config.files)
    data_sets = {file: open_dataset(file, None, config.split, False) for file in config.files if config.kind != "file"}
    if config.kind == "file" and config.split != "train":
        raise ValueError(f"--split {config.split}: files have no splits; name the file of the split.")

    def opened(columns: set[str]) -> Rows:
        if not data_sets:
            return ChainedRows([open_rows(file, columns) for file in config.files])
        return ChainedRows([DatasetRows(each, file, columns) for file, each in data_sets.items()])

    fields, rows, note = with_usual_fields(opened, config.fields, name)
    if note:
        log.warning(note)
    renderer = _Renderer(config)
    classes = {column: names for each in data_sets.values() for column, names in class_names(each.features).items()}
    mapper, found = FieldMapper(fields, class_names=classes), _Findings(config.seed, len(rows))
    pictures = _pictures(config.files) if not data_sets else NO_FOLDERS
    for index in tqdm(range(len(rows)), desc=f"reading {name}", unit="row", disable=len(rows) < 50_000, leave=False):
        try:
            row, where = rows.row(index), rows.where(index)
            example = replace(mapper(row, rows.columns, pictures.of(where)), where=where)
            found.unread.update(mapper.unread(row, rows.columns))
            if found.is_sampled(index):
                found.measure(example, renderer)
        except BadExample as error:
            found.refuse(error.at(rows.where(index)))
            continue
        found.count(example)
    found.tokenize(renderer)
    shown = found.shown(_form(fields, found.first, found.first_row(rows)), _written(fields), config.max_length)
    shown.notes += renderer.notes(found.counted)
    if note := unread_note(name, found.unread, len(rows)):
        shown.notes.append(note)
    return shown


def _pictures(sources: Sequence[str]) -> PictureFolders:
    files = [file for source in sources for file in find_files(source)]
    return PictureFolders(tuple(map(remote.shown, files)), folders_of(files))


class _Renderer:
    """Examples as texts and tokens, as the named backbone reads them; without one, the embedded tokenizer estimates."""

    def __init__(self, config: InspectConfig) -> None:
        self.network: Network = open_network(config.backbone)
        self.is_named, self.is_encoder = config.backbone is not None, config.backbone is not None
        self.is_encoder &= self.network.kind == "encoder"
        self.name = "alpaca" if config.template == "auto" else config.template
        self.template: Template | None = TEMPLATES["alpaca"]
        if self.is_named and not self.is_encoder:
            self.template = find_template(config.template, self.network.tokenizer, self.network.kind)
        elif config.template not in ("auto", *TEMPLATES):
            raise ValueError(f"--template {config.template} needs the tokenizer of a language model: --backbone PATH.")
        elif config.template != "auto":
            self.template = TEMPLATES[config.template]
        # special tokens after an encoder's text
        special = self.network.tokenizer.num_special_tokens_to_add()
        self.closing = special - len(opening_tokens(self.network.tokenizer)) if self.is_encoder else 0
        self.rendering = Rendering(enable_thinking=config.enable_thinking)

    def pieces(self, example: Example, notes: Counter[str]) -> Pieces:
        """The rendered example, each piece with whether it is trained on. Raises BadExample."""
        if example.media:
            notes["examples have pictures or sounds, whose tokens are not counted"] += 1
            if not render(example):
                return [(shown_input(example), False)]
        if self.is_encoder:
            return [(render(example), False)]
        tokenizer = self.network.tokenizer
        eos = tokenizer.eos_token or (None if self.is_named else tokenizer.sep_token)
        try:
            return written(example, self.template, tokenizer, eos=eos, rendering=self.rendering, notes=notes)
        except ValueError as error:
            hint = "" if self.is_named or "template" not in str(error) else " The chat"
            hint += " template of a checkpoint is used with --backbone PATH." if hint else ""
            raise BadExample("", "not rendered", f"{error}{hint}") from None

    def tokens(self, texts: Sequence[Pieces]) -> list[Tokens]:
        return tokenize_pieces(texts, self.network.tokenizer)

    def marked(self, example: Example, pieces: Pieces, tokens: Tokens) -> str:
        """The text with what is trained on between `OPENING` and `CLOSING`: of an encoder, the target."""
        if self.is_encoder or pieces == [(shown_input(example), False)]:
            known = example.output is not None
            return _short(pieces[0][0]) + (f"\n{OPENING}target: {as_text(example.output)}{CLOSING}" if known else "")
        runs = np.split(np.arange(len(tokens.ids)), np.flatnonzero(np.diff(tokens.said)) + 1)
        decode = self.network.tokenizer.decode
        parts = [(str(decode(tokens.ids[run])), bool(tokens.said[run[0]])) for run in runs if len(run)]
        if not "".join(text for text, _ in parts).endswith("".join(text for text, _ in pieces)):
            parts = pieces  # a tokenizer whose tokens do not give the text back
        return "".join(f"{OPENING}{_short(text)}{CLOSING}" if said else _short(text) for text, said in parts)

    def notes(self, counted: Counter[str]) -> list[str]:
        said = [f"{number:,} {what}" for what, number in counted.items() if number]
        if not self.is_named:
            said.append(
                f"rendered with template {self.name}, tokens estimated with the embedded tokenizer: name the backbone "
                "to see its own, --backbone PATH_OR_HUB_ID"
            )
        return said


class _Findings:
    """What is kept while the rows are read."""

    def __init__(self, seed: int, rows: int) -> None:
        self.rows = rows
        chosen = np.random.default_rng(seed).choice(rows, min(SAMPLE, rows), replace=False)
        self.sampled = np.zeros(rows, bool)
        self.sampled[chosen] = True
        self.bad, self.errors = 0, list[SkippedRow]()
        self.examples: list[tuple[str, str]] = []
        self.waiting: list[tuple[Example, Pieces]] = []  # to be tokenized together, which is faster
        self.characters = self.rendered = 0
        self.lengths, self.trained = array("q"), 0
        self.hashes = {"examples": array("Q"), "questions": array("Q"), "ids": array("Q")}
        self.unread, self.counted = Counter[str](), Counter[str]()
        self.first: Example | None = None

    def is_sampled(self, index: int) -> bool:
        return bool(self.sampled[index]) or self.rendered < EXAMPLES

    def measure(self, example: Example, renderer: _Renderer) -> None:
        pieces = renderer.pieces(example, self.counted)
        self.waiting.append((example, pieces))
        self.rendered += 1
        self.characters += sum(len(text) for text, _ in pieces)
        if len(self.waiting) == 500 or self.characters > ROOM:
            self.tokenize(renderer)

    def tokenize(self, renderer: _Renderer) -> None:
        """Measures the texts that wait."""
        found = renderer.tokens([pieces for _, pieces in self.waiting])
        for (example, pieces), tokens in zip(self.waiting, found, strict=True):
            self.lengths.append(len(tokens.ids) + renderer.closing)
            self.trained += int(tokens.said.sum())
            if len(self.examples) < EXAMPLES:
                self.examples.append((example.where, renderer.marked(example, pieces, tokens)))
        self.waiting, self.characters = [], 0

    def refuse(self, error: BadExample) -> None:
        self.bad += 1
        if len(self.errors) < LISTED:
            self.errors.append(SkippedRow(error.where, error.field, error.reason, error.detail))

    def count(self, example: Example) -> None:
        self.first = self.first or example
        plain = replace(example, id="", origin={})
        self.hashes["examples"].append(_hash(fingerprint_bytes(plain)))
        self.hashes["questions"].append(_hash(fingerprint_bytes(question(plain))))
        if example.id:
            self.hashes["ids"].append(_hash(example.id.encode()))

    def first_row(self, rows: Rows) -> dict[str, object]:
        """The record of the first valid example, for its form."""
        for index in range(min(len(rows), LISTED)):
            if self.first is not None and rows.where(index) == self.first.where:
                return rows.row(index)
        return {}

    def shown(self, form: str, fields: str, max_length: int) -> Shown:
        again = {name: len(every) - len(np.unique(np.array(every, np.uint64))) for name, every in self.hashes.items()}
        return Shown(
            form=form,
            fields=fields,
            rows=self.rows,
            max_length=max_length,
            bad=self.bad,
            errors=self.errors,
            examples=self.examples,
            lengths=np.sort(np.array(self.lengths, np.int64)),
            trained=self.trained,
            duplicates=again["examples"],
            questions=again["questions"] - again["examples"],
            ids=again["ids"],
        )


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _form(fields: FieldsConfig, example: Example | None, row: dict[str, object]) -> str:
    """The form of the records, in words."""
    if example is None:
        return "none: no row is valid"
    if fields.messages and JOINT in fields.messages:
        preferred = "preferences (the chosen answers)" if "rejected" in fields.ignore else "prompt and completion"
        return f"{preferred}, as lists of messages: {fields.messages}"
    if example.messages:
        turns = row.get(fields.messages or "")
        first = turns[0] if isinstance(turns, list) and turns else {}
        style = "ShareGPT's from and value" if isinstance(first, dict) and "from" in first else "role and content"
        calls = any("tool_calls" in turn.extra for turn in example.messages)
        parts = [f"conversations of {style}", *["preferences (the chosen answers)"] * ("rejected" in fields.ignore)]
        return ", ".join([*parts, *["calls of tools"] * calls, *["a list of tools"] * bool(example.tools)])
    if "rejected" in fields.ignore:
        return "preferences (the chosen answers): prompt and chosen"
    if (fields.instruction, fields.output) == ("instruction", "output"):
        return "instruction, input and output (Alpaca)"
    return " and ".join(name for name in (fields.instruction, fields.input, fields.output) if name and name != "input")


def _written(fields: FieldsConfig) -> str:
    """The settings that differ from the defaults."""
    default = FieldsConfig()
    changed = {name: value for name, value in vars(fields).items() if value != getattr(default, name)}
    return "{" + ", ".join(f"{name}: {value}" for name, value in changed.items()) + "}" if changed else "the defaults"


def _short(text: str) -> str:
    """The text with its middle left out if it is long, and without characters that move a terminal's cursor."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {len(text) - LONGEST:,} characters ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
