"""From settings to the pieces that the verbs work with: tokenizer, task, model, encoded examples."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import AutoTokenizer

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.backbones.folder import find_folder, read_config, read_pooling
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.reading import LoadReport, build_backbone, input_limit, load_backbone
from instructrec_jax.config import Config, load
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Batch, Loader, Parts, StreamLoader
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.data.skipped import SkippedRow, summarize_skipped
from instructrec_jax.data.sources import ListSource, SourceConfig, open_sources
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.distributed.mesh import MeshConfig, make_mesh, parameter_sharding, parameter_shardings
from instructrec_jax.recommendation import films
from instructrec_jax.tasks.base import Encoded, Task, TaskContext
from instructrec_jax.training.checkpoint import Checkpoints, abstract
from instructrec_jax.training.state import Tree, merge_params, split_params


@dataclass
class Assembly:
    """A model in pieces.

    Attributes:
      graphdef: the network's structure; `nnx.merge(graphdef, params)` is the network.
      params: nested dicts of arrays (or of jax.ShapeDtypeStruct, for an abstract model) on the mesh.
      shardings: nested like `params`.
      source: what the model was made from.
    """

    graphdef: Any
    params: Tree
    shardings: Tree
    source: Source


def backbone_folder(path: str) -> Path:
    """The folder of `backbone.path`."""
    if not path:
        raise ValueError("backbone.path is not set: name a HuggingFace folder or hub id, or films.")
    return films.BACKBONE if path == "films" else find_folder(path)


def open_task(config: Config, folder: Path) -> Task:
    """The task, with the tokenizer of `folder`; embedded data is written first where it is asked for."""
    if config.data.prepare == "films":
        target = Path(config.task.catalogue)  # type: ignore[attr-defined]
        if not target.exists():
            films.prepare(target)
    # Only the folder is read, never the network, and never code from a hub.
    network = read_config(folder)
    limit = input_limit(network)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:  # whatever the files hold: transformers raises many kinds
        raise ValueError(
            f"{folder} has no tokenizer that can be read ({type(error).__name__}: {str(error).partition(chr(10))[0]}). "
            "It needs the tokenizer's files beside config.json, tokenizer.json above all."
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"{folder} has no tokenizer files (such as tokenizer.json): put them beside config.json.")
    if len(tokenizer) > network.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder} has {len(tokenizer):,} tokens, but the network knows only "
            f"{network.vocab_size:,} (vocab_size in config.json): they do not belong together."
        )
    least = tokenizer.num_special_tokens_to_add() + 1
    if config.data.max_length < least:
        raise ValueError(f"data.max_length is {config.data.max_length}, but a text of one word has {least} tokens.")
    if config.data.max_length > limit:
        raise ValueError(f"data.max_length is {config.data.max_length}, but the backbone reads at most {limit} tokens.")
    lower_case = read_pooling(folder).lower_case
    context = TaskContext(tokenizer, config.data.max_length, config.data.truncate, config.seed, lower_case)
    return config.task.build(context)


def labels_of(config: Config) -> list[str] | None:
    return getattr(config.task, "labels", None)


@dataclass
class TrainingData:
    """What is trained on.

    Attributes:
      encoded: all examples, tokenised once (empty for a stream).
      tokens: in all of their texts.
      fingerprint: changes when the examples change.
      batches: (start, stop, position of a stream) -> batches of these steps.
      opened: the source, which knows the rows it skipped.
    """

    encoded: list[Encoded]
    tokens: int
    fingerprint: str
    batches: Callable[[int, int, Any], Iterator[Batch]]
    opened: Any
    batch_size: int

    @property
    def skipped(self) -> list[SkippedRow]:
        return self.opened.skipped

    def describe(self) -> str:
        if not self.encoded:
            return "a stream of unknown size"
        per_epoch = len(self.encoded) / self.batch_size
        return f"{len(self.encoded):,} with {self.tokens:,} tokens; an epoch is {per_epoch:,.1f} steps"


def training_data(config: Config, task: Task, row_multiple: int) -> TrainingData:
    """Opens, checks and tokenises data.train."""
    if not config.data.train:
        raise ValueError("data.train lists no sources: name at least one file or data set to train on.")
    opened = open_sources(
        config.data.train,
        labels=labels_of(config),
        on_bad_example=config.data.on_bad_example,
        temperature=config.data.temperature,
        seed=config.seed,
    )
    size = config.data.batch_size
    shape = (size, buckets(config), row_multiple, config.seed, jax.process_index(), jax.process_count())
    if isinstance(opened, StreamSource):

        def gather_stream(examples: list[Example], rng: np.random.Generator) -> Parts:
            return task.gather(encode(task, examples), rng)

        stream = StreamLoader(opened, gather_stream, *shape)
        return TrainingData([], 0, opened.name, stream.batches, opened, size)
    per_source = [encode(task, [source[i] for i in range(len(source))]) for source in opened.sources]
    encoded = [e for part in per_source for e in part]
    mixture = opened
    if len(encoded) < len(opened):  # some were dropped for their length: mix what is left
        left = [
            ListSource([e.example for e in part], source.name, source.task)
            for part, source in zip(per_source, opened.sources, strict=True)
        ]
        weights = [source.weight for source in config.data.train if source.weight is not None] or None
        mixture = Mixture(left, weights=weights, temperature=config.data.temperature, seed=config.seed)

    def gather(indices: np.ndarray, rng: np.random.Generator) -> Parts:
        return task.gather([encoded[i] for i in indices], rng)

    loader = Loader(mixture.order, gather, *shape)
    tokens = sum(len(e.text.tokens) for e in encoded)
    return TrainingData(
        encoded, tokens, mixture.fingerprint, lambda start, stop, _: loader.batches(start, stop), opened, size
    )


def evaluation_data(
    config: Config, task: Task, sources: Sequence[SourceConfig], skipped: list[SkippedRow] | None = None
) -> list[Encoded]:
    """All examples of some sources, in order, encoded; empty when there are no sources.

    Rows that `on_bad_example: skip` leaves out are added to `skipped`, or told on stderr where there is no list.
    """
    if not sources:
        return []
    opened = open_sources(sources, labels=labels_of(config), on_bad_example=config.data.on_bad_example)
    if isinstance(opened, StreamSource):
        raise ValueError("a stream cannot be evaluated on: set streaming: false for validation and test sources.")
    if skipped is not None:
        skipped += opened.skipped
    elif opened.skipped:
        print(summarize_skipped(opened.skipped), file=sys.stderr)
    return encode(task, [opened[i] for i in range(len(opened))])


def encode(task: Task, examples: Sequence[Example]) -> list[Encoded]:
    encoded = task.encode(examples)
    if not encoded:
        raise ValueError("no example is left: data.truncate is drop, and every text is longer than data.max_length.")
    return encoded


def buckets(config: Config) -> tuple[int, ...]:
    return length_buckets(config.data.max_length)


def compute_dtype(config: Config) -> Any:
    if config.backbone.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.backbone.dtype)


def stack_options(config: Config) -> StackOptions:
    return StackOptions(remat=config.backbone.remat, train_last=config.backbone.train_last)


def load_model(config: Config, task: Task, folder: Path, mesh: Mesh) -> Assembly:
    """The backbone's pretrained parameters (or newly drawn ones) with the task's head, laid out on the mesh."""
    rngs = nnx.Rngs(config.seed)

    def sharding(path: str, shape: tuple[int, ...], axes: Any) -> jax.sharding.Sharding:
        return parameter_sharding(mesh, shape, axes)

    loaded = load_backbone(
        folder,
        dtype=compute_dtype(config),
        stack=stack_options(config),
        pooler=task.needs_pooler,
        random_init=config.backbone.random_init,
        rngs=rngs,
        shardings=sharding,
    )
    source = Source(
        path=None if config.backbone.random_init else str(folder),
        backbone=loaded.module,
        config=loaded.config,
        pooling=loaded.pooling,
        report=loaded.report,
        rngs=rngs,
        dtype=compute_dtype(config),
        shardings=sharding,
    )
    model = task.model(source)
    shardings = parameter_shardings(mesh, model)
    graphdef, state = nnx.split(model)
    return Assembly(graphdef, jax.device_put(nnx.to_pure_dict(state), shardings), shardings, source)


def abstract_model(config: Config, task: Task, folder: Path, mesh: Mesh) -> Assembly:
    """The same with shapes for parameters: what a checkpoint is read onto."""
    hf_config, pooling = read_config(folder), read_pooling(folder)

    def build() -> nnx.Module:
        rngs = nnx.Rngs(config.seed)
        backbone = build_backbone(
            hf_config,
            dtype=compute_dtype(config),
            stack=stack_options(config),
            pooler=task.needs_pooler,
            rngs=rngs,
        )
        return task.model(Source(None, backbone, hf_config, pooling, LoadReport(), rngs, compute_dtype(config)))

    model = nnx.eval_shape(build)
    graphdef, state = nnx.split(model)
    source = Source(None, model, hf_config, pooling, LoadReport(), nnx.Rngs(config.seed), compute_dtype(config))
    return Assembly(graphdef, nnx.to_pure_dict(state), parameter_shardings(mesh, model), source)


def fitting_mesh(config: MeshConfig) -> MeshConfig:
    """The same where it fits this machine's devices, else one that splits the parameters over all of them."""
    try:
        make_mesh(config)
    except ValueError:
        return MeshConfig(fsdp=jax.device_count())
    return config


def open_run(run_dir: Path) -> tuple[Config, Task, Mesh]:
    """Settings, task and mesh of a run directory."""
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.yaml.")
    config = load(run_dir / "config.yaml")
    config = replace(config, mesh=fitting_mesh(config.mesh))
    return config, open_task(config, run_dir / "backbone"), make_mesh(config.mesh)


def restored_model(config: Config, task: Task, run_dir: Path, mesh: Mesh, step: int | None = None) -> Assembly:
    """The model of a run directory as a checkpoint has it (None: the best one), read without the optimizer."""
    model = abstract_model(config, task, run_dir / "backbone", mesh)
    checkpoints = Checkpoints(run_dir)
    chosen = checkpoints.best_step() if step is None else step
    if chosen not in checkpoints.steps():
        raise ValueError(f"{run_dir} has no checkpoint of step {chosen}; it has {checkpoints.steps()}.")
    like = abstract(model.params, model.shardings)
    trained, frozen = split_params(like, lambda path: config.backbone.frozen and path.startswith("backbone/"))
    restored = checkpoints.restore(chosen, {"params": trained, **({"frozen": frozen} if frozen else {})})
    checkpoints.close()
    return replace(model, params=merge_params(restored["params"], restored.get("frozen", {})))


def keep_declarations(folder: Path, target: Path, task: Task) -> None:
    """Copies what a checkpoint declares (config, tokenizer, pooling) into a run directory, without its weights."""
    target.mkdir(parents=True, exist_ok=True)
    read_config(folder).save_pretrained(target)
    task.context.tokenizer.save_pretrained(target)
    patterns = ("modules.json", "sentence_*_config.json", "*_Pooling/config.json")
    for old in [file for pattern in patterns for file in target.glob(pattern)]:
        old.unlink()
    for file in [file for pattern in patterns for file in folder.glob(pattern)]:
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
