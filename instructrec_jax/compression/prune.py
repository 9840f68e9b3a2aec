"""A smaller dense run from a run or a HuggingFace folder: `python -m instructrec_jax.compress RUN --layers 4`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.compression.compress import (
    Compressed,
    calibration_batches,
    calibration_cases,
    check_limit,
    declare,
    finish,
    measured,
    opened,
    partial_folder,
    plain,
    record,
    save_checkpoint,
    settled_config,
    shown,
    texts_of,
)
from instructrec_jax.compression.importance import (
    CRITERIA,
    Criterion,
    LayerLosses,
    energies,
    layers_to_keep,
    parts_to_keep,
    stack_of,
)
from instructrec_jax.compression.measure import loss_batches, loss_on
from instructrec_jax.compression.pruning import (
    Pruning,
    by_path,
    head_size,
    keep_heads,
    keep_layers,
    keep_tokens,
    keep_width,
    mlp_width,
    pruned_config,
    text_part,
    values_of,
)
from instructrec_jax.compression.vocabulary import NAMES_OF_IDS, cut_tokenizer, renumbered
from instructrec_jax.data.batch import Text
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.files import read_json, write_json
from instructrec_jax.hf_types import PretrainedConfig
from instructrec_jax.runs.bucket import local_run
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import SplitModel, abstract_model, open_task
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.stored import filled
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import encode_again
from instructrec_jax.tasks.generation.language_model import NextTokens
from instructrec_jax.training.state import Tree

CHUNK = 1024  # examples whose tokens are counted at once


@dataclass(frozen=True)
class Choice:
    """What a criterion leaves of a network.

    Attributes:
      layers: numbers of its layers; None: all.
      loss: the task's loss on the calibration examples, before any training; None: not known.
    """

    criterion: Criterion
    layers: Sequence[int] | None
    loss: float | None


@dataclass(frozen=True)
class Pruned:
    """What `prune` found.

    Attributes:
      loss: of the whole network on the calibration examples.
      choices: what each criterion would leave; the first one is that of the written network.
      tokens: numbers of tokens before and after.
    """

    compressed: Compressed
    loss: float | None
    choices: Sequence[Choice]
    tokens: tuple[int, int]


def prune(
    path: str | Path,
    out: str | Path,
    how: Pruning,
    *,
    settings: Sequence[str] = (),
    step: int | None = None,
    calibration: int = 128,
    limit: float | None = None,
) -> Pruned:
    """Writes the pruned network of a run or a HuggingFace folder as the new run directory `out`.

    It is a dense run of a smaller backbone, which `transformers` opens once it is exported. Arguments and errors as
    `compress.compress`; ValueError also for a network that cannot be pruned so.
    """
    path, out = local_run(path), Path(out)
    dense = opened(path, out, settings, step, limit)
    if not hasattr(dense.model.network, "backbone"):
        raise ValueError(f"--layers, --heads, --width, --vocabulary: a {dense.kind} network has no backbone to prune.")
    how.check(dense.model.source.config)
    cases = calibration_cases(dense, calibration)
    _check_data(how, cases)
    with partial_folder(path, out) as partial:
        declare(partial, dense)
        order = _cut(dense, partial / "backbone") if how.vocabulary else None
        settled = settled_dense(dense.config, path, out)
        surgery = Surgery.of(dense, how, cases, order)
        surgery.config(surgery.layers(how.criterion)).save_pretrained(partial / "backbone")
        task = dense.task if order is None else open_task(settled, partial / "backbone")
        loss, choices, params = _chosen(surgery, dense, task, settled, partial / "backbone", cases)
        save_checkpoint(partial, dense, settled, params)
        written = Run(partial, RunData(settled), partial / "backbone", task, dense.mesh, trained=True)
        texts = [each.text if order is None else _within(each.text, len(order)) for each in cases]
        compressed = measured(dense, written, texts, ())
        pruned = Pruned(compressed, loss, choices, surgery.tokens)
        report = record(path, how, compressed) | {
            "criteria": [asdict(choice) for choice in choices],
            "dense_loss": loss,
            "tokens": list(surgery.tokens),
        }
        check_limit(compressed.quality, limit)
        finish(partial, out, settled, report)
    return pruned


def _within(text: Text, tokens: int) -> Text:
    """The text with numbers of tokens that both networks have, to time them."""
    return replace(text, tokens=text.tokens % tokens, target=None if text.target is None else text.target % tokens)


def _check_data(how: Pruning, cases: Sequence[Encoded]) -> None:
    if how.vocabulary and not cases:
        raise ValueError("--vocabulary keeps the tokens of data.train, but it is empty: set it.")
    structures = (how.layers, how.heads, how.width) != (None, None, None)
    if structures and how.criterion != "random" and not cases:
        raise ValueError(
            f"--criterion {how.criterion} needs examples, but data.train is empty: set it, or use --criterion random."
        )


def settled_dense(config: Config, path: Path, out: Path) -> Config:
    """The settings of a dense run that was made of another one."""
    kept = BackboneConfig(path=config.backbone.path, dtype=config.backbone.dtype, remat=config.backbone.remat)
    return settled_config(config, path, out, kept)


@dataclass(frozen=True)
class Surgery:
    """A dense network, and how important its parts are.

    Attributes:
      losses: of its layers; None without examples.
      heads, width: energies [layers, features], see `importance.energies`; None: not pruned.
      order: old numbers of the tokens that are left; None: all.
    """

    how: Pruning
    model: SplitModel
    seed: int
    losses: LayerLosses | None
    heads: np.ndarray | None
    width: np.ndarray | None
    order: np.ndarray | None

    @classmethod
    def of(cls, dense: Run, how: Pruning, cases: Sequence[Encoded], order: np.ndarray | None) -> "Surgery":
        model, task, mesh = plain(dense.model), dense.task, dense.mesh
        losses = None
        if how.layers is not None and cases:
            with heartbeat("measuring the influence of each layer"):
                losses = LayerLosses(task, model, mesh, loss_batches(task, dense.config, mesh, cases))
            if how.criterion == "loss" and not losses.available:
                raise ValueError(
                    f"--criterion loss: the loss of {dense.kind} needs buffers of training: use influence."
                )
        rows = calibration_batches(dense, texts_of(dense, cases))

        def energy(wanted: int | None, *modules: str) -> np.ndarray | None:
            paths = [f"layers.{{layer}}.{module}" for module in modules]
            return None if wanted is None else energies(model, mesh, rows, *paths)

        heads, width = energy(how.heads, "attention.output"), energy(how.width, "mlp_out", "mlp.outer")
        return cls(how, model, dense.config.seed, losses, heads, width, order)

    @property
    def tokens(self) -> tuple[int, int]:
        before = int(getattr(text_part(self.model.source.config), "vocab_size", 0))
        return before, before if self.order is None else len(self.order)

    @property
    def criteria(self) -> list[Criterion]:
        """The chosen criterion, then the others that apply."""
        how = self.how
        if (how.layers, how.heads, how.width) == (None, None, None):
            return [how.criterion]
        data = self.losses is not None or how.criterion != "random"
        able = {"influence": data, "random": True, "loss": self.losses is not None and self.losses.available}
        able["loss"] = able["loss"] and (how.heads, how.width) == (None, None)
        return [how.criterion, *(name for name in CRITERIA if able[name] and name != how.criterion)]

    def layers(self, criterion: Criterion) -> tuple[int, ...] | None:
        if self.how.layers is None:
            return None
        if self.losses is None:
            count = stack_of(self.model.network).num_layers
            drawn = np.random.default_rng(self.seed).permutation(count)[: self.how.layers]
            return tuple(sorted(drawn.tolist()))
        return layers_to_keep(self.losses, self.how.layers, criterion, self.seed)

    def config(self, layers: Sequence[int] | None) -> PretrainedConfig:
        return pruned_config(self.model.source.config, self.how, layers, self.order)

    def parameters(self, criterion: Criterion, smaller: SplitModel) -> Tree:
        """The parameters that a criterion leaves, as the (abstract) smaller network stores them."""
        network, config, how = self.model.network, text_part(self.model.source.config), self.how
        backbone, head = values_of(network.backbone), values_of(network.head)
        if self.width is not None and how.width is not None:
            kept = parts_to_keep(self.width, mlp_width(config), how.width, criterion, self.seed)
            backbone = keep_width(backbone, kept)
        if self.heads is not None and how.heads is not None:
            groups = config.num_key_value_heads
            group = config.num_attention_heads // groups
            kept = parts_to_keep(self.heads, groups, how.heads // group, criterion, self.seed)
            backbone = keep_heads(backbone, kept, head_size(config), group)
        if (layers := self.layers(criterion)) is not None:
            backbone = keep_layers(backbone, layers)
        if self.order is not None:
            size = int(config.vocab_size)
            backbone = keep_tokens(network.backbone, backbone, self.order, size)
            head = keep_tokens(network.head, head, self.order, size)
        taken = by_path(smaller.network.backbone, backbone, "backbone/") | by_path(smaller.network.head, head, "head/")
        return filled(smaller.params, smaller.shardings, taken)


def _chosen(
    surgery: Surgery, dense: Run, task: Task, settled: Config, folder: Path, cases: Sequence[Encoded]
) -> tuple[float | None, list[Choice], Tree]:
    """(the loss of the whole network, what each criterion leaves, the parameters of the first one)."""
    mesh = dense.mesh
    known = bool(cases) and not task.refresh_every
    own = list(encode_again(task, cases)) if known and surgery.order is not None else cases
    if surgery.order is not None:
        _check_pieces(cases, own, surgery.order)
    batches = loss_batches(task, settled, mesh, own) if known else []
    choices: list[Choice] = []
    first: Tree = {}
    for criterion in surgery.criteria:
        layers = surgery.layers(criterion)
        smaller = abstract_model(settled, task, folder, mesh)
        params = surgery.parameters(criterion, smaller)
        with heartbeat(f"measuring what {criterion} leaves"):
            loss = loss_on(task, mesh, smaller.graphdef, params, batches) if batches else None
        choices.append(Choice(criterion, layers, loss))
        first = first or params
    whole = surgery.model
    before = loss_batches(dense.task, dense.config, mesh, cases) if batches else []
    loss = loss_on(dense.task, mesh, whole.graphdef, whole.params, before) if batches else None
    return loss, choices, first


def _check_pieces(before: Sequence[Encoded], after: Sequence[Encoded], order: np.ndarray) -> None:
    """Raises ValueError where the cut tokenizer reads a text of the data in another way."""
    for old, new in zip(before, after, strict=True):
        if not np.array_equal(old.text.tokens, order[new.text.tokens]):
            raise ValueError(
                f"--vocabulary: the cut tokenizer reads {old.example.id or old.example.instruction!r} in other pieces, "
                "so this tokenizer cannot be cut: leave --vocabulary out."
            )


def used_tokens(run: Run) -> set[int]:
    """The tokens in the texts and targets of data.train and data.validation, and of a catalogue's items."""
    task, used = run.task, set[int]()
    texts = list(getattr(task, "item_texts", ()))
    train = run.data.train(task)
    masks = task.predicts_words and not task.writes  # random tokens stand in its batches
    for cases in (train, run.data.cases(task, "validation")):
        for start in range(0, len(cases), CHUNK):
            some = [cases[number] for number in range(start, min(start + CHUNK, len(cases)))]
            texts += [each.text for each in some]
            used.update(
                *(np.unique(each.target.labels).tolist() for each in some if isinstance(each.target, NextTokens))
            )
            if cases is train and not masks:
                texts += task.gather(some, np.random.default_rng(start)).texts
            for text in texts:
                used.update(text.tokens.tolist(), () if text.target is None else text.target.tolist())
            texts = []
    return used


def _cut(dense: Run, folder: Path) -> np.ndarray:
    """Cuts the tokenizer and the generation settings of a folder; the old numbers of the tokens that are left."""
    whole = dense.model.source.config
    config = text_part(whole)
    used = used_tokens(dense)
    used.update(n for part in (whole, config) for name in NAMES_OF_IDS for n in _numbers(getattr(part, name, None)))
    order = cut_tokenizer(folder, used, int(config.vocab_size))
    if len(order) == config.vocab_size:
        raise ValueError(f"--vocabulary: the data use all {len(order):,} tokens: leave it out.")
    file = folder / "generation_config.json"
    if file.is_file():
        new = {int(old): number for number, old in enumerate(order)}
        tree = read_json(file, dict)
        found = {name: renumbered(tree[name], new, name) for name in NAMES_OF_IDS if name in tree}
        write_json(file, tree | found)
    return order


def _numbers(value: object) -> list[int]:
    listed = value if isinstance(value, list) else [value]
    return [number for number in listed if isinstance(number, int) and number >= 0]


def shown_pruned(found: Pruned) -> str:
    """The tables of `compress.shown`, below that of the criteria."""
    lines = []
    if found.tokens[0] != found.tokens[1]:
        lines.append(f"tokens       {found.tokens[0]:,} -> {found.tokens[1]:,}")
    if len(found.choices) > 1 or found.choices[0].layers is not None:
        lines.append(f"{'criterion':12}{'loss':>10}  layers that are left (before any training)")
        rows = [("all", found.loss, None), *((each.criterion, each.loss, each.layers) for each in found.choices)]
        for name, loss, layers in rows:
            told = "" if layers is None else " ".join(map(str, layers))
            lines.append(f"{name:12}{'' if loss is None else f'{loss:.4f}':>10}  {told}")
    return "\n".join([*lines, "", shown(found.compressed)])
