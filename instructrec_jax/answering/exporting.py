"""Exports of a run: orbax, a HuggingFace folder, PEFT's LoRA matrices, or files of other runtimes."""

import copy
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from instructrec_jax.adapters.dual_encoder import RetrievalHead
from instructrec_jax.adapters.heads import head_kind
from instructrec_jax.adapters.lora import merge_lora
from instructrec_jax.adapters.peft import TRAINED_HEADS, write_peft
from instructrec_jax.answering.formats.other_runtimes import (
    DTYPES,
    OTHER_RUNTIMES,
    stored_codes,
    write_compressed_tensors,
)
from instructrec_jax.answering.model_card import CARD, readme
from instructrec_jax.backbones import dallebart, image_tokenizer
from instructrec_jax.backbones.folder import family_of, find_folder
from instructrec_jax.backbones.sentence_vectors import write_sentence_modules
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.data.chat_template import exported_template
from instructrec_jax.data.listed import check_type
from instructrec_jax.files import read_json, write_json, write_text
from instructrec_jax.hf_types import PretrainedConfig
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.config import to_dict
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.runs.run import Run, is_run, require_run
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.kinds import as_language_model

FORMATS = ("orbax", "hf", "peft", *OTHER_RUNTIMES)
FLOATS = ("float32", "float16", "bfloat16")
OWN_HEAD = "retrieval_head.safetensors"


def export(
    run: str | Path,
    out: str | Path,
    *,
    format: str = "hf",
    step: int | None = None,
    dtype: str | None = None,
    part: str | None = None,
) -> list[str]:
    """Writes a run's best checkpoint (or that of `step`) to the new folder `out`; returns what opens it, in sentences.

    README.md in `out` has these, and the run's model_card.md where there is one.

    Args:
      run: a run directory; for the files of other runtimes also a HuggingFace folder or a .gguf file.
      format: "hf", "peft", "orbax", or one of `OTHER_RUNTIMES`: "gguf", "onnx", "stablehlo", "compressed-tensors".
      dtype: of the written parameters: "float32", "float16" or "bfloat16"; None: float32 (orbax), or the dtype of
        the pretrained checkpoint (hf). LoRA matrices are always float32. The formats of other runtimes have their own.
      part: for a multitask run, the subtask whose head is written ("orbax" writes all heads).

    Raises:
      ValueError: `out` exists, or `run` is not a run directory with a checkpoint.
    """
    check_type(run, "run", (str, Path), "the path of a run directory")
    run, out = local_run(run), Path(out)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, but should be one of {', '.join(FORMATS)}.")
    known = DTYPES.get(format, FLOATS)
    if dtype is not None and dtype not in known:
        has = f"one of {', '.join(known)}" if known else "left out"
        raise ValueError(f"--dtype is {dtype!r}, but should be {has} for --format {format}.")
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if format in OTHER_RUNTIMES and not is_run(run):
            made, uses = str(run), OTHER_RUNTIMES[format](find_folder(run), partial, dtype)
        else:
            made, uses = write_run(run, partial, out, format, step, dtype, part)
        note = f"Exported by instructrec_jax {version('instructrec_jax')} from {made}."
        write_text(partial / "README.md", readme(out.name, note, uses, run / CARD))
        partial.rename(out)
        return uses
    except SafetensorError as error:  # not an OSError, even where the disk is full
        raise OSError(f"{out} cannot be written: {error}. The partial folder is removed; free some space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_run(
    run: Path, folder: Path, out: Path, format: str, step: int | None, dtype: str | None, part: str | None
) -> tuple[str, list[str]]:
    """Writes a run into `folder`, which becomes `out`; returns what was written, and what opens it."""
    require_run(run)
    opened = Run.open(run, step=step)
    subtasks = opened.task.subtasks
    if subtasks and format != "orbax" and part not in subtasks:
        raise ValueError(
            f"{run} is a multitask run: choose the head to write with --part: {', '.join(subtasks)}, or "
            "all heads with --format orbax."
        )
    if part is not None and part not in subtasks:
        raise ValueError(f"--part {part}: {run} is not a multitask run: leave it out.")
    model = opened.model
    task = opened.task if part is None else subtasks[part]
    made = f"{run} (step {opened.checkpoint})"
    codes = opened.config.backbone.quantize
    decoded = (
        [f"The run is compressed: this is written from what its {codes} codes stand for."] if codes != "none" else []
    )
    if format in (*OTHER_RUNTIMES, "peft") and family_of(model.source.config).draws:
        raise ValueError(
            f"--format {format}: other libraries do not have the network of {run} ({model.source.config.model_type}): "
            "use --format hf, which merges LoRA."
        )
    if format in OTHER_RUNTIMES:
        if task.context.pixels is not None:
            what = f"{task.context.pixels.kind.noun}s"
            raise ValueError(f"--format {format} is for networks of texts, but {run} reads {what}: use --format hf.")
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.hf.", dir=out.parent) as between:
            head = task.view(model.network).head
            if head_kind(head) is None and not isinstance(head, RetrievalHead):
                raise ValueError(
                    f"--format {format}: the head of this run ({type(head).__name__}) is of this package, and other "
                    "runtimes do not have it: export the backbone with --format hf, or serve the run."
                )
            write_hf(Path(between), model, run, task, "float32")
            own = stored_codes(task.view(model.network).backbone, model.source.config, dtype)
            if format == "compressed-tensors" and own is not None:
                return made, write_compressed_tensors(Path(between), folder, *own)
            return made, [*OTHER_RUNTIMES[format](Path(between), folder, dtype), *decoded]
    if format == "orbax":
        write_orbax(folder, model, to_dict(opened.config), dtype)
    elif format == "hf":
        write_hf(folder, model, run, task, dtype)
    else:
        write_adapter(folder, model, run, task)
    network = written_class(folder) if format == "hf" else ""
    uses = opening(format, out, task.view(model.network).head if format != "orbax" else None, network)
    return made, [*uses, *(decoded if format == "hf" else [])]


def written_class(folder: Path) -> str:
    """The class of transformers that config.json names."""
    named = read_json(folder / "config.json", dict).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "AutoModel"


def opening(format: str, folder: Path, head: nnx.Module | None, network: str = "AutoModel") -> list[str]:
    """What opens an exported folder, and which of its files other libraries do not read: a sentence each.

    Args:
      head: the head that was written; None: all of the model.
      network: the class of transformers that opens an hf folder.
    """
    if format == "orbax":
        return [f'`orbax.checkpoint.StandardCheckpointer().restore(Path("{folder.name}/params").absolute())` opens it.']
    if format == "peft":
        uses = [f'`peft.PeftModel.from_pretrained(base_model, "{folder.name}")` opens it.']
    elif network == image_tokenizer.FAMILY.base_class:
        uses = ["`task.tokenizer` of a text_to_image run names it. transformers has no such network."]
    elif network == dallebart.ARCHITECTURE:
        uses = [
            f"`python -m instructrec_jax.generate {folder.name} --task image --prompt TEXT --out a.png` draws with it. "
            "transformers has no such network; the tensors are those of dalle-mini's flax_model.msgpack, with dots in "
            "their names."
        ]
    else:
        uses = [f'`transformers.{network}.from_pretrained("{folder.name}")` opens it.']
    if format == "hf" and isinstance(head, RetrievalHead):
        uses.append(f'`SentenceTransformer("{folder.name}")` gives the run\'s vectors, with the projection, if any.')
    elif head is not None and head_kind(head) is None and jax.tree.leaves(nnx.state(head)):
        uses.append(
            f"{OWN_HEAD} has the parameters of the head ({type(head).__name__}), which other libraries do not have: "
            "they give the hidden states of the backbone alone. The run directory itself opens with everything."
        )
    return uses


def write_orbax(folder: Path, model: SplitModel, settings: Mapping[str, object], dtype: str | None) -> None:
    # As NumPy arrays, because orbax stores the devices of jax arrays and requires the same ones when it reads.
    def stored(x: jax.Array) -> np.ndarray:
        codes = not jnp.issubdtype(x.dtype, jnp.floating)
        return np.asarray(x if dtype is None or codes else x.astype(dtype))

    params = jax.tree.map(stored, model.params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {"/".join(str(part.key) for part in path): [str(x.dtype), *x.shape] for path, x in flat}
    backbone = model.source.config.to_dict()
    write_json(folder / "metadata.json", {"settings": settings, "backbone": backbone, "parameters": shapes})


def write_hf(folder: Path, model: SplitModel, run: Path, task: Task, dtype: str | None) -> None:
    network = task.view(merge_lora(model.network))
    kind = head_kind(network.head)
    config = model.source.config
    if kind in ("sequence", "token", "image"):
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
        config.update({"problem_type": task.problem_type})
    shutil.copytree(run / "backbone", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("weights.json"))
    language_model = as_language_model(task)
    if kind == "lm" and language_model is not None and not family_of(config).draws:
        write_language_model_files(folder, config, language_model)
    head = network.head if kind else None
    save_pretrained(folder, network.backbone, config, head=head, head_kind=kind, dtype=dtype)
    if kind is None:
        save_own_head(folder, network.head)
    if isinstance(network.head, RetrievalHead):
        projection = network.head.projection
        write_sentence_modules(
            folder,
            hidden_size=config.get_text_config().hidden_size,
            pooling=network.head.pooling,
            projection=None if projection is None else np.asarray(projection[...], np.float32),
            max_length=task.context.max_length,
            lower_case=task.context.lower_case,
        )


def save_own_head(folder: Path, head: nnx.Module) -> None:
    """Writes a head that HuggingFace does not have, beside the backbone's files; nothing for one without parameters."""
    values = {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(head))}
    if values:
        save_file(values, folder / OWN_HEAD)


def write_language_model_files(folder: Path, config: PretrainedConfig, task: LanguageModelTask) -> None:
    """Writes the end tokens and the chat template of training, for generation with `transformers`."""
    from transformers import GenerationConfig

    given = (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if given else GenerationConfig.from_model_config(config)
    tokenizer = task.context.tokenizer
    generation.eos_token_id = list(task.ends)
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    generation.save_pretrained(folder)
    if not task.is_pair:
        template = exported_template(task.template, tokenizer, task.rendering)
        if template != tokenizer.chat_template:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)


def write_adapter(folder: Path, model: SplitModel, run: Path, task: Task) -> None:
    """Writes LoRA matrices in PEFT's format. Raises ValueError for a run without LoRA."""
    source, network = model.source, task.view(model.network)
    if source.lora is None:
        raise ValueError(f"--format peft: {run} was trained without LoRA, so it has no adapter: use --format hf.")
    if source.path is None:
        raise ValueError(
            f"--format peft: what {run} trained LoRA on is in no HuggingFace folder (the codes of a compressed run, or "
            "random weights), so PEFT could not open it: use --format hf, which merges LoRA."
        )
    kind = head_kind(network.head)
    pairs = family_of(source.config).kind == "encoder_decoder"
    tasks = TRAINED_HEADS | {"lm": "SEQ_2_SEQ_LM" if pairs else "CAUSAL_LM"}
    trained = network.head if kind in TRAINED_HEADS else None
    new_pooler = any(path.startswith("pooler.") for path in source.report.initialized)
    write_peft(
        folder,
        network.backbone,
        source.config,
        source.lora,
        str(source.path),
        tasks.get(kind or ""),
        trained,
        kind,
        ["pooler.dense"] if new_pooler else [],
        network.head if kind == "lm" else None,
    )
    if kind is None:
        save_own_head(folder, network.head)
