"""A file of training examples and their changed copies, filtered: the verb `augment`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from instructrec_jax.answering.rewriting import Rewriter, Source
from instructrec_jax.augmentation.protection import places_of, words_of
from instructrec_jax.data.augmented import (
    MADE_FROM,
    METHODS,
    AugmentedSource,
    check_methods,
    quoted_texts,
    span_words,
)
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import digest_of_example
from instructrec_jax.data.hold_out import is_held_out
from instructrec_jax.data.mixture import IndexableSource, Mixture
from instructrec_jax.evaluation.pairs import Pair, write_pairs
from instructrec_jax.files import jsonl_writer
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.vectors import settings_of

T = TypeVar("T")
WINDOW = 256  # examples rewritten together
SHOWN = 20  # pairs on the page
UNCHANGED, AGAIN = "not changed", "the same as another copy"
EMPTY = "no text, as for one that is longer than the network reads"
LOST = "a number, a name or the target is gone"
FAR, NEAR, OTHER = "less similar than --similar", "more similar than --similar", "the teacher says something else"


@dataclass
class Report:
    """What was written. `dropped`: copies that were left out, by reason."""

    examples: int = 0
    copies: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        made = self.copies + sum(self.dropped.values())
        lines = [f"{self.examples:,} examples, {made:,} copies made, {self.copies:,} written"]
        lines += [f"  {count:6,} left out: {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"  {count:6,} changed by {name}" for name, count in self.methods.most_common()]
        return "\n".join(lines)


Keep = Callable[[Sequence[tuple[Example, Example]]], list[str]]
"""(example, copy) pairs -> why each copy is left out; "": it stays."""


def augment_file(
    data: RunData, rewriters: dict[str, tuple[Rewriter, int]], filters: Sequence[Keep], out: Path, *, originals: bool
) -> Report:
    """Writes the training examples and their copies as JSON lines, and a page of pairs beside them (.html).

    Args:
      rewriters: method -> (what rewrites, copies of each example).
      originals: whether the examples themselves are written, too.

    Raises ValueError for no method, a method that the task cannot take, a stream, or where no copy is left.
    """
    opened = data.source("train")
    if not isinstance(opened, Mixture):
        raise ValueError(
            "augment needs sources of known size, but one of data.train is a stream: set streaming: false."
        )
    any_edits = any(source.augment for source in data.config.data.train)
    if not any_edits and not rewriters:
        raise ValueError("no method is set: give a rate, such as --synonyms 0.1, or name a run with --paraphrase.")
    sources = data.with_copies(opened).sources if any_edits else opened.sources
    report, shown = Report(), Spread[Pair]()
    with jsonl_writer(out) as write:
        for source, setting in zip(sources, data.config.data.train, strict=True):
            plain = partial(_plain_reasons, names_stay=not setting.augment.capitalized)
            for window in _windows(source, data):
                check_methods([e for e, _ in window], list(rewriters), data.config.task.augmentations, "--")
                made = _rewritten(window, rewriters, data)
                for example, copies in _filtered(made, plain, filters, report):
                    report.examples += 1
                    report.copies += len(copies)
                    for each in ([example] if originals else []) + copies:
                        write(each.to_record())
                    for copy in copies:
                        report.methods.update(copy.origin[METHODS].split(", "))
                        shown.add(partial(Pair.of, example, copy))
        if not report.copies:
            raise ValueError(f"no copy is left.\n{report}")
    write_pairs(out.with_suffix(".html"), shown.items(), str(report), out.name)
    return report


@dataclass
class Spread(Generic[T]):
    """Every n-th item, n growing with their number, so that few are in memory."""

    most: int = SHOWN
    kept: list[T] = field(default_factory=list)
    step: int = 1
    met: int = 0

    def add(self, make: Callable[[], T]) -> None:
        """Adds an item, which is made only where it is kept."""
        if not self.most:
            return
        if self.met % self.step == 0:
            self.kept.append(make())
        self.met += 1
        if len(self.kept) == 4 * self.most:
            self.kept, self.step = self.kept[::2], 2 * self.step

    def items(self) -> list[T]:
        """At most `most` of them, evenly spread, in order."""
        spread = np.linspace(0, len(self.kept) - 1, min(self.most, len(self.kept))).astype(int)
        return [self.kept[number] for number in spread]


Made = list[tuple[Example, list[Example]]]


def _windows(source: IndexableSource, data: RunData) -> Iterator[Made]:
    """The examples that training reads, with their copies."""
    versions = source.versions if isinstance(source, AugmentedSource) else 1
    window: Made = []
    for number in range(len(source) // versions):
        example, *copies = (source[number * versions + version] for version in range(versions))
        if data.config.data.hold_out and is_held_out(example, data.config.data.hold_out):
            continue
        window.append((example, copies))
        if len(window) == WINDOW:
            yield window
            window = []
    if window:
        yield window


def _rewritten(window: Made, rewriters: dict[str, tuple[Rewriter, int]], data: RunData) -> Made:
    """With the copies of the rewriters."""
    task, label_words = data.config.task, words_of(getattr(data.config.task, "labels", None) or ())
    found = [(example, list(copies)) for example, copies in window]
    for method, (rewrite, count) in rewriters.items():
        for copy in range(count):
            sources = []
            for example, _ in found:
                tags = task.has_tags(example.task)
                quoted = () if tags else quoted_texts(example.output)
                sources.append(
                    Source(
                        text=example.input or example.instruction,
                        key=(str(data.config.seed), digest_of_example(example).hex(), str(copy)),
                        words=frozenset(label_words | words_of((*quoted, *example.candidates))),
                        quoted=quoted,
                        fixed=span_words(example) if tags else frozenset(),
                    )
                )
            asked = [n for n, source in enumerate(sources) if source.text.strip()]
            for n, text in zip(asked, rewrite([sources[n] for n in asked]) if asked else [], strict=True):
                example, copies = found[n]
                where = "input" if example.input else "instruction"
                named = {MADE_FROM: example.id or example.where or "unnamed", METHODS: method}
                changed: dict[str, str] = {where: text.strip()}
                origin = {**example.origin, **named}
                origin.pop("answer_start", None)  # the answer is looked for in the new text
                copies.append(replace(example, origin=origin, **changed))  # type: ignore[arg-type]
    return found


def _filtered(
    window: Made, plain: Callable[[Made], list[str]], filters: Sequence[Keep], report: Report
) -> Iterator[tuple[Example, list[Example]]]:
    flat = [(example, copy) for example, copies in window for copy in copies]
    reasons = plain(window)
    for keep in filters:
        left = [n for n, reason in enumerate(reasons) if not reason]
        for n, reason in zip(left, keep([flat[n] for n in left]) if left else [], strict=True):
            reasons[n] = reason
    report.dropped.update(reason for reason in reasons if reason)
    given = iter(zip(reasons, flat, strict=True))
    for example, copies in window:
        own = [next(given) for _ in copies]
        yield example, [copy for reason, (_, copy) in own if not reason]


def _plain_reasons(window: Made, *, names_stay: bool) -> list[str]:
    """Why copies are left out whatever the filters are, in order; "": they stay.

    names_stay: whether words with capitals are taken for names, which a copy must have.
    """
    reasons = []
    for example, copies in window:
        seen = {_read(example)}
        for copy in copies:
            text = _read(copy)
            if not "".join(text).strip() or bool(example.input) != bool(copy.input):
                reasons.append(EMPTY)
            elif text == _read(example):
                reasons.append(UNCHANGED)
            elif text in seen:
                reasons.append(AGAIN)
            elif not _keeps(example, copy, names_stay):
                reasons.append(LOST)
            else:
                reasons.append("")
            seen.add(text)
    return reasons


def _read(example: Example) -> tuple[str, ...]:
    return (example.instruction, example.input or "", *(turn.content for turn in example.messages))


def _keeps(example: Example, copy: Example, names_stay: bool) -> bool:
    """Whether the copy has the numbers, the names and the quoted targets of the example."""
    old, new = example.input or example.instruction, copy.input or copy.instruction
    quoted = [each for each in quoted_texts(example.output) if places_of(old, [each])]
    words = [word.strip(".,:;!?()\"'") for word in old.split()]
    names = [word for word in words[1:] if word[:1].isupper()] if names_stay else []
    numbers = [word for word in words if any(map(str.isdigit, word))]
    return all(each in new for each in (*quoted, *names, *numbers))


# ---------------------------------------------------------------- filters


def similar(low: float, high: float, folder: str) -> Keep:
    """Copies whose vector has a cosine within [low, high] to that of the example, by a folder or run with vectors.

    Raises ValueError for bounds that are none.
    """
    if not -1 <= low < high <= 1:
        raise ValueError(f"--similar {low} {high}: give two cosines, the lower one first, such as 0.7 0.98.")
    run = Run.open(folder, settings_of(folder))

    def keep(pairs: Sequence[tuple[Example, Example]]) -> list[str]:
        texts = ["\n".join(filter(None, _read(each))) for pair in pairs for each in pair]
        vectors = run.encode(texts)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = (vectors[::2] * vectors[1::2]).sum(1)
        return [FAR if cosine < low else NEAR if cosine > high else "" for cosine in cosines]

    return keep


def agrees(path: Path) -> Keep:
    """Copies for which a run predicts the target of the example. Raises ValueError for a run without labels."""
    run = Run.open(path)
    if run.config.task.label_names is None:
        raise ValueError(f"--teacher {path} has the task {run.kind}, but should predict labels.")

    def keep(pairs: Sequence[tuple[Example, Example]]) -> list[str]:
        answers = run.predict([copy for _, copy in pairs])
        said = [answer.to_record()["prediction"] for answer in answers]
        return ["" if _same(one, copy.output) else OTHER for one, (_, copy) in zip(said, pairs, strict=True)]

    return keep


def _same(said: object, target: object) -> bool:
    if isinstance(said, list) and isinstance(target, tuple):
        return said == list(target) or sorted(map(str, said)) == sorted(map(str, target))
    return said == target
