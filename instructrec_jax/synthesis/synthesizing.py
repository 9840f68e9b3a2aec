"""A file of instructions made from the texts of another one: the verb `synthesize`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Literal

import xxhash

from instructrec_jax.answering.augmenting import Spread
from instructrec_jax.answering.desk import read_requests
from instructrec_jax.answering.records import blocks, read_records, value_of
from instructrec_jax.data.example import BadExample, Example, check_text, is_blank
from instructrec_jax.files import jsonl_writer
from instructrec_jax.synthesis.documents import chain, document, gets_pairs, pair_example
from instructrec_jax.synthesis.grounding import Pair, problem
from instructrec_jax.synthesis.model_pairs import NO_TAB
from instructrec_jax.synthesis.overlap import Overlap
from instructrec_jax.synthesis.passages import Passage, passages
from instructrec_jax.synthesis.rules import pairs_of
from instructrec_jax.tasks.generation.summarization import join

WINDOW = 64  # passages whose pairs are made together
REPEATED, IN_TEST = "repeat an earlier one", "share an n-gram with a test file"
OTHER_LANGUAGE = "in neither English nor Chinese"
Form = Literal["pairs", "documents"]
Maker = Callable[[Sequence[Passage]], Sequence[tuple[list[Pair], Counter[str]]]]
"""English and Chinese passages -> for each its pairs, and what was dropped before there was a pair, by reason."""


@dataclass(frozen=True)
class Synthesis:
    """The settings.

    Attributes:
      form: pairs: an example of each pair; documents: one of each passage, with a chain of its pairs.
      share: of the passages of documents that get pairs; 0: raw texts alone.
      chain: pairs of a document at most.
      passage: words of a passage at most (characters in Chinese).
      text, title: columns of the records.
      shown: pairs to show at the end.
    """

    form: Form = "pairs"
    share: float = 1.0
    chain: int = 5
    passage: int = 300
    seed: int = 0
    text: str = "text"
    title: str = "title"
    shown: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"--share {self.share}: give the share of the passages that get pairs, from 0 to 1.")
        for name, least in (("chain", 1), ("passage", 20), ("shown", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('shown', 'show')} should be at least {least}.")


@dataclass
class Report:
    """What was read and written.

    Attributes:
      bad: records that have no usable text, by reason; `first_bad`: the first of them.
      removed: passages left out with their pairs, by reason; `foreign`: those in another language, without pairs.
      written: examples; `bare`: documents among them without pairs.
      rules: pairs written, by rule; `dropped`: pairs left out, by reason; `unused`: those beyond --chain.
    """

    records: int = 0
    passages: int = 0
    bare: int = 0
    written: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""
    removed: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unused: int = 0

    def __str__(self) -> str:
        lines = [f"{self.records:,} records, {self.passages:,} passages, {self.written:,} examples written"]
        lines += [f"  {count:7,} records skipped: {reason}" for reason, count in self.bad.most_common()]
        lines += [f"          the first: {self.first_bad}"] if self.first_bad else []
        lines += [f"  {count:7,} passages removed, which {reason}" for reason, count in self.removed.most_common()]
        lines += [f"  {self.foreign:7,} passages without pairs: {OTHER_LANGUAGE}"] if self.foreign else []
        lines += [f"  {self.bare:7,} documents of raw text alone"] if self.bare else []
        lines += [f"  {count:7,} pairs by {rule}" for rule, count in self.rules.most_common()]
        lines += [f"  {self.unused:7,} pairs beyond --chain"] if self.unused else []
        lines += [f"  {count:7,} pairs dropped: {reason}" for reason, count in self.dropped.most_common()]
        return "\n".join(lines)


def by_rules(seed: int) -> Maker:
    return lambda block: [(pairs_of(passage, seed), Counter()) for passage in block]


def synthesize_file(
    source: str, make: Maker, out: Path, settings: Synthesis, overlap: Overlap
) -> tuple[Report, list[Example]]:
    """Writes examples as JSON lines, in the order of the records; returns the report and a few of the examples.

    Memory: a window of passages, and about 100 bytes for each passage and pair that was written, to find repeats.

    Raises ValueError for an unreadable file, and where no pair is left.
    """
    report, shown = Report(), Spread[Example](settings.shown)
    seen: set[int] = set()
    with jsonl_writer(out) as write:
        for block in blocks(_passages(source, settings, overlap, seen, report), WINDOW):
            asked = [each.language is not None and _asks(each, settings) for each in block]
            made = iter(make(list(compress(block, asked))) if any(asked) else ())
            for passage, is_asked in zip(block, asked, strict=True):
                pairs, dropped = next(made) if is_asked else ([], Counter[str]())
                report.dropped.update(dropped)
                pairs = [pair for pair in pairs if _stays(pair, passage, overlap, seen, report)]
                for example in _examples(passage, pairs, settings, report):
                    write(example.to_record())
                    report.written += 1
                    if example.origin.get("rule"):
                        shown.add(partial(_itself, example))
        if not report.rules and (settings.share or not report.written):
            form = " A model has to write one pair a line: tune it for this." if report.dropped[NO_TAB] else ""
            raise ValueError(f"no pair is left, so nothing is written.{form}\n{report}")
    return report, shown.items()


def _itself(example: Example) -> Example:
    return example


def _asks(passage: Passage, settings: Synthesis) -> bool:
    return settings.form == "pairs" or gets_pairs(passage, settings.share, settings.seed)


def _examples(passage: Passage, pairs: list[Pair], settings: Synthesis, report: Report) -> list[Example]:
    if settings.form == "pairs":
        report.rules.update(pair.rule for pair in pairs)
        return [pair_example(pair, passage) for pair in pairs]
    kept = chain(pairs, settings.chain, passage, settings.seed)
    report.rules.update(pair.rule for pair in kept)
    report.unused += len(pairs) - len(kept)
    report.bare += not kept
    return [document(passage, kept, settings.seed)]


def _stays(pair: Pair, passage: Passage, overlap: Overlap, seen: set[int], report: Report) -> bool:
    reason = problem(pair, passage)
    if not reason and overlap.found(f"{pair.instruction}\n{pair.answer}"):
        reason = IN_TEST
    if not reason and _is_known(f"{pair.instruction}\x00{pair.answer}", seen):
        reason = REPEATED
    report.dropped.update([reason] if reason else [])
    return not reason


def _is_known(text: str, seen: set[int]) -> bool:
    """Whether an equal text (by a hash of 64 bits) was met before; remembers it."""
    key = xxhash.xxh3_64_intdigest(text.encode("utf-8", errors="replace"))
    known = key in seen
    seen.add(key)
    return known


# ---------------------------------------------------------------- reading


def _passages(source: str, settings: Synthesis, overlap: Overlap, seen: set[int], report: Report) -> Iterator[Passage]:
    """The passages that stay, in order."""
    for name, text, title in _texts(source, settings, report):
        for passage in passages(text, settings.passage, title, name):
            report.passages += 1
            reason = IN_TEST if overlap.found(passage.text) else REPEATED if _is_known(passage.text, seen) else ""
            if reason:
                report.removed[reason] += 1
                continue
            report.foreign += passage.language is None
            yield passage


def _texts(source: str, settings: Synthesis, report: Report) -> Iterator[tuple[str, str, str]]:
    """(name, text, title) of each record that has a text; the others are counted."""
    if source.endswith(".txt"):
        for where, line in read_requests(source):
            report.records += 1
            yield where, line, ""
        return
    for where, record in read_records(source):
        report.records += 1
        try:
            if isinstance(record, BadExample):
                raise record
            text = _joined(value_of(record, settings.text, "--text_field"), settings.text)
            title = record.get(settings.title)
            named = "" if is_blank(title) else check_text(title, settings.title).strip()
        except BadExample as error:
            report.bad[f"{error.reason} {error.field}".strip()] += 1
            report.first_bad = report.first_bad or str(error.at(where))
            continue
        name = record.get("id")
        yield (str(name) if isinstance(name, str | int) and str(name).strip() else where), text, named


def _joined(value: object, name: str) -> str:
    """A text, or a list of its sentences as one."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        value = join([each.strip() for each in value])
    return check_text(value, name)
