"""Runs a model over any number of texts, in few compiled shapes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

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
from instructrec_jax.data.packing import Plan, fit
from instructrec_jax.distributed.launch import fetch, place
from instructrec_jax.distributed.mesh import DeviceMesh, data_shards, replicated
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.writer import Generated, open_writer
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.prediction import Predict, Run
from instructrec_jax.training.step import make_predict_step

TOKENS_PER_BATCH = 4096  # per data-parallel device


def make_predict(
    predict_step: Callable[..., jax.Array],
    params: Any,
    *,
    mesh: DeviceMesh,
    buckets: Sequence[int],
    per_token: bool,
    full: bool = False,
) -> Run:
    """The function that a task scores with: texts -> one array per text, in the order of the texts.

    Each text is packed into rows of the smallest bucket that holds it. Each bucket has one batch shape; with few rows
    their number is rounded up to a power of two, so that small calls share compiled shapes. The target rows of a bucket
    are as long as its longest target, rounded up to a power of two; with targets, per-token outputs are those of the
    target's tokens. With several processes all of them run all texts together, and each gets every output.

    Args:
      predict_step: see `training.step.make_predict_step`.
      buckets: row lengths in tokens, ascending.
      per_token: whether the step returns one output per token instead of one per text.
      full: batches of few rows also have the full number of rows, so that each bucket is compiled once and the result
        for a text does not depend on the number of texts.
    """

    def predict(
        texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        lengths, target_lengths = lengths_of(texts)
        outputs = lengths if target_lengths is None else target_lengths
        own = map_arrays(lambda axis, x: place(x, replicated(mesh)) if axis is Along.WHOLE else x, own)  # once
        results: dict[int, np.ndarray] = {}
        for chosen, plan in _plans(texts, buckets, data_shards(mesh), full):
            gathered = BatchTexts([texts[i] for i in chosen], of_texts(own, outputs, chosen))
            seed: tuple[np.uint32, ...] = ()
            if dropout is not None:
                seed, gathered = dropout[:1], replace(gathered, numbers=dropout[1][chosen])
            output = fetch(predict_step(params, to_devices(lay_out(gathered, plan), mesh), *seed))
            starts = plan.start if plan.target_start is None else plan.target_start
            for index, row, segment, start in zip(chosen.tolist(), plan.row, plan.segment, starts, strict=True):
                results[index] = output[row, start : start + outputs[index]] if per_token else output[row, segment - 1]
        return [results[index] for index in range(len(texts))]

    return predict


def _plans(texts: Sequence[Text], buckets: Sequence[int], shards: int, full: bool) -> Iterator[tuple[np.ndarray, Plan]]:
    """(numbers of the texts in a batch, where they lie in its rows) for each batch, bucket by bucket."""
    lengths, target_lengths = lengths_of(texts)
    bucket_of = np.searchsorted(buckets, lengths)
    for number in np.unique(bucket_of):
        members = np.flatnonzero(bucket_of == number)
        length, targets, target_length = int(buckets[number]), None, None
        if target_lengths is not None:
            targets = target_lengths[members]
            target_length = max(32, 1 << (int(targets.max()) - 1).bit_length())
        whole = fit(lengths[members], length, targets, target_length)
        most = max(1, TOKENS_PER_BATCH // (length + (target_length or 0))) * shards
        size = most if full else min(most, shards << (-(-whole.rows // shards) - 1).bit_length())
        for first in range(0, whole.rows, size):
            inside = (whole.row >= first) & (whole.row < first + size)
            plan = replace(
                whole,
                rows=size,
                row=whole.row[inside] - first,
                segment=whole.segment[inside],
                start=whole.start[inside],
                target_start=None if whole.target_start is None else whole.target_start[inside],
            )
            yield members[inside], plan


def predictor(
    task: Task, graphdef: Any, mesh: DeviceMesh, buckets: Sequence[int], *, full: bool = False
) -> Callable[[Any], Predict]:
    """A function: parameters -> the `Predict` that a task scores with; `full`: see `make_predict`."""
    step = make_predict_step(task, graphdef, mesh)
    subtasks = {name: predictor(each, graphdef, mesh, buckets, full=full) for name, each in task.subtasks.items()}
    writer = functools.cache(partial(open_writer, task, graphdef, mesh))  # few calls write

    def with_params(params: Any) -> Predict:
        run = make_predict(step, params, mesh=mesh, buckets=buckets, per_token=task.per_token, full=full)
        predict = Predict(run, subtasks={name: each(params) for name, each in subtasks.items()})
        if not task.writes:
            return predict

        def write(prompts: Sequence[np.ndarray], config: GenerationConfig) -> list[Generated]:
            names = [f"prompt {number + 1}" for number in range(len(prompts))]
            return writer().write(params, prompts, names, config)

        return replace(predict, write=write)

    return with_params
