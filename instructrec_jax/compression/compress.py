"""A smaller run from a run or a HuggingFace folder: `python -m instructrec_jax.compress`."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flax import nnx

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.lora import merge_lora
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.backbones.family import PAIR, TOKENIZER
from instructrec_jax.backbones.folder import declared_head, read_config
from instructrec_jax.compression.calibration_rows import full_rows
from instructrec_jax.compression.measure import (
    LOSS_CASES,
    PAIRS,
    Quality,
    Speed,
    folder_bytes,
    parameter_bytes,
    quality,
    speed,
)
from instructrec_jax.compression.pruning import Pruning
from instructrec_jax.compression.quantization import LayerError, Quantization, quantized
from instructrec_jax.data.batch import Batch, Text
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.distributed.launch import place
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.files import write_json, write_text
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.config import Config, to_dict, to_yaml
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.directory import FORMAT, Record
from instructrec_jax.runs.given import FOLDER, relocated
from instructrec_jax.runs.model import SplitModel, abstract_model, backbone_folder, keep_declarations
from instructrec_jax.runs.run import Run, is_run, run_settings
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.state import Tree

REPORT = "compression.json"
ROW_TOKENS = 256  # most tokens of a calibration row
TASKS = {"lm": "language_model", "mlm": "masked_lm"}  # of an untuned network, by the head that it declares


@dataclass(frozen=True)
class Compressed:
    """What `compress` found.

    Attributes:
      before, after: bytes of the parameters in memory.
      on_disk: bytes of the weights' files, before and after.
      layers: relative output errors on the calibration texts.
    """

    before: int
    after: int
    on_disk: tuple[int, int]
    quality: Quality | None
    speed: Speed
    layers: Sequence[LayerError]


def settings_of(path: Path, overrides: Sequence[str]) -> Config:
    """The settings of a run; of a HuggingFace folder, those in `overrides`, with the task that its head is for.

    Raises ValueError for a folder whose task is unknown.
    """
    names = [arg.partition("=")[0] for arg in overrides]
    if is_run(path) or "--config_path" in names or "--task.type" in names:
        return run_settings(path, overrides, default=None)
    head = declared_head(read_config(backbone_folder(str(path)), images=True)) or ""
    if head not in TASKS:
        raise ValueError(
            f"{path} is a HuggingFace folder, and its task is not known: set --task.type, such as similarity for an "
            "encoder of sentences or contrastive for CLIP, or --config_path."
        )
    return run_settings(path, ["--task.type", TASKS[head], *overrides], default=None)


def compress(
    path: str | Path,
    out: str | Path,
    how: Quantization,
    *,
    settings: Sequence[str] = (),
    step: int | None = None,
    calibration: int = 128,
    limit: float | None = None,
) -> Compressed:
    """Writes the compressed network of a run or a HuggingFace folder as the new run directory `out`.

    The folder appears once it is whole; the source is only read.

    Args:
      settings: overrides as on the command line.
      step: step of the run's checkpoint; None: the best.
      calibration: number of examples of data.train that the network sees to choose codes and to report errors.
      limit: largest relative loss of the task's metric; None: any.

    Raises:
      ValueError: `out` exists or lies in the source, the network cannot be compressed in this way, calibration examples
        are missing, or the loss is above the limit.
      OSError: `out` cannot be written.
    """
    path, out = local_run(path), Path(out)
    dense = opened(path, out, settings, step, limit)
    texts = calibration_texts(dense, calibration)
    if how.needs_texts and not texts:
        raise ValueError(f"--method {how.method} needs calibration texts, but data.train is empty: set it, or use rtn.")
    with partial_folder(path, out) as partial:
        model = plain(dense.model)
        batches = calibration_batches(dense, texts)
        with heartbeat("choosing codes"):
            network, kept, layers = quantized(model, dense.mesh, batches, how)
        settled = compressed_config(dense.config, path, out, how, kept)
        shardings = abstract_model(settled, dense.task, dense.folder, dense.mesh).shardings
        declare(partial, dense)
        save_checkpoint(partial, dense, settled, place(nnx.to_pure_dict(nnx.state(network)), shardings))
        del network, model
        written = Run(partial, RunData(settled), partial / "backbone", dense.task, dense.mesh, trained=True)
        found = measured(dense, written, texts, layers)
        check_limit(found.quality, limit)
        finish(partial, out, settled, record(path, how, found))
    return found


def check_limit(quality: Quality | None, limit: float | None) -> None:
    """Raises ValueError for a loss above the limit."""
    if limit is not None and quality is not None and not quality.loss <= limit:  # NaN is no success
        raise ValueError(too_much(quality, limit))


def finish(partial: Path, out: Path, settled: Config, report: object) -> None:
    """Makes the folder a run directory, and gives it its name."""
    write_json(partial / REPORT, report)
    write_json(partial / "run.json", Record(format=FORMAT, status="finished", overwrite=False))
    write_text(partial / "config.yaml", to_yaml(settled))
    partial.rename(out)


def opened(path: Path, out: Path, settings: Sequence[str], step: int | None, limit: float | None) -> Run:
    """The run or folder to make a smaller run of. Raises ValueError where `compress` says so."""
    _check(path, out, limit)
    config = settings_of(path, settings)
    if config.backbone.quantize != "none" and not config.lora.on:
        raise ValueError(f"{path} is compressed already: compress the run that it was made of.")
    dense = Run.open(path, config, step=step)
    if dense.task.context.kind == TOKENIZER:
        raise ValueError(
            f"{path} holds an image tokenizer, which compress leaves alone: its weights are convolutions, not linear "
            "layers, and other runs were trained on the codes that it makes now."
        )
    if limit is not None and not (dense.config.data.test or dense.config.data.validation):
        raise ValueError("--limit needs cases to measure the loss on, but data.test and data.validation are empty.")
    return dense


def _check(path: Path, out: Path, limit: float | None) -> None:
    """Raises ValueError for an `out` that exists or lies in the source, and for a limit that is no share."""
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out.")
    if path.resolve() in out.resolve().parents:
        raise ValueError(f"--out {out} lies in {path}, which is only read: choose a folder outside.")
    if limit is not None and not 0 <= limit < 1:
        raise ValueError(f"--limit is {limit:g}, but should be a share from 0 to 1, such as 0.5%.")


@contextmanager
def partial_folder(path: Path, out: Path) -> Iterator[Path]:
    """The name of a folder to write into, which is removed unless the block gives it the name `out`.

    Raises OSError, with the remedy, where it cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    except OSError as error:
        raise OSError(
            f"{out} cannot be written: {error.__cause__ or error}. The partial folder is removed, and {path} is as it "
            "was: free some space, or choose another --out."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def plain(model: SplitModel) -> SplitModel:
    """The model without LoRA and codes."""
    network = merge_lora(model.network)
    graphdef, state = nnx.split(network)
    return replace(model, graphdef=graphdef, params=nnx.to_pure_dict(state))


def calibration_texts(run: Run, count: int) -> list[Text]:
    """The texts of `calibration_cases`; none without data.train."""
    return texts_of(run, calibration_cases(run, count))


def texts_of(run: Run, cases: Sequence[Encoded]) -> list[Text]:
    """What the network reads of some cases, with their images."""
    return list(run.task.gather(cases, np.random.default_rng(run.config.seed)).texts) if cases else []


def calibration_cases(run: Run, count: int) -> list[Encoded]:
    """Some examples of data.train, drawn with the run's seed; none without data.train."""
    if count < 1:
        raise ValueError(f"--calibration is {count}, but should be at least 1.")
    if not run.config.data.train:
        return []
    if not isinstance(run.data.source("train"), Mixture):
        raise ValueError(
            "data.train is a stream, from which no calibration examples can be drawn: set --data.train to a file of "
            "some examples, or streaming: false."
        )
    train = run.data.train(run.task)
    rng = np.random.default_rng(run.config.seed)
    numbers = np.sort(rng.choice(len(train), min(count, len(train)), replace=False))
    run.task.prepare(train)
    return [train[int(number)] for number in numbers]


def calibration_batches(run: Run, texts: Sequence[Text]) -> list[Batch]:
    """The texts in rows without padding; none without texts."""
    length, apart = min(run.config.data.max_length, ROW_TOKENS), run.task.context.kind == PAIR
    return full_rows(texts, length, data_shards(run.mesh), apart=apart) if texts else []


def compressed_config(config: Config, source: Path, out: Path, how: Quantization, kept: Sequence[str]) -> Config:
    """The settings that open the compressed network."""
    backbone = replace(
        config.backbone,
        freeze=[],
        quantize=how.weights,
        quantize_group=how.group,
        quantize_activations=how.activations,
        quantize_smooth=how.format.smooth,
        quantize_embeddings=how.embeddings,
        quantize_keep=list(kept),
    )
    return settled_config(config, source, out, backbone)


def settled_config(config: Config, source: Path, out: Path, backbone: BackboneConfig) -> Config:
    """The settings of a run directory `out` that was made of another one, without training."""
    config = relocated(replace(config, run_dir=str(source)), out)
    return replace(
        config,
        run_dir=str(out),
        overwrite=False,
        init_from=None,
        init_lora="merge",
        lora=LoraConfig(),
        backbone=backbone,
    )


def declare(folder: Path, dense: Run) -> None:
    """Writes config, tokenizer and given examples of a run into the folder of another one."""
    keep_declarations(dense.folder, folder / "backbone", dense.task, needs_weights=False)
    if (dense.path / FOLDER).is_dir() and dense.trained:
        shutil.copytree(dense.path / FOLDER, folder / FOLDER)


def save_checkpoint(folder: Path, dense: Run, config: Config, params: Tree) -> None:
    """Writes a run directory's only checkpoint. Without run.json and config.yaml the folder is no run directory yet."""
    checkpoints = Checkpoints(folder, config.checkpoint)
    checkpoints.save(dense.checkpoint or 0, {"params": params}, Progress("compressed"), to_dict(config), None)
    checkpoints.close()


def measured(dense: Run, compressed: Run, texts: Sequence[Text], layers: Sequence[LayerError]) -> Compressed:
    """Opens the written run and compares it with the dense one."""
    before, after = (parameter_bytes(run.model.params) for run in (dense, compressed))
    files = [*dense.folder.glob("*.safetensors")]
    disk = before if dense.trained or not files else sum(file.stat().st_size for file in files)
    written = folder_bytes(compressed.path / "checkpoints" / str(compressed.checkpoint) / "state")
    if not texts:
        rng = np.random.default_rng(0)
        texts = [Text(rng.integers(5, 50, 64).astype(np.int32))]
    found = quality(dense, compressed)
    with heartbeat("timing both networks"):
        timed = speed(dense, compressed, texts)
    return Compressed(before, after, (disk, written), found, timed, layers)


def too_much(found: Quality, limit: float) -> str:
    return (
        f"{found.metric} is {found.compressed:.4f}, but {found.dense:.4f} before: a loss of {found.loss:.2%}, above "
        f"--limit {limit:.2%}. Nothing is written. Try --method gptq, smaller groups (--group 32), more bits, or "
        "--keep_above for the layers with the largest errors."
    )


def shown(found: Compressed) -> str:
    """The tables: quality with paired intervals, then bytes and speed."""
    quality, timed = found.quality, found.speed
    lines = [
        "" if quality is None else f"{quality.results}\n",
        f"{'':12}{'parameters':>14}{'on disk':>14}{timed.unit:>12}",
    ]
    for name, memory, disk, rate in (
        ("dense", found.before, found.on_disk[0], timed.dense),
        ("compressed", found.after, found.on_disk[1], timed.compressed),
    ):
        lines.append(f"{name:12}{memory / 1e6:>11,.1f} MB{disk / 1e6:>11,.1f} MB{rate:>12,.1f}")
    times = f"{timed.ratio:.2f} times as fast (median of {PAIRS} pairs)"
    only = ": saves memory only" if timed.ratio <= 1 else ""
    lines.append(f"{found.after / found.before:.3f} of the bytes, {times}{only}")
    if quality is None:
        lines.append("quality      not measured: neither data.test nor data.validation is set")
    else:
        how = f"{abs(quality.loss):.2%} {'worse' if quality.loss > 0 else 'better'}" if quality.loss else "no change"
        lines.append(f"quality      {quality.metric} {quality.dense:.4f} -> {quality.compressed:.4f}: {how}")
        if quality.training is not None:
            before, after = quality.training
            lines.append(f"loss         of training, on up to {LOSS_CASES:,} cases: {before:.4f} -> {after:.4f}")
    if found.layers:
        worst = sorted(found.layers, key=lambda layer: -layer["error"])[:5]
        lines.append("largest relative errors of a layer's outputs on calibration texts:")
        lines += [f"  {each['error']:.4f}  {each['layer']}{' (kept dense)' if each['kept'] else ''}" for each in worst]
    return "\n".join(lines)


def record(path: Path, how: Quantization | Pruning, found: Compressed) -> dict[str, object]:
    """compression.json."""
    measured = found.quality
    return {
        "version": version("instructrec_jax"),
        "source": str(path),
        "settings": asdict(how),
        "bytes": {"parameters": [found.before, found.after], "on_disk": list(found.on_disk)},
        "speed": asdict(found.speed),
        "quality": None if measured is None else measured.results.evaluation,
        "loss": None if measured is None else measured.loss,
        "training_loss": None if measured is None else measured.training,
        "layers": list(found.layers),
    }
