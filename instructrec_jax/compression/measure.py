"""A compressed run beside the dense one: quality, bytes and speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from instructrec_jax.backbones.family import PAIR, WORDLESS
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.batch import Batch, Rows, Text, lay_out, lengths_of
from instructrec_jax.data.data_config import Split
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.packing import fit
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.mesh import DeviceMesh, data_shards
from instructrec_jax.evaluation.evaluator import greater_is_better, measured_on, score_row
from instructrec_jax.evaluation.results import Results, results_of
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.writer import open_writer
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Task
from instructrec_jax.tasks.encoded_store import encode_again
from instructrec_jax.training.state import Tree

ROWS, LENGTH = 32, 128  # texts and tokens of each, of a timed forward pass
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 32  # of timed decoding
LOSS_CASES, LOSS_BATCH = 1024, 32
PAIRS = 5  # timings of each, in turn
DENSE, COMPRESSED = "dense", "compressed"


@dataclass(frozen=True)
class Quality:
    """The task's scores of both runs on the same cases.

    Attributes:
      loss: the relative loss of `metric`, (dense - compressed) / |dense|; the other way round where less is better.
      training: the loss of training on up to `LOSS_CASES` of the cases, before and after; None for a task whose loss
        needs more than its examples.
    """

    results: Results
    metric: str
    dense: float
    compressed: float
    loss: float
    training: tuple[float, float] | None = None


@dataclass(frozen=True)
class Speed:
    """Texts or tokens per second (`unit`): the best of `PAIRS` calls of each, which took turns.

    Attributes:
      ratio: compressed / dense, the median of the ratios of neighboring calls.
    """

    unit: str
    dense: float
    compressed: float
    ratio: float


def parameter_bytes(params: Tree) -> int:
    """Bytes of all parameters in memory."""
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(params))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def quality(dense: Run, compressed: Run) -> Quality | None:
    """Both runs on data.test, else on data.validation; None without either."""
    split: Split = "test" if dense.config.data.test else "validation"
    cases = dense.data.cases(dense.task, split)
    if not cases:
        return None
    groups = dense.data.case_groups(cases)
    rows = []
    for name, run in ((COMPRESSED, compressed), (DENSE, dense)):
        with heartbeat(f"evaluating the {name} network on {len(cases):,} cases"):
            own = groups if run.task is dense.task else _again(run.task, groups)
            rows.append(score_row(name, run.task, run.predictor, own))
    metric = dense.config.evaluation.metric or dense.task.metric
    shown = measured_on(split, chose_checkpoint=False)
    results = results_of(rows, metric=metric, measured_on=shown, tuned=COMPRESSED)
    sizes = np.array([len(scores.predictions) for scores in rows[0].scores.values()])
    mine, theirs = (
        float(np.average([scores.metrics[metric] for scores in row.scores.values()], weights=sizes)) for row in rows
    )
    chosen = [cases[int(number)] for number in np.unique(np.linspace(0, len(cases) - 1, LOSS_CASES).astype(int))]
    alone = not (dense.task.couples_examples or dense.task.refresh_every)
    with heartbeat(f"computing the loss of training on {len(chosen):,} cases"):
        theirs_of = chosen if compressed.task is dense.task else list(encode_again(compressed.task, chosen))
        losses = (training_loss(dense, chosen), training_loss(compressed, theirs_of)) if alone else None
    worse = theirs - mine if greater_is_better(dense.task, metric) else mine - theirs
    return Quality(results, metric, theirs, mine, worse / abs(theirs) if theirs else float(worse > 0), losses)


def _again(task: Task, groups: Mapping[str, Sequence[Encoded]]) -> dict[str, Sequence[Encoded]]:
    """The same cases as a run with another tokenizer reads them."""
    return {name: encode_again(task, cases) for name, cases in groups.items()}


def training_loss(run: Run, cases: Sequence[Encoded]) -> float:
    """Σ w ℓ / Σ w of the task's loss, without dropout."""
    batches = loss_batches(run.task, run.config, run.mesh, cases)
    return loss_on(run.task, run.mesh, run.model.graphdef, run.model.params, batches)


def loss_on(
    task: Task, mesh: DeviceMesh, graphdef: nnx.GraphDef[Model], params: Tree, batches: Sequence[Batch]
) -> float:
    """`training_loss` of parameters on batches."""

    @jax.jit
    def loss(params: Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        with mesh.tracing():
            return task.loss(task.view(nnx.merge(graphdef, params)), batch, LossInputs())

    pairs = [loss(params, to_devices(batch, mesh)) for batch in batches]
    return float(sum(total for total, _ in pairs) / sum(weight for _, weight in pairs))


def loss_batches(task: Task, config: Config, mesh: DeviceMesh, cases: Sequence[Encoded]) -> list[Batch]:
    """Cases in batches of `LOSS_BATCH` and one shape, so that their loss is compiled once."""
    rng, length, shards = np.random.default_rng(config.seed), config.data.max_length, data_shards(mesh)
    gathered = [task.gather(cases[first : first + LOSS_BATCH], rng) for first in range(0, len(cases), LOSS_BATCH)]
    lengths = [lengths_of(parts.texts) for parts in gathered]
    longest = max((int(targets.max()) for _, targets in lengths if targets is not None), default=None)
    plans = [fit(own, length, targets, longest) for own, targets in lengths]
    rows = shards * -(-max(plan.rows for plan in plans) // shards)
    return [lay_out(parts, replace(plan, rows=rows)) for parts, plan in zip(gathered, plans, strict=True)]


def speed(dense: Run, compressed: Run, texts: Sequence[Text]) -> Speed:
    """How fast both runs are: tokens per second of greedy answers of a task that writes, else rows per second.

    Rows: `ROWS` texts of `LENGTH` tokens through the backbone; or images (sounds), or pairs of an image and a text, as
    many as the network computes about as many tokens of.
    """
    if dense.task.writes:
        return timed("tokens/s", *(_decoding(run, texts) for run in (dense, compressed)))
    read, kind = dense.task.context.pixels, dense.task.context.kind
    unit = "texts/s" if read is None else f"{read.kind.noun}s/s" if kind in WORDLESS else "pairs/s"
    return timed(unit, *(_forward(run, texts) for run in (dense, compressed)))


Timed = Callable[[], tuple[int, float]]


def timed(unit: str, dense: Timed, compressed: Timed) -> Speed:
    """The speed of two calls in turns. Each call returns how many texts or tokens it did, and its seconds."""
    rates: list[tuple[float, float]] = []
    for _ in range(PAIRS + 1):
        (mine, first), (theirs, second) = dense(), compressed()
        rates.append((mine / first, theirs / second))
    before, after = zip(*rates[1:], strict=True)  # the first pair compiled
    return Speed(unit, max(before), max(after), float(np.median([second / first for first, second in rates[1:]])))


def _decoding(run: Run, texts: Sequence[Text]) -> Timed:
    """Decodes with the cache, without the prompts, past all end tokens. Prompts have words, or one sound."""
    read, images = run.task.context.pixels, None
    if read is not None and run.task.context.image_tokens is None:
        prompts = [np.zeros(read.vectors, np.int32)] * PROMPTS
        images = [blank_images(read, 1, read.vectors)] * PROMPTS
    else:
        words = [word_tokens(text) for text in texts]
        prompts = [np.resize(words[i % len(words)], PROMPT_TOKENS) for i in range(PROMPTS)]
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, batch_size=PROMPTS)
    decoder = open_writer(run.task, run.model.graphdef, run.mesh).decoder
    decoder.rules = replace(decoder.rules, eos=())
    programs, params = decoder.programs(config), run.model.params

    def call() -> tuple[int, float]:
        (_, arguments), *_ = decoder.batches(prompts, config, images)
        state = jax.block_until_ready(programs.prefill(params, arguments, NEW_TOKENS))
        began = time.perf_counter()
        jax.block_until_ready(programs.decode(params, state, np.int32(NEW_TOKENS)))
        return PROMPTS * (NEW_TOKENS - 1), time.perf_counter() - began

    return call


def word_tokens(text: Text) -> np.ndarray:
    """The tokens of a text without those of its images, or all where it has no others."""
    if text.images is None or (text.images.places >= 0).all():
        return text.tokens
    return text.tokens[text.images.places < 0]


def blank_images(read: MediaReader, rows: int, length: int) -> RowImages:
    """One image (or sound) of zeros in front of each row of so many tokens."""
    places = np.where(np.arange(length) < read.vectors, np.arange(length), -1)
    return RowImages(np.zeros((rows, 1, *read.shape), np.float32), np.tile(places, (rows, 1)).astype(np.int32))


def timed_rows(run: Run, texts: Sequence[Text]) -> Batch:
    """The rows of `speed`: words, behind an image where the network reads images."""
    context = run.task.context
    ahead, computed = (0, 0) if context.pixels is None else (context.pixels.vectors, context.pixels.tokens)
    words = 0 if context.kind in WORDLESS else max(1, min(LENGTH, context.max_length - ahead))
    length = ahead + words
    rows = data_shards(run.mesh) * max(1, ROWS * LENGTH // max(LENGTH, computed + words))
    own = [np.resize(word_tokens(texts[i % len(texts)]), words) for i in range(rows)]
    tokens = np.stack([np.concatenate([np.zeros(ahead), each]) for each in own]).astype(np.int32)
    start = ahead if context.kind == PAIR else 0  # where an image has no position
    places = np.tile(np.maximum(np.arange(length, dtype=np.int32) - start, 0), (rows, 1))
    packed = Rows(tokens, np.ones_like(tokens), places)
    targets = None if texts[0].target is None else packed
    images = None if context.pixels is None else blank_images(context.pixels, rows, length)
    return Batch(packed, 0 * tokens, np.zeros((rows, 1), np.int32), targets, None, images)


def _forward(run: Run, texts: Sequence[Text]) -> Timed:
    model, laid = run.model, timed_rows(run, texts)
    rows, batch = len(laid.text_numbers), to_devices(laid, run.mesh)

    @jax.jit
    def hidden(params: Tree, batch: Batch) -> jax.Array:
        with run.mesh.tracing():
            return nnx.merge(model.graphdef, params).hidden(batch)

    def call() -> tuple[int, float]:
        began = time.perf_counter()
        jax.block_until_ready(hidden(model.params, batch))
        return rows, time.perf_counter() - began

    return call
