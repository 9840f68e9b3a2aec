"""The examples of data.unlabeled: checked against the cases, encoded in their views, and batched.

The weak view of an example is the example itself; strong views are its copies, changed by `augment` or rewritten in the
file (rows whose origin says `made_from`, as the verb augment writes them). Nothing of a view depends on its label.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.augmented import MADE_FROM, AugmentedSource, ExampleAugmenter, augmented
from instructrec_jax.data.batch import BatchTexts, Views, lay_out, lengths_of
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import digest_of_example, fingerprint_of, normalized
from instructrec_jax.data.loader import HostBatch, prefetch
from instructrec_jax.data.mixture import IndexableSource, Mixture, OfSource, Versions
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.data.prompts import render
from instructrec_jax.data.shapes import Shapes, Sizes, choose_shapes, spread
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import EncodedExamples, joined
from instructrec_jax.training.semi_supervised import check_semi_supervised

KEEP_WORDS = ("synonyms", "typos")  # the methods after which every word is where it was
SHAPED_BY = 2048  # batches by whose lengths the shape of all is chosen; those that a task gathers otherwise:
GATHERED = 64

Encode = Callable[[IndexableSource, np.ndarray], EncodedExamples]
Cases = Mapping[str, Iterable[Example]]


def check_unlabeled(config: Config, task: Task) -> bool:
    """Whether the run learns from data.unlabeled. Raises ValueError for settings that contradict each other."""
    check_semi_supervised(config.semi_supervised, task, config.task.name)
    method = config.semi_supervised.method
    if method == "none":
        if config.data.unlabeled:
            raise ValueError(
                "data.unlabeled is set, but no method that learns from it: set semi_supervised.method, such as "
                "fixmatch, or leave data.unlabeled out."
            )
        return False
    if not config.data.unlabeled:
        raise ValueError(
            f"semi_supervised.method is {method}, but data.unlabeled names no source: name a file of texts."
        )
    if config.data.hold_out:
        raise ValueError(
            "data.hold_out holds out examples by their labels, which those of data.unlabeled may not have: leave one "
            "of them out."
        )
    return True


def open_unlabeled(
    config: Config, task: Task, opened: object, cases: Cases, encode: Encode, labeled: float, row_multiple: int
) -> tuple["UnlabeledBatches", list[SkippedRow]]:
    """The batches of data.unlabeled, and the examples left out because they are cases (with on_bad_example: skip).

    Args:
      opened: the sources, as they are read for training.
      cases: name of a split -> the examples that a run is measured on.
      labeled: mean number of labeled examples in a batch.

    Raises ValueError for a stream, for examples that are cases, for methods of augment that the task cannot take, and
    where no example is left.
    """
    if not isinstance(opened, Mixture):
        raise ValueError("data.unlabeled needs sources of known size, but one is a stream: set streaming: false.")
    known = {case_key(example): (split, example) for split, own in cases.items() for example in own}
    found, skipped = [], []
    for number, (source, setting) in enumerate(zip(opened.sources, config.data.unlabeled, strict=True)):
        rows, leaks = _rows(source, known, config.data.on_bad_example == "skip")
        skipped += leaks
        if rows.rewritten and config.task.has_tags(source[int(rows.weak[0])].task):
            raise ValueError(
                f"data.unlabeled: {source.name} has rewritten copies (made_from) of tagged texts, whose words may be "
                f"elsewhere: remove them, and set augment to {' or '.join(KEEP_WORDS)}."
            )
        if len(rows.weak):
            made = _copies(source, setting.augment, config, task, f"data.unlabeled[{number}].augment")
            views = UnlabeledSource(source, rows, task, made)
            found.append(_Encoded(views, encode(views, np.arange(len(views))), setting.weight))
    usable = [each for each in found if len(each)]
    if not usable:
        raise ValueError(
            "data.unlabeled has no usable example: each is a case of data.validation or data.test, a copy without its "
            "original, or longer than data.max_length."
        )
    weights = [each.weight for each in usable if each.weight is not None] or None
    data = config.data
    order = Mixture(usable, weights=weights, temperature=data.temperature, size_cap=data.size_cap, seed=config.seed)
    size = max(1, round(config.semi_supervised.ratio * labeled))
    return UnlabeledBatches(
        task, usable, order, size, length_buckets(data.max_length), row_multiple, config.seed, config.steps
    ), skipped


def case_key(example: Example) -> str:
    """What makes two examples the same case, as in an audit."""
    return normalized("\n".join([render(example), *example.candidates, *example.history]))


@dataclass(frozen=True)
class _Rows:
    """Rows of a source.

    Attributes:
      weak: int64, the examples.
      rewritten: row of an example -> the rows of its copies in the source.
      has_label: bool [rows].
    """

    weak: np.ndarray
    rewritten: Mapping[int, Sequence[int]]
    has_label: np.ndarray


def _rows(
    source: IndexableSource, known: Mapping[str, tuple[str, Example]], skips: bool
) -> tuple[_Rows, list[SkippedRow]]:
    """known: key of a case -> its split and example."""
    leaks: list[SkippedRow] = []
    names: dict[str, int] = {}
    copies: list[tuple[int, str]] = []
    weak, has_label = [], np.zeros(len(source), bool)
    for row in range(len(source)):
        example = source[row]
        if example.media:
            raise ValueError(f"{example.where}: examples of data.unlabeled have words only, but this one has pictures.")
        has_label[row] = example.output is not None
        if case := known.get(case_key(example)):
            split, other = case
            leaks.append(
                SkippedRow(example.where, "", f"case of data.{split}", f"its text is that of {other.id or other.where}")
            )
        elif MADE_FROM in example.origin:
            copies.append((row, example.origin[MADE_FROM]))
        else:
            weak.append(row)
            names[example.id or example.where] = row
    if leaks and not skips:
        first = leaks[0]
        raise ValueError(
            f"data.unlabeled: {len(leaks):,} examples of {source.name} are cases of data.validation or data.test, "
            f"which a run that learns from them cannot be measured on; {first.where}: {first.detail}. Remove them "
            "(audit lists such texts), or set data.on_bad_example: skip to leave them out."
        )
    rewritten: dict[int, list[int]] = {}
    for row, name in copies:
        if name in names:
            rewritten.setdefault(names[name], []).append(row)
    return _Rows(np.array(weak, np.int64), rewritten, has_label), leaks


@dataclass(frozen=True)
class _Hidden(OfSource):
    """The examples of a source without their labels: in place of tags, empty ones."""

    tags: Callable[[str], bool]

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        words = example.words or (example.input or example.instruction).split()
        return replace(example, output=("",) * len(words) if self.tags(example.task) else None)

    def digest(self, index: int) -> bytes:
        return digest_of_example(self[index])


def _copies(
    source: IndexableSource, augment: AugmentConfig, config: Config, task: Task, name: str
) -> AugmentedSource | None:
    """The changed copies of `augment`; None without any."""
    augment.check(name)
    if not augment:
        return None
    tags = config.task.has_tags
    moved = [method for method in augment.methods if method not in KEEP_WORDS]
    if moved and any(tags(each) for each in {source[row].task for row in range(min(len(source), 200))}):
        raise ValueError(
            f"{name}.{moved[0]}: views of a tagged text need the same words in the same order, which {moved[0]} "
            f"changes; set {' or '.join(KEEP_WORDS)}."
        )
    labels = tuple(getattr(task, "labels", None) or ())
    how = ExampleAugmenter(augment, config.seed, labels, tags)
    return augmented(_Hidden(source, tags), how, config.task.augmentations, name)


@dataclass(frozen=True)
class UnlabeledSource(OfSource):
    """All views of a source's examples: of each the weak one, then the strong ones."""

    rows: _Rows
    owner: Task
    copies: AugmentedSource | None

    @cached_property
    def places(self) -> np.ndarray:
        """int64 [entries, 3]: row of the example, row of the view, number of its changed copy or 0."""
        changed = range(1, 1 if self.copies is None else self.copies.versions)
        found: list[tuple[int, int, int]] = []
        for row in self.rows.weak.tolist():
            found.append((row, row, 0))
            found += [(row, row, number) for number in changed]
            found += [(row, copy, 0) for copy in self.rows.rewritten.get(row, ())]
        return np.array(found, np.int64).reshape(-1, 3)

    @cached_property
    def fingerprint(self) -> str:
        own = [self.source.fingerprint, "" if self.copies is None else self.copies.fingerprint]
        return fingerprint_of([*(each.encode() for each in own), self.places.tobytes()])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        row, view, number = self.places[index].tolist()
        example = self.owner.as_unlabeled(self.source[row])
        if view == row and not number:
            return example
        if view != row:
            changed = self.source[view]
        else:
            assert self.copies is not None
            changed = self.copies[row * self.copies.versions + number]
        return replace(changed, output=example.output, task=example.task)

    def digest(self, index: int) -> bytes:
        return digest_of_example(self[index])


@dataclass(frozen=True)
class _Encoded:
    """The usable examples of a source: those with an encoded weak view and, where there are any, a strong one."""

    views: UnlabeledSource
    encoded: EncodedExamples
    weight: float | None
    skipped: list[SkippedRow] = field(default_factory=list)

    @cached_property
    def _usable(self) -> tuple[np.ndarray, Versions, np.ndarray]:
        """(int64 [examples] encodings of weak views, those of strong views, bool [examples] whether it has a label)."""
        places, entries = self.views.places, self.encoded.numbers
        own: dict[int, list[int]] = {}  # row of an example -> encodings of its strong views
        weak: dict[int, int] = {}
        has_strong = set(places[np.any(places[:, 1:] != places[:, [0, 0]] * [1, 0], axis=1), 0].tolist())
        for encoding, entry in enumerate(entries.tolist()):
            row, view, number = places[entry].tolist()
            if view == row and not number:
                weak[row] = encoding
            else:
                own.setdefault(row, []).append(encoding)
        rows = [row for row in weak if row in own or row not in has_strong]
        strong = [own.get(row, [weak[row]]) for row in rows]
        ends = np.cumsum([0, *map(len, strong)])
        flat = np.array([each for some in strong for each in some], np.int64)
        here = np.array(rows, np.int64)
        return np.array([weak[row] for row in rows], np.int64), Versions(ends, flat), self.views.rows.has_label[here]

    @property
    def name(self) -> str:
        return self.views.name

    @property
    def task(self) -> str:
        return self.views.task

    @property
    def fingerprint(self) -> str:
        return self.encoded.fingerprint

    def __len__(self) -> int:
        return len(self._usable[0])

    def __getitem__(self, index: int) -> Example:
        return self.encoded[int(self._usable[0][index])].example

    def digest(self, index: int) -> bytes:
        return digest_of_example(self[index])

    @property
    def weak(self) -> np.ndarray:
        return self._usable[0]

    @property
    def strong(self) -> Versions:
        return self._usable[1]

    @property
    def has_label(self) -> np.ndarray:
        return self._usable[2]


@dataclass(frozen=True)
class UnlabeledBatches:
    """Batches of both views, as a function of the step.

    Attributes:
      order: of the usable examples of all sources.
      size: examples of a batch.
      buckets, row_multiple, seed: see `data.loader.Loader`.
      steps: of the run.
    """

    owner: Task
    sources: Sequence[_Encoded]
    order: Mixture
    size: int
    buckets: Sequence[int]
    row_multiple: int
    seed: int
    steps: int

    @cached_property
    def encoded(self) -> EncodedExamples:
        return joined([each.encoded for each in self.sources])

    @cached_property
    def _firsts(self) -> np.ndarray:
        """int64 [sources]: the first encoding of each in `encoded`."""
        return np.cumsum([0, *(len(each.encoded) for each in self.sources[:-1])])

    @property
    def fingerprint(self) -> str:
        return self.order.fingerprint

    def drawn(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(encodings of weak views, of strong views, bool whether the label is known), [size] each.

        Each pass over the examples takes the next strong view of each.
        """
        found = []
        for position in range(step * self.size, (step + 1) * self.size):
            epoch, place = divmod(position, self.order.epoch_size)
            source, index = self.order.epoch_order(epoch)[place].tolist()
            own, first = self.sources[source], int(self._firsts[source])
            begin, end = own.strong.starts[index : index + 2].tolist()
            strong = own.strong.entries[begin + (index + epoch) % (end - begin)]
            found.append((first + own.weak[index], first + strong, own.has_label[index]))
        weak, strong, known = np.array(found, np.int64).T
        return weak, strong, known > 0

    def texts(self, step: int) -> tuple[BatchTexts, BatchTexts]:
        """The weak views and the strong views, gathered with the same random numbers (negatives)."""
        weak, strong, known = self.drawn(step)

        def gathered(chosen: np.ndarray) -> BatchTexts:
            some: list[Encoded] = self.encoded.take(chosen)
            seen = [e if sure else self.owner.without_target(e) for e, sure in zip(some, known, strict=True)]
            return self.owner.gather(seen, np.random.default_rng([self.seed, step, 1]))

        return gathered(weak), gathered(strong)

    def _sizes(self, step: int) -> Sizes:
        """The tokens of the longer view of each text."""
        if not self.owner.gathers_alone:
            return Sizes(_longest(self.texts(step)))
        weak, strong, _ = self.drawn(step)
        return Sizes(np.maximum(self.encoded.lengths[weak], self.encoded.lengths[strong]))

    @cached_property
    def shapes(self) -> Shapes:
        """One shape, as labeled batches may have two; of a run of many steps, a batch may need another one."""
        planned = spread(self.steps, SHAPED_BY if self.owner.gathers_alone else GATHERED)
        sizes = [self._sizes(step) for step in planned]
        return choose_shapes(sizes, self.buckets, self.row_multiple, spare=len(planned) < self.steps, most=1)

    def batch(self, step: int) -> HostBatch:
        """The views of a step, in `batch.unlabeled` of a batch whose own rows are those of the weak view."""
        texts = self.texts(step)
        plan = self.shapes.plan(Sizes(_longest(texts)))
        weak, strong = (lay_out(each, plan) for each in texts)
        tokens = sum(int(lengths_of(each.texts)[0].sum()) for each in texts)
        return HostBatch(replace(weak, unlabeled=Views(weak, strong)), tokens, plan.shape)

    def beside(self, labeled: Iterator[HostBatch], start: int, stop: int) -> Iterator[HostBatch]:
        """Labeled batches of the steps start..stop-1, each with the unlabeled examples of its step."""
        for host, more in zip(labeled, prefetch(self.batch, start, stop), strict=False):
            whole = replace(host.batch, unlabeled=more.batch.unlabeled)
            yield replace(host, batch=whole, tokens=host.tokens + more.tokens, views=more.shape)

    def weak_share(self, labeled: float) -> float:
        """The share of a step's tokens in weak views, which the network reads without learning from them.

        labeled: mean number of labeled tokens of a step.
        """
        weak, strong = (
            float(np.mean(np.concatenate([each.encoded.lengths[chosen(each)] for each in self.sources]))) * self.size
            for chosen in (lambda each: each.weak, lambda each: each.strong.entries)
        )
        return weak / (labeled + weak + strong)


def _longest(texts: Sequence[BatchTexts]) -> np.ndarray:
    """int64 [texts]: tokens of the longest of several views. Raises ValueError where they have other texts."""
    lengths = [lengths_of(each.texts)[0] for each in texts]
    if len({len(each) for each in lengths}) > 1:
        raise ValueError("data.unlabeled: the task makes more texts of one view of the examples than of the other.")
    return np.max(lengths, axis=0)
