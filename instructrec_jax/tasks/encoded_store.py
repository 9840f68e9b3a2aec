"""Encoded examples in a store: tokenized once, in worker processes, and read one by one.

A row of the store is an `Encoded`: its tokens and target (`data.codec`), their lengths, and the number of its example
in the source. `EncodedExamples` is a sequence of them, of one or several sources, that holds nothing but the store.
"""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from instructrec_jax.backbones.folder import PROCESSOR
from instructrec_jax.data.batch import Text
from instructrec_jax.data.codec import pack, unpack
from instructrec_jax.data.example import Example
from instructrec_jax.data.example_store import BAR_FROM
from instructrec_jax.data.fingerprints import digest_of_example, fingerprint_of, json_and_digest
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.data.mixture import NumberedExamples
from instructrec_jax.data.parallel import in_order
from instructrec_jax.data.parts import Part
from instructrec_jax.data.shares import SOURCE_ROW
from instructrec_jax.data.skipped import OnBadExample, SkippedRow, listing
from instructrec_jax.data.storage import Storage, code_version, digest_of
from instructrec_jax.data.store import PART_ROWS, Store, StorePlan, open_store
from instructrec_jax.files import check_type
from instructrec_jax.tasks.base import Encoded, Task, TaskContext
from instructrec_jax.tasks.encoding import encode_usable

NONE = -1  # length of a target that is not there; number of an example that the task made itself
SCHEMA = pa.schema(
    [
        ("length", pa.int32()),
        ("target_length", pa.int32()),
        ("images", pa.int32()),
        ("number", pa.int64()),  # of the example in the source
        ("group", pa.int32()),  # equal in a part for encodings of one example
        ("task", pa.string()),
        ("text", pa.large_binary()),
        ("goal", pa.large_binary()),
        ("made", pa.large_binary()),  # JSON of an example that the task made (a turn of a dialogue), else null
        ("made_digest", pa.binary(32)),  # of that one
        ("where", pa.string()),  # of that one
        (SOURCE_ROW, pa.int64()),  # which of the encoded examples it comes from; NONE where `made`
    ]
)
SHARED = ("length", "target_length", "images", "number", "task", "made_digest", SOURCE_ROW)  # see `StorePlan.shared`
TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model", "chat_template*"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", *PROCESSOR),
)


@dataclass(frozen=True)
class _Source:
    """The encodings of one source, and its examples by number."""

    store: Store
    examples: NumberedExamples
    pixels: MediaReader | None


class _Stored(Encoded):
    """An `Encoded` whose example is read when it is asked for: batches need none, and reading it takes the longest."""

    def __init__(self, text: Text, target: object, example: Callable[[], Example]) -> None:
        self.__dict__.update(text=text, target=target, _example=example)  # its attributes are frozen

    @cached_property
    def example(self) -> Example:
        return self.__dict__["_example"]()


class _Pictures(Sequence[Picture]):
    """The pictures or sounds of an example that is read when they are asked for."""

    def __init__(self, example: Callable[[], Example], count: int) -> None:
        self.example, self.length = example, count

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        return self.example().media[index]


class _OpenPart(NamedTuple):
    """A batch with the rows first to end − 1 of all stores; its place 0 is row `start`."""

    first: int
    end: int
    start: int
    batch: pa.RecordBatch
    columns: list[pa.Array]
    examples: NumberedExamples
    pixels: MediaReader | None


class EncodedExamples(Sequence[Encoded]):
    """Encoded examples of one or several stores; see the module.

    Attributes:
      rows: int64, the chosen rows of all stores end to end; None: all.
    """

    def __init__(self, sources: Sequence[_Source], rows: np.ndarray | None = None) -> None:
        self._sources, self.rows = sources, rows
        self._ends = np.cumsum([len(source.store) for source in sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1] if len(self._ends) else 0) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return list(self._read(range(*index.indices(len(self))), sweep=True))
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return next(self._read([index % len(self)], sweep=False))

    def __iter__(self) -> Iterator[Encoded]:
        return self._read(range(len(self)), sweep=True)

    def _read(self, indices: Sequence[int], sweep: bool) -> Iterator[Encoded]:
        """Consecutive encodings of one example have it as one object. sweep: see `Store.find`."""
        last: tuple[pa.RecordBatch | None, object] = (None, None)
        part: _OpenPart | None = None
        for index in indices:
            row = index if self.rows is None else int(self.rows[index])
            if part is None or not part.first <= row < part.end:
                part = self._part(row, sweep)
            place = row - part.start
            number, group, text, goal, images = (column[place].as_py() for column in part.columns)
            if last[0] is not part.batch or last[1] != group:
                last, example = (part.batch, group), cache(partial(_example, part.batch, place, number, part.examples))
            tokens, types, target, places = cast(Any, unpack(text))
            # the pictures are in the example, which may hold their bytes: here they are only counted
            own = None
            if images and part.pixels is not None:
                own = TextImages(_Pictures(example, images), places, part.pixels)
            yield _Stored(Text(tokens, types, target, own), unpack(goal), example)

    def _part(self, row: int, sweep: bool) -> "_OpenPart":
        number = int(np.searchsorted(self._ends, row, side="right"))
        source = self._sources[number]
        batch, place = source.store.find(row - (int(self._ends[number - 1]) if number else 0), sweep)
        columns = [batch.column(name) for name in ("number", "group", "text", "goal", "images")]
        start = row - place
        is_whole = source.store.elsewhere is None  # else the batch may have this row alone
        first, end = (start, start + batch.num_rows) if is_whole else (row, row + 1)
        return _OpenPart(first, end, start, batch, columns, source.examples, source.pixels)

    def take(self, indices: np.ndarray) -> list[Encoded]:
        """Some of them, int64. Those that other processes keep are encoded together."""
        rows = indices if self.rows is None else self.rows[indices]
        for source, end in zip(self._sources, self._ends, strict=True):
            own = rows - (end - len(source.store))
            source.store.expect(own[(own >= 0) & (own < len(source.store))].tolist())
        return list(self._read(indices.tolist(), sweep=False))

    def chosen(self, rows: np.ndarray) -> "EncodedExamples":
        """Some of them. rows: int64 or bool, as NumPy takes an index."""
        return EncodedExamples(self._sources, np.arange(len(self))[rows] if self.rows is None else self.rows[rows])

    def _numbers(self, column: str) -> np.ndarray:
        found = [source.store.numbers(column) for source in self._sources]
        whole = np.concatenate([*found, np.zeros(0, np.int32)])
        return whole if self.rows is None else whole[self.rows]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [examples]: tokens of each text."""
        return self._numbers("length").astype(np.int64)

    @cached_property
    def target_lengths(self) -> np.ndarray | None:
        """int64 [examples]: tokens of each target; None where there are none."""
        lengths = self._numbers("target_length").astype(np.int64)
        return lengths if len(lengths) and lengths.max() >= 0 else None

    @cached_property
    def numbers(self) -> np.ndarray:
        """int64 [examples]: the number of each example in its source; `NONE` for one that the task made itself."""
        return self._numbers("number").astype(np.int64)

    @cached_property
    def image_counts(self) -> np.ndarray | None:
        """int64 [examples]: images of each text; None where there are none."""
        counts = self._numbers("images").astype(np.int64)
        return counts if counts.any() else None

    def of_task(self, name: str) -> "EncodedExamples":
        """Those of a task."""
        import pyarrow.compute as pc  # takes a sixth of a second

        equal = [pc.equal(part.rows.column("task"), name) for source in self._sources for part in source.store.parts]
        found = np.concatenate([*(each.to_numpy(zero_copy_only=False) for each in equal), np.zeros(0, bool)])
        return self.chosen(found if self.rows is None else found[self.rows])

    @property
    def stores(self) -> list[Store]:
        return [source.store for source in self._sources]

    @property
    def fingerprint(self) -> str:
        """`data.fingerprints.fingerprint` of the examples of the only source, one for each of its encodings."""
        (source,) = self._sources
        return check_type(source.store.summary["fingerprint"], str, "a store")

    @property
    def skipped(self) -> list[SkippedRow]:
        """The examples that the task cannot use, see `data.on_bad_example`."""
        return [row for source in self._sources for row in _skipped(source.store.summary)]


def _example(batch: pa.RecordBatch, place: int, number: int, examples: NumberedExamples) -> Example:
    if number != NONE:
        return examples[number]
    where = batch.column("where")[place].as_py()
    return Example.from_record(json.loads(batch.column("made")[place].as_py()), where)


def joined(parts: Sequence[EncodedExamples]) -> EncodedExamples:
    """The encodings of several sources, one after another (whole ones)."""
    return EncodedExamples([source for part in parts for source in part._sources])


def of_task(encoded: Sequence[Encoded], name: str) -> Sequence[Encoded]:
    """The encoded examples of a task."""
    if isinstance(encoded, EncodedExamples):
        return encoded.of_task(name)
    return [e for e in encoded if e.example.task == name]


def chosen(encoded: Sequence[Encoded], numbers: np.ndarray) -> Sequence[Encoded]:
    """The encoded examples with these numbers, int64."""
    if isinstance(encoded, EncodedExamples):
        return encoded.chosen(numbers)
    return [encoded[number] for number in numbers.tolist()]


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Encoding:
    """What a worker needs to encode examples. `numbers`: int64, of the examples to encode."""

    task: Task
    examples: NumberedExamples
    numbers: np.ndarray
    on_bad_example: OnBadExample


def encode_stored(
    task: Task,
    examples: NumberedExamples,
    numbers: np.ndarray,
    on_bad_example: OnBadExample,
    *,
    name: str = "",
    folder: Path | None = None,
    key: object = None,
    storage: Storage | None = None,
) -> EncodedExamples:
    """Encodes examples, or opens the store that holds them encoded. Adds to the counts of the task's context.

    Args:
      numbers: int64, of the examples to encode.
      name: of the source, for the progress bar.
      folder: of the stores; None: in memory.
      key: what identifies the examples, the task's settings and its tokenizer: see `token_key`.

    Raises:
      BadExample, ValueError: as `tasks.encoding.encode_usable`.
    """
    storage = storage or Storage()
    workers = 1 if task.encodes_together else storage.processes(len(numbers))
    encoding = _Encoding(task, examples, numbers, on_bad_example)

    def make(blocks: Sequence[range]) -> Iterator[Part]:
        hidden = len(numbers) < BAR_FROM
        with tqdm(total=sum(map(len, blocks)), desc=f"tokenizing {name}", unit=" examples", disable=hidden) as bar:
            for part, block in zip(in_order(encode_block, encoding, blocks, workers), blocks, strict=True):
                bar.update(len(block))
                yield part

    def summarize(parts: Sequence[Part]) -> dict[str, object]:
        return _summary(parts, examples, len(_contexts(task)))

    plan = StorePlan(
        folder=None if key is None else folder,
        key={"tokens": key, "code": code_version("data", "tasks", "ranking")},
        rows=lambda: len(numbers),
        make=make,
        summarize=summarize,
        kept_from=storage.kept_from,
        part_rows=max(len(numbers), 1) if task.encodes_together else PART_ROWS,
        shared=SHARED if storage.divided and task.divides else (),
        # A thread encodes rows while an evaluation may use the task's tokenizer and counts.
        remake=lambda: partial(encode_block, replace(encoding, task=copy.deepcopy(task))),
    )
    store = open_store(plan)
    for context, counts in zip(_contexts(task), store.summary["counts"], strict=True):  # type: ignore[call-overload]
        for what, number in check_type(counts, dict[str, int], "counts of a store").items():
            context.count(what, number)
    skipped = _skipped(store.summary)
    if skipped and not len(store):
        raise ValueError(f"none of {len(skipped):,} examples is usable.\n{listing(skipped)}")
    return EncodedExamples([_Source(store, examples, task.context.pixels)])


def encode_again(
    task: Task, cases: Sequence[Encoded], change: Callable[[Example], Example] | None = None
) -> EncodedExamples:
    """The examples of some cases as another task encodes them, or changed, in the order of the cases.

    They are in memory as the bytes of a store, without their examples.
    """
    examples = _CaseExamples(cases, change)
    return encode_stored(task, examples, np.arange(len(cases)), "error", storage=Storage(workers=1))


@dataclass(frozen=True)
class _CaseExamples:
    """The examples of some cases, changed when they are read."""

    cases: Sequence[Encoded]
    change: Callable[[Example], Example] | None

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(map(self.digest, range(len(self))))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Example:
        example = self.cases[index].example
        return example if self.change is None else self.change(example)

    def digest(self, index: int) -> bytes:
        return digest_of_example(self[index])


def token_key(task: Task, settings: object, examples: str, numbers: np.ndarray, on_bad_example: str) -> object:
    """What the encodings of examples depend on, as JSON; None where that cannot be told.

    Args:
      settings: of the task, as JSON.
      examples: fingerprint of all examples of the source.
      numbers: int64, of those to encode.
    """
    context = task.context
    if context.folder is None:
        return None
    own = {
        name: getattr(context, name)
        for name in (
            *("max_length", "truncate", "lower_case", "prompt", "kind", "decoder_start_token_id", "vocab_size"),
            *("answer_vocabulary", "prompt_type"),
        )
    }
    return {
        "examples": examples,
        "chosen": hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest(),
        "task": settings,
        "beside": task.encoding_depends_on(),
        "context": {**own, "held_out": list(context.held_out), "new_items": context.new_items},
        "seed": context.seed if task.encodes_together else None,
        "tokenizer": tokenizer_digest(context),
        "on_bad_example": on_bad_example,
    }


def tokenizer_digest(context: TaskContext) -> dict[str, str]:
    """Digest of each file of the tokenizer by its name; none without a folder."""
    folder = context.folder
    found = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)} if folder is not None else set()
    files = sorted(file for file in found if file.is_file())
    return dict(zip([file.name for file in files], digest_of(files), strict=True))


def encode_block(encoding: _Encoding, block: Sequence[int]) -> Part:
    """The encodings of some examples, without a trace in the task's own counts."""
    task = encoding.task
    numbers = encoding.numbers[list(block)].tolist()
    examples = [encoding.examples[number] for number in numbers]
    contexts = _contexts(task)
    before = [Counter(context.counts) for context in contexts]
    encoded, bad = encode_usable(task, examples, encoding.on_bad_example)
    counts = [dict(Counter(c.counts) - b) for c, b in zip(contexts, before, strict=True)]
    for context, own in zip(contexts, before, strict=True):
        context.counts.clear()
        context.counts.update(own)
    known = {id(example): each for example, each in zip(examples, zip(numbers, block, strict=True), strict=True)}
    return Part(_batch(encoded, known), {"counts": counts, "skipped": [asdict(row) for row in bad]})


def _batch(encoded: Sequence[Encoded], known: dict[int, tuple[int, int]]) -> pa.RecordBatch:
    """known: id of an example -> (its number, which of the encoded examples it is)."""
    groups: dict[int, int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for e in encoded:
        number, row = known.get(id(e.example), (NONE, NONE))
        own = number == NONE
        made = json_and_digest(e.example) if own else (None, None)
        values = {
            "length": len(e.text.tokens),
            "target_length": NONE if e.text.target is None else len(e.text.target),
            "number": number,
            "group": groups.setdefault(id(e.example), len(groups)),
            "task": e.example.task,
            "images": 0 if e.text.images is None else len(e.text.images.pictures),
            "text": pack((e.text.tokens, e.text.types, e.text.target, e.text.images and e.text.images.places)),
            "goal": pack(e.target),
            "made": made[0],
            "made_digest": made[1],
            "where": e.example.where if own else None,
            SOURCE_ROW: row,
        }
        for name, value in values.items():
            columns[name].append(value)
    return pa.record_batch([pa.array(columns[each.name], each.type) for each in SCHEMA], schema=SCHEMA)


def _contexts(task: Task) -> list[TaskContext]:
    """The contexts of a task and its subtasks, those that count apart."""
    return list({id(each.context.counts): each.context for each in (task, *task.subtasks.values())}.values())


def _summary(parts: Sequence[Part], examples: NumberedExamples, contexts: int) -> dict[str, object]:
    numbers = np.concatenate([*(part.rows.column("number").to_numpy() for part in parts), np.zeros(0, np.int64)])
    as_they_are = np.array_equal(numbers, np.arange(len(examples)))  # the usual case: each example once
    counts = [Counter[str]() for _ in range(contexts)]
    skipped: list[object] = []
    for part in parts:
        own = check_type(part.meta["counts"], list[dict[str, int]], "a store")
        for total, each in zip(counts, own, strict=True):
            total.update(each)
        skipped += check_type(part.meta["skipped"], list[object], "a store")
    made = (digest for part in parts for digest in part.rows.column("made_digest").to_pylist())
    digests = (own or examples.digest(int(number)) for own, number in zip(made, numbers, strict=True))
    fingerprint = examples.fingerprint if as_they_are else fingerprint_of(digests)
    return {"fingerprint": fingerprint, "counts": [dict(each) for each in counts], "skipped": skipped}


def _skipped(summary: dict[str, object]) -> list[SkippedRow]:
    return [SkippedRow(**row) for row in check_type(summary["skipped"], list[dict[str, str]], "a store")]
