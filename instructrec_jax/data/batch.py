"""Batches: what a step of training or of prediction receives.

Every batch, of every family and task, is a `Batch`: packed rows of tokens and, in `own`, the arrays that the task adds.
These are a frozen dataclass that the task defines, whose annotations say along which axis each array lies:

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Labels:
        targets: PerText   # int32 [texts]

`Task.gather` fills it with arrays in the order of the texts (`BatchTexts`); `lay_out` places them in rows. In an array
`PerToken` the tokens of all texts lie end to end: int32 [tokens], or several numbers for each, int32 [tokens, ...].
"""

import enum
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Generic, TypeAlias, get_args, get_type_hints

import jax
import numpy as np
from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from instructrec_jax.arrays import Array
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.media.text_images import TextImages, lay_images
from instructrec_jax.data.packing import Plan


class Along(enum.Enum):
    """The axis along which an array of a task lies, and its form in a `Batch`."""

    TOKENS = "tokens"  # int32 [tokens of all texts (or targets), ...] -> [rows, length, ...]
    TEXTS = "texts"  # [texts, ...] -> [rows, segments, ...]
    EXAMPLES = "examples"  # [examples, ...], unchanged
    TEXT_NUMBERS = "text numbers"  # indices of texts -> indices of their pooled vectors, [rows * segments, ...]
    WHOLE = "whole"  # unchanged, and equal on all devices


PerToken: TypeAlias = Annotated[Array, Along.TOKENS]
PerText: TypeAlias = Annotated[Array, Along.TEXTS]
PerExample: TypeAlias = Annotated[Array, Along.EXAMPLES]
TextNumbers: TypeAlias = Annotated[Array, Along.TEXT_NUMBERS]
Whole: TypeAlias = Annotated[Array, Along.WHOLE]

Own = TypeVar("Own", covariant=True, default=Any)
Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Packed texts, int32 [rows, length] each.

    Attributes:
      segment_ids: number of the token's text in its row, from 1; 0 is padding.
      positions: position of the token in its text.
    """

    tokens: Array
    segment_ids: Array
    positions: Array

    def __iter__(self) -> Iterator[Array]:
        """In the order of a backbone's arguments."""
        return iter((self.tokens, self.segment_ids, self.positions))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch(Generic[Own]):
    """Packed texts and the arrays of the task.

    Attributes:
      token_types: int32 [rows, length].
      text_numbers: int32 [rows, segments], index in the batch of each segment's text.
      targets: the input of an encoder–decoder's decoder; a target has the row and segment number of its text. None for
        other networks.
      own: the arrays of the task, see the module; None where there are none.
      images: the images in the rows; None where no text has any.
      unlabeled: examples without labels, in rows of their own; None where a batch of training has none.
    """

    texts: Rows
    token_types: Array
    text_numbers: Array
    targets: Rows | None
    own: Own
    images: RowImages | None = None
    unlabeled: "Views | None" = None

    @property
    def outputs(self) -> Rows:
        """The rows whose tokens have outputs: the targets, else the texts."""
        return self.texts if self.targets is None else self.targets

    @property
    def without_own(self) -> "Batch[None]":
        """The texts alone."""
        return Batch(self.texts, self.token_types, self.text_numbers, self.targets, None, self.images)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Views:
    """The same examples twice, with each text (or pair) in the same row and segment of both.

    So outputs for texts, and those for examples, lie in the same places of both.

    Attributes:
      weak: the examples as they are.
      strong: changed copies.
    """

    weak: Batch
    strong: Batch


@dataclass(frozen=True, slots=True)
class Text:
    """One tokenized text: int32 [length] tokens, and token types where the network has them.

    `target`: decoder input of an encoder–decoder, int32 [target length]. `images`: None for a text without any.
    """

    tokens: np.ndarray
    types: np.ndarray | None = None
    target: np.ndarray | None = None
    images: TextImages | None = None


@dataclass(frozen=True)
class BatchTexts(Generic[Own]):
    """A task's texts and arrays for some examples, before packing.

    Attributes:
      own: see the module; arrays `PerToken` have the lengths of the texts or, with targets, of the targets.
      numbers: int32 [texts], the `text_numbers`; None: 0, 1, ...
    """

    texts: Sequence[Text]
    own: Own
    numbers: np.ndarray | None = None


def map_arrays(function: Callable[[Along, Array], Array], own: Tree) -> Tree:
    """A task's arrays with function(axis, array) in place of each; dataclasses and dicts of them are kept."""
    if own is None:
        return own
    if isinstance(own, dict):
        return type(own)((name, map_arrays(function, each)) for name, each in own.items())
    if not is_dataclass(own) or isinstance(own, type):
        raise TypeError(f"the arrays of a task are a dataclass, not a {type(own).__name__}.")
    axes, mapped = axes_of(type(own)), {}
    for name in (field.name for field in fields(own)):
        value = getattr(own, name)
        if value is not None:
            mapped[name] = function(axes[name], value) if name in axes else map_arrays(function, value)
    return replace(own, **mapped)


@functools.cache
def axes_of(kind: type) -> dict[str, Along]:
    """The axis of each array of a task's dataclass, from its annotations."""
    found: dict[str, Along] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for part in (hint, *get_args(hint)):  # an optional array is a union with None
            found.update((name, axis) for axis in getattr(part, "__metadata__", ()) if isinstance(axis, Along))
    return found


def of_texts(own: Tree, lengths: np.ndarray, numbers: np.ndarray) -> Tree:
    """A task's arrays for some of the texts.

    Args:
      lengths: int64 [texts], tokens of each text or, with targets, of each target.
      numbers: of the chosen texts, in the new order.
    """
    starts = np.cumsum(lengths) - lengths
    places = np.repeat(starts[numbers], lengths[numbers]) + within(lengths[numbers])

    def chosen(axis: Along, array: Array) -> Array:
        if axis in (Along.EXAMPLES, Along.TEXT_NUMBERS):
            raise ValueError("arrays of examples cannot be divided by texts.")
        return array if axis is Along.WHOLE else array[places if axis is Along.TOKENS else numbers]

    return map_arrays(chosen, own)


def lengths_of(texts: Sequence[Text]) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens of each text, int64 [texts], and of each target, or None without targets.

    Raises ValueError when some texts have targets and others do not.
    """
    lengths = np.array([len(text.tokens) for text in texts], np.int64)
    targets = [len(text.target) for text in texts if text.target is not None]
    if targets and len(targets) < len(texts):
        raise ValueError(f"{len(targets)} of {len(texts)} texts have a target: either all or none must have one.")
    return lengths, np.array(targets) if targets else None


def end_to_end(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [tokens]: an array `PerToken` of one array per text."""
    return np.concatenate([*arrays, np.zeros(0, np.int32)]).astype(np.int32, copy=False)


def split_tokens(array: Array, lengths: np.ndarray) -> list[np.ndarray]:
    """The array of each text in an array `PerToken`."""
    return np.split(np.asarray(array), np.cumsum(lengths)[:-1])


@dataclass(frozen=True)
class _Side:
    """The places of the tokens of all texts, end to end, in the rows of a plan: int [tokens] `row` and `column`."""

    shape: tuple[int, int]
    row: np.ndarray
    column: np.ndarray

    @classmethod
    def of(cls, plan: Plan, lengths: np.ndarray, starts: np.ndarray, length: int) -> "_Side":
        return cls((plan.rows, length), np.repeat(plan.row, lengths), np.repeat(starts, lengths) + within(lengths))

    def put(self, flat: Array) -> np.ndarray:
        """int32 [tokens, ...] -> int32 [rows, length, ...]."""
        laid = np.zeros((*self.shape, *flat.shape[1:]), np.int32)
        laid[self.row, self.column] = flat
        return laid

    def packed(self, plan: Plan, lengths: np.ndarray, tokens: Sequence[np.ndarray]) -> Rows:
        segments = np.repeat(plan.segment, lengths)
        return Rows(self.put(end_to_end(tokens)), self.put(segments), self.put(within(lengths)))


def within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., length − 1 for each length, end to end."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def lay_out(parts: BatchTexts[Own], plan: Plan) -> Batch[Own]:
    """The batch of a plan, as NumPy arrays over all processes."""
    texts, (lengths, target_lengths) = parts.texts, lengths_of(parts.texts)
    side = _Side.of(plan, lengths, plan.start, plan.length)
    outputs, targets = side, None
    if target_lengths is not None and plan.target_length is not None and plan.target_start is not None:
        outputs = _Side.of(plan, target_lengths, plan.target_start, plan.target_length)
        targets = outputs.packed(plan, target_lengths, [text.target for text in texts if text.target is not None])
    elif target_lengths is not None or plan.target_length is not None:
        raise ValueError("the texts and the plan disagree: either both or neither must have targets.")

    def laid(axis: Along, array: Array) -> Array:
        match axis:
            case Along.TOKENS:
                return outputs.put(array)
            case Along.TEXTS:
                whole = np.zeros((plan.rows, plan.segments, *array.shape[1:]), array.dtype)
                whole[plan.row, plan.segment - 1] = array
                return whole
            case Along.TEXT_NUMBERS:
                return plan.slot[array].astype(np.int32)
        return array

    types = [np.zeros(len(text.tokens), np.int32) if text.types is None else text.types for text in texts]
    numbers = np.arange(len(texts), dtype=np.int32) if parts.numbers is None else parts.numbers
    return Batch(
        texts=side.packed(plan, lengths, [text.tokens for text in texts]),
        token_types=side.put(end_to_end(types)),
        text_numbers=laid(Along.TEXTS, numbers),
        targets=targets,
        own=map_arrays(laid, parts.own),
        images=_images(texts, lengths, plan, side),
    )


def _images(texts: Sequence[Text], lengths: np.ndarray, plan: Plan, side: _Side) -> RowImages | None:
    images = [text.images for text in texts]
    if plan.images is None and not any(images):
        return None
    return lay_images(images, lengths, plan.row, (side.row, side.column), side.shape, plan.images)


def images_of(text: Text, shape: tuple[int, ...]) -> RowImages:
    """The images of a text, in one row as long as the text. shape: of an image, where the text has none."""
    length, zeros = len(text.tokens), np.zeros(len(text.tokens), np.int64)
    if text.images is None:
        return RowImages(np.zeros((1, 0, *shape), np.float32), np.full((1, length), -1, np.int32))
    at = (zeros, np.arange(length))
    return lay_images([text.images], np.array([length]), np.zeros(1, np.int64), at, (1, length), None)
