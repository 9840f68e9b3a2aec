"""Runs a model over any number of texts, in few compiled shapes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import numpy as np
from flax import nnx

from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.batch import (
    Along,
    BatchTexts,
    Text,
    lay_out,
    lengths_of,
    map_arrays,
    of_texts,
)
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.media.text_images import TextImages, image_tokens, images_per_row
from instructrec_jax.data.packing import Plan, fit
from instructrec_jax.distributed.launch import fetch, place
from instructrec_jax.distributed.mesh import DeviceMesh, data_shards, replicated
from instructrec_jax.inference.code_search import CodeSearch, CodeTrie
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.writer import Generated, open_writer
from instructrec_jax.tasks.base import Model, Task
from instructrec_jax.tasks.prediction import Predict, Run
from instructrec_jax.training.state import Tree
from instructrec_jax.training.step import make_predict_step

TOKENS_PER_BATCH = 4096  # per data-parallel device
LADDER = (1, 2, 4, 8)  # rows of small batches per data-parallel device, with `Rows` "ladder"; larger ones are full
CALL = 2  # what one more call costs, in rows
CALL_TOKENS = 256  # the same in tokens, with `Rows` "fitting"
SHORTEST = 64  # tokens of a row at least, with `Rows` "fitting", so that calls with short texts share a shape
SHORT_TARGETS, LONG_TARGETS = 128, 1024  # lengths of target rows, with `Rows` "ladder"; longer: powers of two

Rows = Literal["fitting", "full", "ladder"]
"""How many rows a batch has. "fitting": one (per data-parallel device) or the full number, the same in all batches of a
call, in rows as long as its longest text needs: one shape. "full": always the full number, of each length of rows.
"ladder": one of `LADDER` or the full number, of each length, whichever computes the fewest rows, so that each shape can
be compiled before it is needed."""


def make_predict(
    predict_step: Callable[..., jax.Array],
    params: Tree,
    *,
    mesh: DeviceMesh,
    buckets: Sequence[int],
    per_token: bool,
    size: Rows = "fitting",
) -> Run:
    """The function that a task scores with: texts -> one array per text, in the order of the texts.

    Texts are packed into rows; how many, and how long, says `size`. Target rows are as long as the longest target of
    these texts, rounded up to a power of two; with targets, per-token outputs are those of the target's tokens. With
    several processes all of them run all texts together, and each gets every output.

    Args:
      predict_step: see `training.step.make_predict_step`.
      buckets: row lengths in tokens, ascending.
      per_token: whether the step returns one output per token instead of one per text.
      size: see `Rows`. With "full", each bucket is compiled once, and the result for a text does not depend on the
        number of texts.
    """

    def predict(
        texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        lengths, target_lengths = lengths_of(texts)
        outputs = lengths if target_lengths is None else target_lengths
        own = map_arrays(lambda axis, x: place(x, replicated(mesh)) if axis is Along.WHOLE else x, own)  # once
        results: dict[int, np.ndarray] = {}

        def keep(computing: jax.Array, chosen: np.ndarray, plan: Plan) -> None:
            output = fetch(computing)
            starts = plan.start if plan.target_start is None else plan.target_start
            for index, row, segment, start in zip(chosen.tolist(), plan.row, plan.segment, starts, strict=True):
                results[index] = output[row, start : start + outputs[index]] if per_token else output[row, segment - 1]

        before: tuple[jax.Array, np.ndarray, Plan] | None = None
        for chosen, plan in _plans(texts, buckets, data_shards(mesh), size):
            gathered = BatchTexts([texts[i] for i in chosen], of_texts(own, outputs, chosen))
            seed: tuple[np.uint32, ...] = ()
            if dropout is not None:
                seed, gathered = dropout[:1], replace(gathered, numbers=dropout[1][chosen])
            batch = to_devices(lay_out(gathered, plan), mesh)  # pictures are decoded while the last batch is computed
            if before is not None:
                keep(*before)
            before = predict_step(params, batch, *seed), chosen, plan
        if before is not None:
            keep(*before)
        return [results[index] for index in range(len(texts))]

    return predict


def _plans(texts: Sequence[Text], buckets: Sequence[int], shards: int, size: Rows) -> Iterator[tuple[np.ndarray, Plan]]:
    """(numbers of the texts in a batch, where they lie in its rows) for each batch, length by length of rows."""
    lengths, target_lengths = lengths_of(texts)
    bucket_of = np.searchsorted(buckets, lengths)
    if size == "fitting" and len(texts):
        bucket_of[:] = max(int(bucket_of.max()), int(np.searchsorted(buckets, min(SHORTEST, buckets[-1]))))
    for number in np.unique(bucket_of):
        members = np.flatnonzero(bucket_of == number)
        length, targets, target_length = int(buckets[number]), None, None
        if target_lengths is not None:
            targets = target_lengths[members]
            target_length = _target_length(int(targets.max()), size)
        images = [texts[i].images for i in members.tolist()]
        # with a ladder, a text with images has a row of its own, so that rows have no more images than a text has
        alone = size == "ladder" and any(images)
        whole = fit(
            np.full_like(lengths[members], length) if alone else lengths[members], length, targets, target_length
        )
        cost = length + (target_length or 0) + image_tokens(images, whole.row)
        rows = shards * _rows(-(-whole.rows // shards), cost, size)
        if size == "fitting":
            whole = _with_room(whole, images)
        for first in range(0, whole.rows, rows):
            inside = (whole.row >= first) & (whole.row < first + rows)
            plan = replace(whole.of_texts(inside), rows=rows, row=whole.row[inside] - first)
            yield members[inside], plan


def _with_room(plan: Plan, texts: Sequence[TextImages | None]) -> Plan:
    """The plan with room in each row for as many images as any row has."""
    some = next((images for images in texts if images is not None), None)
    if some is None:
        return plan
    counts = np.array([0 if images is None else len(images.pictures) for images in texts], np.int64)
    return replace(plan, images=(images_per_row(plan.row, counts), *some.read.shape))


def _full_rows(length: int) -> int:
    """The largest number of rows of a batch, per data-parallel device."""
    return max(1, TOKENS_PER_BATCH // length)


def ladder(length: int) -> tuple[int, ...]:
    """The numbers of rows of a batch per data-parallel device, with `Rows` "ladder".

    Args:
      length: of a row and its target row together.
    """
    full = _full_rows(length)
    return (*(rows for rows in LADDER if rows < full), full)


def _rows(needed: int, length: int, size: Rows) -> int:
    """Rows of a batch per data-parallel device, where all texts together need `needed` of them."""
    if size == "full":
        return _full_rows(length)
    if size == "fitting":
        return min((1, _full_rows(length)), key=lambda rows: -(-needed // rows) * (rows * length + CALL_TOKENS))
    return min(ladder(length), key=lambda rows: (-(-needed // rows) * (rows + CALL), -rows))


def _target_length(longest: int, size: Rows) -> int:
    power = 1 << (longest - 1).bit_length()
    if size != "ladder":
        return max(32, power)
    return SHORT_TARGETS if longest <= SHORT_TARGETS else max(LONG_TARGETS, power)


def texts_of_every_shape(like: Text, buckets: Sequence[int], shards: int) -> Iterator[list[Text]]:
    """Texts, made of the tokens of one, that fill each batch shape of a `Run` with the `Rows` "ladder".

    Texts with images have as many of them as `like`.
    """
    for length in buckets:
        types = None if like.types is None else np.resize(like.types, length)
        images, cost = like.images, length
        if images is not None:
            places = np.full(length, -1, np.int32)
            places[: images.vectors * len(images.pictures)] = np.arange(images.vectors * len(images.pictures))
            images, cost = replace(images, places=places), length + image_tokens([images], np.zeros(1, np.int64))
        text = Text(np.resize(like.tokens, length), types, images=images)
        for rows in ladder(cost):
            yield [text] * (rows * shards)


def predictor(
    task: Task, graphdef: nnx.GraphDef[Model], mesh: DeviceMesh, buckets: Sequence[int], *, size: Rows = "fitting"
) -> Callable[[Tree], Predict]:
    """A function: parameters -> the `Predict` that a task scores with."""
    step = make_predict_step(task, graphdef, mesh)
    subtasks = {name: predictor(each, graphdef, mesh, buckets, size=size) for name, each in task.subtasks.items()}
    writer = functools.cache(partial(open_writer, task, graphdef, mesh))  # few calls write
    searches: dict[int, CodeSearch] = {}

    def search(trie: CodeTrie) -> CodeSearch:
        """The search of a task's trie, of which each task has one."""
        if id(trie) not in searches:
            searches[id(trie)] = CodeSearch(writer().decoder, trie)
        return searches[id(trie)]

    def with_params(params: Tree) -> Predict:
        run = make_predict(step, params, mesh=mesh, buckets=buckets, per_token=task.per_token, size=size)
        predict = Predict(run, subtasks={name: each(params) for name, each in subtasks.items()})
        if not task.writes:
            return predict

        def write(
            prompts: Sequence[np.ndarray], config: GenerationConfig, images: Sequence[RowImages] | None = None
        ) -> list[Generated]:
            names = [f"prompt {number + 1}" for number in range(len(prompts))]
            return writer().write(params, prompts, names, config, images=images)

        def find(
            prompts: Sequence[np.ndarray], trie: CodeTrie, beams: int, excluded: Sequence[np.ndarray]
        ) -> tuple[np.ndarray, np.ndarray]:
            found = search(trie).find(params, prompts, beams, excluded)
            return found.items, found.scores

        return replace(predict, write=write, find=find)

    return with_params
