"""The real training step, compiled from shapes for devices that need not be present."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from instructrec_jax.adapters.losses import chunk_size
from instructrec_jax.backbones.backbone_config import DType
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.data.batch import Array, Batch, Rows
from instructrec_jax.data.packing import max_segments
from instructrec_jax.distributed.mesh import DeviceMesh, batch_sharding, data_shards
from instructrec_jax.hf_types import PretrainedConfig
from instructrec_jax.planning import ARCHITECTURES
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData, check_batch
from instructrec_jax.runs.model import SplitModel, backbone_folder, open_task
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.kinds import as_language_model
from instructrec_jax.tasks.targets import TokenLabels
from instructrec_jax.training.checkpoint import abstract
from instructrec_jax.training.flops import Texts, has_output_table
from instructrec_jax.training.state import TrainState


@dataclass(frozen=True)
class CompiledStep:
    """A compiled training step and its inputs.

    Attributes:
      compiled: jax's compiled program, with `memory_analysis()` and `as_text()`.
      state, shardings: the abstract state and its shardings.
      teachers: the networks of `distil.teachers`, with abstract parameters.
      is_frozen: path of a parameter -> whether it is frozen.
      network: HuggingFace's config of the backbone.
      texts: sizes of a batch's texts.
      views: of each of both views of its unlabeled examples; None without any.
      tied: whether the output layer shares the table of word embeddings.
      loss_chunks: chunks of a language model's loss; an upper bound for the trip count of their loop.
      seconds: compile time.
    """

    compiled: jax.stages.Compiled
    state: TrainState
    shardings: TrainState
    teachers: Sequence[SplitModel]
    is_frozen: Callable[[str], bool]
    network: PretrainedConfig
    texts: Texts
    views: Texts | None
    tied: bool
    loss_chunks: int
    seconds: float


@contextmanager
def planning_folder(path: str) -> Iterator[tuple[Path, bool]]:
    """(folder with a config and a tokenizer, whether the tokenizer is a placeholder) for `backbone.path`.

    The path is a folder, a hub id, the name of an architecture of this package, or a folder with only config.json.
    """
    from transformers import PreTrainedTokenizerFast

    known = ARCHITECTURES / f"{path}.json"
    if known.is_file():
        config = known
    else:
        folder = backbone_folder(path)
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
            yield folder, False
            return
        config = folder / "config.json"
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copyfile(config, f"{temporary}/config.json")
        words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"))}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
        ends = dict(bos_token="[CLS]", eos_token="[SEP]")
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **ends).save_pretrained(temporary)
        yield Path(temporary), True


def compile_step(config: Config, folder: Path, mesh: DeviceMesh) -> CompiledStep:
    """Compiles the training step of `config` for the devices of `mesh`; parameters and data are shapes.

    Raises ValueError for inconsistent settings, as training does.
    """
    if config.backbone.dtype == "auto":
        dtype: DType = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
        config = replace(config, backbone=replace(config.backbone, dtype=dtype))
    began = time.perf_counter()
    task = open_task(config, folder)
    batch = abstract_batch(config, task, mesh)
    setup = TrainingSetup.abstract(config, task, folder, mesh)  # buffers have room for what the data needs
    step = setup.step
    assert isinstance(step, jax.stages.Wrapped)
    compiled = step.lower(abstract(setup.state, setup.shardings), batch).compile()
    network = read_config(folder)
    chunks = 1
    if task.predicts_words:
        rows, length = batch.outputs.tokens.shape
        rows //= config.accumulation * data_shards(mesh)
        chunks = -(-length // chunk_size(max(rows, 1), length, network.vocab_size, None))
    return CompiledStep(
        compiled,
        setup.state,
        setup.shardings,
        setup.teachers,
        setup.model.is_frozen,
        network,
        texts_of(batch, task),
        None if batch.unlabeled is None else texts_of(batch.unlabeled.strong, task),
        task.predicts_words and not has_output_table(setup.model.params),
        chunks,
        time.perf_counter() - began,
    )


def texts_of(batch: Batch, task: Task) -> Texts:
    """Sizes of a batch's texts, for the FLOP count."""
    rows, length = batch.texts.tokens.shape
    each_token = task.per_token or task.subtasks or task.predicts_words
    pooled = None if each_token else int(np.prod(batch.text_numbers.shape))
    causal = task.context.kind == "decoder"
    if batch.targets is None:
        return Texts(rows * length, length, causal, pooled=pooled)
    target = batch.targets.tokens.shape
    return Texts(rows * length, length, causal, int(np.prod(target)), target[1], pooled)


def abstract_batch(config: Config, task: Task, mesh: DeviceMesh) -> Batch:
    """A batch of shapes (jax.ShapeDtypeStruct): full rows for language models, else the largest batch of data.train.

    For a batch size in examples, the number of rows is the number of examples, its upper bound.
    """
    multiple = config.accumulation * data_shards(mesh)
    if as_language_model(task) is not None and not task.couples_examples:
        check_batch(config, task, multiple)
        rows = config.data.batch_rows or -(-int(config.data.examples_per_step or 1) // multiple) * multiple
        length, target = config.data.max_length, task.max_target_length
        batch = _full_rows(rows, length, target)
    else:
        data = RunData(config).training(task, multiple)
        batch = next(data.batches(data.largest_step, data.largest_step + 1, None)).batch

    def shape(array: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=batch_sharding(mesh, len(array)))

    return jax.tree.map(shape, batch)


def _full_rows(rows: int, length: int, target: int | None) -> Batch[TokenLabels]:
    """A language model's batch, without memory for its values."""

    def array(length: int) -> np.ndarray:
        return np.broadcast_to(np.int32(0), (rows, length))

    def laid(length: int) -> Rows:
        return Rows(array(length), array(length), array(length))

    labels = TokenLabels(array(target or length), array(target or length))
    targets = None if target is None else laid(target)
    return Batch(laid(length), array(length), array(max_segments(length)), targets, labels)
