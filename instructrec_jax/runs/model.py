"""Builds the task and model of a run's settings: pretrained, abstract, or restored from a checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.backbones.clip import OLD_END
from instructrec_jax.backbones.family import PAIR, TOKENIZER, WORDLESS, Family
from instructrec_jax.backbones.folder import (
    family_of,
    find_folder,
    has_processor,
    keep_declared_files,
    read_config,
    read_pooling,
    weights_fingerprint,
)
from instructrec_jax.backbones.image_reader import ReaderSpec
from instructrec_jax.backbones.layers import Axes, StackOptions
from instructrec_jax.backbones.reading import (
    LoadReport,
    answer_limit,
    answer_vocabulary,
    build_backbone,
    input_limit,
    load_backbone,
)
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.data.media.image_tokens import ImageTokens
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.data.media.spectrograms import SoundReader
from instructrec_jax.distributed.launch import is_first, once, place
from instructrec_jax.distributed.mesh import DeviceMesh, Nested, parameter_sharding, parameter_shardings
from instructrec_jax.files import read_json, write_json
from instructrec_jax.hf_types import PretrainedConfig, PreTrainedTokenizerBase
from instructrec_jax.preparation import demos
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs.adapting import adapted, check_trainable
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.encoding import text_vectors
from instructrec_jax.runs.stored import PARAMETERS, RECORD, Origin, filled, flat, read_parameters
from instructrec_jax.tasks.base import Model, Task, TaskContext
from instructrec_jax.training.checkpoint import Checkpoints, abstract
from instructrec_jax.training.parameters import frozen_parameters
from instructrec_jax.training.state import Tree, merge_params, split_params


@dataclass
class SplitModel:
    """A network split into its structure and its parameters.

    Attributes:
      graphdef: the network's structure; `nnx.merge(graphdef, params)` is the network.
      params: nested dicts of arrays (jax.ShapeDtypeStruct in an abstract model) on the mesh.
      shardings: nested like `params`.
      source: the checkpoint that the model was built from.
      is_frozen: path of a parameter -> whether it is frozen.
    """

    graphdef: nnx.GraphDef[Model]
    params: Tree
    shardings: Nested[NamedSharding]
    source: Source
    is_frozen: Callable[[str], bool]

    @property
    def network(self) -> Model:
        return nnx.merge(self.graphdef, self.params)


def backbone_folder(path: str) -> Path:
    """The folder that `backbone.path` names."""
    if not path:
        raise ValueError(
            "backbone.path is not set: name a HuggingFace folder, a hub id, or an embedded demo "
            f"({', '.join(demos.names())})."
        )
    return demos.find(path, "backbone.path").backbone if demos.is_demo(path) else find_folder(path)


def prepare_data(config: Config) -> None:
    """Writes the embedded data set that `data.prepare` names, or what its folder lacks of it."""
    if config.data.prepare is not None:
        demo = demos.find(config.data.prepare, "data.prepare")
        target = Path(str(getattr(config.task, "catalogue", "")))
        once(lambda: demo.complete(target) if target.exists() else demo.prepare(target))


def open_task(config: Config, folder: Path, joined: Catalogue | None = None, new_items: int = 0) -> Task:
    """The task of `config`, with the tokenizer of `folder`.

    Args:
      joined: a ranking task's catalogue with items added after training; None: the catalogue it was trained on.
      new_items: number of added items, the last ones of `joined`.
    """
    # Reads local files only, and never runs code from a hub.
    compares = config.task.compares_images
    network = read_config(folder, images=config.task.reads_images or compares, tower=config.task.reads_images)
    family = family_of(network)
    if compares:
        check_pair(config, folder, network.model_type, family.kind)
    check_kind(config, folder, network, family)
    if family.kind in WORDLESS:
        return config.task.build(media_context(config, folder, network, family.kind))
    limit = input_limit(network) + compares  # an image is one token more, beside its caption
    tokenizer = open_tokenizer(folder, network)
    # a row holds several sounds
    check_length(config.data.max_length, tokenizer, None if family.sounds else limit)
    lower_case = read_pooling(folder).lower_case
    media: MediaReader | None = sound_reader(folder, network, limit) if family.sounds else None
    if compares and family.tower is not None:
        vision = family.tower(network)
        media = PixelReader.of(folder, vision.num_channels, input_limit(vision))
    context = TaskContext(
        tokenizer,
        config.data.max_length,
        config.data.truncate,
        config.seed,
        lower_case,
        kind=family.kind,
        decoder_start_token_id=getattr(network, "decoder_start_token_id", None),
        folder=folder,
        held_out=tuple(config.data.hold_out.labels),
        catalogue=joined,
        new_items=new_items,
        pixels=media,
        answer_limit=answer_limit(network),
        vocab_size=getattr(network.get_text_config(), "vocab_size", None),
        answer_vocabulary=answer_vocabulary(network) if family.draws else None,
        prompt_type=family.prompt_type,
        text_vectors=text_vectors,
        batch_size=config.data.examples_per_step,
        pad_to=limit if family.padded else None,
    )
    if family.padded:
        check_padded(context, limit)
    if network.model_type == "clip_text_model":
        check_end(tokenizer, network)
    if family.reader is not None and config.task.asks_about_images and has_processor(folder):
        context.pixels = image_reader(folder, family.reader(network))
        context.image_tokens = ImageTokens.of(network, tokenizer)
    task = config.task.build(context)
    longest = task.max_target_length
    written = answer_limit(network) or limit
    if longest is not None and longest > written:
        raise ValueError(
            f"task.max_target_length is {longest}, but the network writes at most {written} tokens: lower it."
        )
    return task


def check_kind(config: Config, folder: Path, network: PretrainedConfig, family: Family) -> None:
    """Raises ValueError for a network whose inputs are not those of the task: words, images, or sounds."""
    task = config.task
    tokenizes, docs = family.kind == TOKENIZER, "docs/images.md"
    if tokenizes and task.draws_images and not family.trained:
        needs = "an image tokenizer of this package (fsq_tokenizer), because others are not trained,"
    elif family.draws and not task.draws_texts:
        needs = "a network that writes no codes of images"
    elif (task.reads_images or tokenizes) and tokenizes != task.draws_images:
        needs = "an image tokenizer (fsq_tokenizer)" if task.draws_images else "a network that reads images"
    elif not (family.kind in WORDLESS and task.reads_images) and (
        family.kind in WORDLESS or family.sounds != task.reads_sounds
    ):
        needs = "an encoder–decoder that reads sounds (Whisper)" if task.reads_sounds else "a network of words"
        docs = "docs/sound.md"
    else:
        return
    raise ValueError(
        f"task.type {task.name} needs {needs}, but {folder} holds another one (model_type {network.model_type!r}): "
        f"see {docs}."
    )


def check_length(max_length: int, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> None:
    """Raises ValueError for a data.max_length with no room for a word, or above what the backbone reads."""
    least = tokenizer.num_special_tokens_to_add() + 1
    if max_length < least:
        raise ValueError(f"data.max_length is {max_length}, but a one-word text has {least} tokens: raise it.")
    if limit is not None and max_length > limit:
        raise ValueError(f"data.max_length is {max_length}, but the backbone reads at most {limit} tokens: lower it.")


def check_padded(context: TaskContext, limit: int) -> None:
    """Raises ValueError where texts cannot be padded to the network's full length."""
    if context.max_length != limit:
        raise ValueError(
            f"data.max_length is {context.max_length}, but this network reads texts padded to {limit} tokens: set it "
            "to that."
        )
    if context.tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad_token, but this network reads padded texts.")


def check_end(tokenizer: PreTrainedTokenizerBase, network: PretrainedConfig) -> None:
    """Raises ValueError unless texts end with the token that CLIP's vector is read at."""
    ids = tokenizer("a")["input_ids"]
    end = max(ids) if network.eos_token_id == OLD_END else network.eos_token_id
    if ids[-1] != end:
        raise ValueError(
            f"the tokenizer's texts end with the token {ids[-1]}, but the network's vector is that of the token {end} "
            "(eos_token_id in config.json): does the tokenizer belong to the network?"
        )


def check_pair(config: Config, folder: Path, model_type: str, kind: str) -> None:
    """Raises ValueError unless the network is a pair, and for settings that count layers from one end to the other."""
    if kind != PAIR:
        raise ValueError(
            f"task.type {config.task.name} needs an image network and a text network (CLIP, SigLIP), but {folder} "
            f"holds another one (model_type {model_type!r}): see docs/images.md."
        )
    for name, is_set in (
        ("backbone.train_last", config.backbone.train_last is not None),
        ("optimizer.layer_decay", config.optimizer.layer_decay != 1),
    ):
        if is_set:
            raise ValueError(
                f"{name} counts the layers of one network, but {folder} holds two side by side: leave it out. "
                "backbone.freeze freezes parameters by name, such as [backbone/vision]."
            )


def media_context(config: Config, folder: Path, network: PretrainedConfig, kind: str) -> TaskContext:
    """The properties of a run on a network of images or sounds alone, where one is one token."""
    read: MediaReader
    if kind == "sound":
        read = sound_reader(folder, network, 1)
    else:
        read = PixelReader.of(folder, network.num_channels, input_limit(network))
    held_out = tuple(config.data.hold_out.labels)
    return TaskContext(
        None, config.data.max_length, seed=config.seed, kind=kind, folder=folder, held_out=held_out, pixels=read
    )


def image_reader(folder: Path, spec: ReaderSpec) -> PixelReader:
    """What reads the images beside words. Raises ValueError where they would have another size than the network's."""
    size = spec.vision.image_size
    tokens = spec.vision.class_token + spec.vision.grid**2
    read = PixelReader.of(folder, spec.vision.channels, tokens, spec.image_vectors)
    if read.shape[:2] != (size, size):
        raise ValueError(
            f"{folder}: preprocessor_config.json makes pictures of {read.shape[0]} × {read.shape[1]} pixels, but the "
            f"network reads {size} × {size} (image_size of vision_config): make them equal."
        )
    return read


def sound_reader(folder: Path, network: PretrainedConfig, vectors: int) -> SoundReader:
    """vectors: the tokens of a sound in a row."""
    positions = network.max_source_positions
    return SoundReader.of(folder, (2 * positions, network.num_mel_bins), positions, vectors)


def compute_dtype(config: Config) -> np.dtype:
    if config.backbone.dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.backbone.dtype)


def stack_options(config: Config) -> StackOptions:
    return StackOptions(remat=config.backbone.remat, train_last=config.backbone.train_last)


def load_model(config: Config, task: Task, folder: Path, mesh: DeviceMesh) -> SplitModel:
    """The pretrained (or randomly initialized) backbone with the task's head, sharded over the mesh."""
    check_trainable(config)
    rngs = nnx.Rngs(config.seed)
    stored = folder / PARAMETERS  # in place of weights
    random_init = config.backbone.random_init or stored.is_file()

    def sharding(path: str, shape: tuple[int, ...], axes: Axes) -> jax.sharding.Sharding:
        return parameter_sharding(mesh, shape, axes)

    loaded = load_backbone(
        folder,
        dtype=compute_dtype(config),
        stack=stack_options(config),
        pooler=task.needs_pooler,
        random_init=random_init,
        rngs=rngs,
        shardings=sharding,
        verify=config.backbone.verify,
        images=task.context.kind in (*WORDLESS, PAIR),
        tower=task.context.kind in WORDLESS,
    )
    source = Source(
        path=None if random_init else str(folder),
        backbone=loaded.module,
        config=loaded.config,
        pooling=loaded.pooling,
        report=loaded.report,
        rngs=rngs,
        dtype=compute_dtype(config),
        shardings=sharding,
    )
    model = adapted(task.model(source), config, source, task.context.tokenizer)
    shardings = parameter_shardings(mesh, model)
    graphdef, state = nnx.split(model)
    params = place(nnx.to_pure_dict(state), shardings)
    if stored.is_file():
        taken = _stored(folder, config, params)
        params = filled(params, shardings, taken)
        new = tuple(path for path in flat(params) if path not in taken)
        source.report = LoadReport({path: str(value.dtype) for path, value in taken.items()}, initialized=new)
    return SplitModel(graphdef, params, shardings, source, frozen_by(config, task, model))


def _stored(folder: Path, config: Config, params: Tree) -> dict[str, np.ndarray]:
    """The parameters of a compressed run for LoRA on top of it; its head for the same task and labels only.

    Raises ValueError for a backbone of another form.
    """
    taken, origin = read_parameters(folder / PARAMETERS), read_json(folder / RECORD, Origin)
    shapes = {path: tuple(value.shape) for path, value in flat(params).items()}
    wrong = [path for path, value in taken.items() if path.startswith("backbone/") and shapes.get(path) != value.shape]
    if wrong:
        raise ValueError(
            f"{folder} has {wrong[0]}, which is not in the network: use the same backbone.quantize settings."
        )
    same_head = (origin.get("task"), origin.get("labels")) == (config.task.name, config.task.label_names)
    return {path: value for path, value in taken.items() if path.startswith("backbone/") or same_head}


def network_config(task: Task, folder: Path) -> PretrainedConfig:
    """The config of the network that the task runs: of a pair, that of images or sounds for a task on these alone."""
    kind = task.context.kind
    return read_config(folder, images=kind in (*WORDLESS, PAIR), tower=kind in WORDLESS)


def abstract_model(config: Config, task: Task, folder: Path, mesh: DeviceMesh) -> SplitModel:
    """The model with abstract parameters: the target of a checkpoint's restore, and the model of a plan."""
    hf_config, pooling = network_config(task, folder), read_pooling(folder)

    def build() -> Model:
        rngs = nnx.Rngs(config.seed)
        backbone = build_backbone(
            hf_config,
            dtype=compute_dtype(config),
            stack=stack_options(config),
            pooler=task.needs_pooler,
            rngs=rngs,
        )
        source = Source(None, backbone, hf_config, pooling, LoadReport(), rngs, compute_dtype(config))
        return adapted(task.model(source), config, source, task.context.tokenizer)

    model: Model = nnx.eval_shape(build)
    graphdef, state = nnx.split(model)
    source = Source(None, model, hf_config, pooling, LoadReport(), nnx.Rngs(config.seed), compute_dtype(config))
    shardings = parameter_shardings(mesh, model)
    return SplitModel(graphdef, nnx.to_pure_dict(state), shardings, source, frozen_by(config, task, model))


def frozen_by(config: Config, task: Task, model: nnx.Module) -> Callable[[str], bool]:
    freeze = [*config.backbone.freeze, *task.freeze]
    return frozen_parameters(model, freeze=freeze, train_last=config.backbone.train_last, lora=config.lora.on)


def restored_model(config: Config, task: Task, run_dir: Path, mesh: DeviceMesh, step: int | None = None) -> SplitModel:
    """The model of a run's checkpoint (None: the best one), without the optimizer state.

    Frozen parameters are read from the weights that the run was trained on. A run without a note of these
    (backbone/weights.json), such as one that `compress` wrote, has all its parameters in the checkpoint.
    """
    model = abstract_model(config, task, run_dir / "backbone", mesh)
    if frozen_fingerprint(run_dir) is None:
        model = replace(model, is_frozen=lambda path: False)
    checkpoints = Checkpoints(run_dir)
    chosen = checkpoints.best_step() if step is None else step
    if chosen not in checkpoints.steps():
        raise ValueError(f"{run_dir} has no checkpoint of step {chosen}; choose from {checkpoints.steps()}.")
    like = abstract(model.params, model.shardings)
    trained, frozen = split_params(like, model.is_frozen)
    params = checkpoints.restore(chosen, {"params": trained})["params"]
    checkpoints.close()
    if not frozen:
        return replace(model, params=params)
    base = load_model(config, task, weights_folder(config, run_dir), mesh)
    return replace(base, params=merge_params(params, split_params(base.params, model.is_frozen)[1]))


class FrozenWeights(TypedDict):
    """backbone/weights.json: the folder and fingerprint of a run's frozen weights."""

    folder: str
    fingerprint: str


def frozen_fingerprint(run_dir: Path) -> str | None:
    """Fingerprint of a run's frozen parameters; None if it has none."""
    file = run_dir / "backbone" / "weights.json"
    return read_json(file, FrozenWeights)["fingerprint"] if file.is_file() else None


def weights_folder(config: Config, run_dir: Path) -> Path:
    """The folder of a run's frozen parameters; ValueError if they are missing or changed."""
    kept = read_json(run_dir / "backbone" / "weights.json", FrozenWeights)
    named = Path(config.backbone.path).expanduser()
    for folder in (Path(kept["folder"]), find_folder(named) if named.is_file() else named):
        if folder.is_dir() and weights_fingerprint(folder) == kept["fingerprint"]:
            return folder
    raise ValueError(
        f"the frozen weights of the run in {run_dir} are missing from {kept['folder']} (and from "
        f"{config.backbone.path}), or they changed. A run directory does not contain frozen weights: restore that "
        "folder, or set backbone.path in the run's config.yaml to their new place."
    )


def keep_declarations(folder: Path, target: Path, task: Task, *, needs_weights: bool) -> None:
    """Copies a checkpoint's config, tokenizer and pooling into a run directory, without its weights.

    Args:
      needs_weights: also write weights.json, because the run's checkpoints will not contain the frozen weights.
    """
    if not is_first():
        return
    target.mkdir(parents=True, exist_ok=True)
    network_config(task, folder).save_pretrained(target)
    if task.context.tokenizer is not None:
        task.context.tokenizer.save_pretrained(target)
    if needs_weights:
        fingerprint = weights_fingerprint(folder)
        write_json(target / "weights.json", {"folder": str(folder.absolute()), "fingerprint": fingerprint})
    keep_declared_files(folder, target)
    for name, source in task.kept_folders.items():
        if source != target / name:
            shutil.copytree(source, target / name, dirs_exist_ok=True)
