"""The summary of a run before its first step, and the FLOP counts for its MFU."""

import shlex
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from instructrec_jax.backbones.family import PAIR
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.distributed.chips import peak_flops
from instructrec_jax.evaluation.tables import Summary
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.training_data import TrainingData
from instructrec_jax.training.flops import Texts, forward_flops, has_output_table, step_flops
from instructrec_jax.training.robust_training import passes
from instructrec_jax.training.state import Tree, merge_params


def flops_and_peak(setup: TrainingSetup, data: TrainingData) -> tuple[Callable[[int], float], float | None]:
    """(number of tokens -> FLOP of the model, peak FLOP/s of all devices or None), for the MFU.

    Every text (and target text of an encoder–decoder) counts with the average length, which slightly underestimates
    attention. An image that is one token of a row counts with what the network makes of it: its patches. Teachers
    count with a forward pass, as do weak views of unlabeled examples.
    """
    params = merge_params(setup.state.params, setup.state.frozen)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    tied = setup.task.predicts_words and not has_output_table(shapes)
    causal = setup.task.context.kind == "decoder"
    lengths, targets = data.encoded.lengths, data.encoded.target_lengths
    length, target_length = (int(each.mean()) if each is not None and len(each) else 0 for each in (lengths, targets))
    share = length / max(length + target_length, 1)  # of a batch's tokens, without those of targets
    runs_backbone = "^backbone/" not in setup.task.freeze  # else its vectors are precomputed
    each_token = setup.task.per_token or setup.task.subtasks or setup.task.predicts_words
    pooled = runs_backbone and not each_token
    pixels = setup.task.context.pixels
    kind, network = setup.task.context.kind, setup.model.source.config
    patches = pixels.tokens if pixels is not None and kind == "image" else None
    if kind == PAIR and pixels is not None:
        return partial(_pair_flops, setup, shapes, length, pixels.tokens), _peak(setup)

    def texts_of(tokens: int) -> Texts:
        of_texts = round(tokens * share)
        vectors = round(of_texts / max(length, 1)) if pooled else None
        texts = Texts(of_texts, length, causal, tokens - of_texts, target_length, vectors)
        if patches is not None:
            texts = Texts(of_texts * patches, patches, causal, pooled=vectors)
        return texts

    def flops(tokens: int) -> float:
        weak = round(tokens * data.weak_share)
        texts = texts_of(tokens - weak)
        own = step_flops(shapes, setup.model.is_frozen, network, texts, tied=tied, backbone=runs_backbone).model
        own *= passes(setup.config.robust_training)
        if weak:
            own += forward_flops(shapes, network, texts_of(weak), tied=tied, backbone=runs_backbone)
        return own + sum(
            forward_flops(each.params, each.source.config, texts, tied=tied, backbone=runs_backbone)
            for each in setup.teachers
        )

    return flops, _peak(setup)


def _peak(setup: TrainingSetup) -> float | None:
    peak = peak_flops(setup.mesh.devices.flat[0])
    return None if peak is None else peak * setup.mesh.devices.size


def _pair_flops(setup: TrainingSetup, shapes: Tree, length: int, patches: int, tokens: int) -> float:
    """FLOP of an image network and a text network, without their projections of one vector each.

    Args:
      length: mean tokens of a pair, of which one stands for the image.
      patches: tokens of an image.
      tokens: of all pairs.
    """
    images, network, total = tokens / length, setup.model.source.config, 0.0
    backbone = setup.model.network.backbone
    assert isinstance(backbone, ImageText)
    for name, config, size, causal in (
        ("text", network.text_config, length - 1, backbone.spec.text.causal),
        ("vision", network.vision_config, patches, False),
    ):
        texts = Texts(round(images * size), size, causal, pooled=round(images))
        side: Tree = {"backbone": {name: shapes["backbone"][name]}}
        total += step_flops(side, setup.model.is_frozen, config, texts, tied=False).model
    return total


def introduction(config: Config, backbone: str) -> Summary:
    """Title, subtitle and command of a run, for its report: what was trained on which data, when, by which version."""
    sources = ", ".join(source.name or source.path for source in config.data.train[:3])
    more = f" and {len(config.data.train) - 3} more" if len(config.data.train) > 3 else ""
    tuned = f"{config.backbone.path} ({backbone}) tuned for {config.steps:,} steps on {sources}{more}"
    subtitle = (
        f"{config.task.name}: {tuned} · {date.today().isoformat()} · instructrec_jax {version('instructrec_jax')}"
    )
    command = f"python -m instructrec_jax.train {shlex.quote(config.run_dir)}/config.yaml"
    return {"title": Path(config.run_dir).name, "subtitle": subtitle, "command": command}


def summarize(setup: TrainingSetup, data: TrainingData) -> dict[str, str]:
    """The facts of a run before its first step: label -> text."""

    def count(tree: Tree) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    config, source = setup.config, setup.model.source
    devices = setup.mesh.devices.flatten()
    axes = " × ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items() if size > 1)
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    facts = {
        "devices": f"{len(devices)} × {devices[0].device_kind}{processes}" + (f", mesh {axes}" if axes else ""),
        "backbone": f"{config.backbone.path} ({source.config.model_type}), {source.report}",
        "parameters": f"{count(setup.state.params):,} trained, {count(setup.state.frozen):,} frozen",
        "examples": data.describe(),
        "steps": f"{config.steps:,} × {data.step_size}",
        "learning rate": setup.learning_rate_note,
        "run directory": config.run_dir,
    }
    notes = source.notes + [f"{n:,} {what}" for what, n in setup.task.context.counts.items()]
    return facts | ({"note": "; ".join(notes)} if notes else {})
