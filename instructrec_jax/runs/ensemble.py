"""Ensembles: several runs averaged into one opened run, and the folder that keeps how.

An ensemble's folder is a run directory without checkpoints: settings, tokenizer, and `ensemble.json`, which names the
members with their checkpoints, weights and temperatures. `Run.open` opens it like any run, so every verb answers with
what `evaluate` measured. `tasks.averaging` has the formulas.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

import jax
import numpy as np
from flax import nnx

from instructrec_jax.adapters.heads import LMHead
from instructrec_jax.adapters.mixture import MixtureBackbone, MixtureHead
from instructrec_jax.backbones.decoder import Decoder
from instructrec_jax.backbones.gpt2 import GPT2
from instructrec_jax.data.batch import Text
from instructrec_jax.data.media.media_reader import form_of
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.evaluation.predictor import Rows, predictor
from instructrec_jax.files import read_json
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import buckets
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.averaging import Average, Mixture, OutputKind, check_average, mixed
from instructrec_jax.tasks.base import Encoded, Model, Task
from instructrec_jax.tasks.encoded_store import encode_again, tokenizer_digest
from instructrec_jax.tasks.kinds import as_ranking
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.recalibration import Recalibration
from instructrec_jax.training.state import Tree

FILE = "ensemble.json"
# Settings of tasks that matter to training and to reports, but not to what a trained network says.
NOT_READ = {"labels", "label_smoothing", "z_loss", "protocols", "cutoffs", "ties", "mask_seen", "orders", "temperature"}
CONTEXT = ("max_length", "truncate", "lower_case", "prompt", "kind", "decoder_start_token_id")
Programs = dict[nnx.GraphDef[Model], Callable[[Tree], Predict]]  # of equal networks, which share them
LATER = ("labels", "decisions", "numbers")  # outputs that members with other tokenizers can share


class Opened(Protocol):
    """What an ensemble reads of a `runs.run.Run`, which imports this module."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> Config: ...
    @property
    def kind(self) -> str: ...
    @property
    def task(self) -> Task: ...
    @property
    def mesh(self) -> DeviceMesh: ...
    @property
    def model(self) -> SplitModel: ...
    @property
    def mixture(self) -> Mixture | None: ...
    @property
    def calibration(self) -> Recalibration | None: ...
    @property
    def members(self) -> Sequence["Opened"]: ...

    def sized_predictor(self, size: Rows) -> Predict: ...

    def with_known_items(self, predict: Predict, task: Task) -> Predict: ...


class Member(TypedDict):
    """A member in ensemble.json: its checkpoint's step, its weight, and the temperature of its logits.

    Attributes:
      calibration: the digest of the member's own calibration when the ensemble was made; None or missing: it had none.
    """

    run: str
    checkpoint: int | None
    weight: float
    temperature: float
    calibration: NotRequired[str | None]


class Kept(TypedDict):
    """ensemble.json. temperature: of the average; validation_cases: those by which numbers were tuned, 0: none were."""

    average: Average
    temperature: float
    members: list[Member]
    validation_cases: int


def read_ensemble(folder: Path) -> Kept | None:
    """The ensemble that a folder keeps, None if it keeps none. Raises ValueError naming a damaged file."""
    file = folder / FILE
    if not file.is_file():
        return None
    kept = read_json(file, Kept)
    if len(kept["members"]) < 2:
        raise ValueError(f"{file} has {len(kept['members'])} members, but an ensemble has at least two.")
    return kept


@contextmanager
def named(folder: Path, member: str) -> Iterator[None]:
    """Errors about a member name it and the ensemble."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the member {member} of the ensemble {folder}: {error}") from error


def check_overrides(folder: Path, overrides: Sequence[str]) -> None:
    """Raises ValueError for a setting of the members' networks."""
    for name in (arg.partition("=")[0] for arg in overrides):
        if name.startswith(("--backbone", "--lora", "--task.type")):
            raise ValueError(f"{folder} is an ensemble, and {name} is a setting of its members: leave it out.")


def calibration_digest(run: Opened) -> str | None:
    """What identifies a run's calibration; None: it has none."""
    if run.calibration is None:
        return None
    return hashlib.sha256(repr(run.calibration).encode()).hexdigest()[:16]


def check_calibration(kept: Member, run: Opened) -> None:
    """Raises ValueError where a member was calibrated, or calibrated anew, after the ensemble was made."""
    if calibration_digest(run) != kept.get("calibration"):
        raise ValueError(
            "its calibration changed since the ensemble was made: make the ensemble again (evaluate --average), or set "
            "--evaluation.calibration false."
        )


def mixture_of(kept: Kept, file: Path) -> Mixture:
    """Raises ValueError naming the file for weights or temperatures out of range."""
    members = kept["members"]
    try:
        weights, temperatures = (tuple(float(m[name]) for m in members) for name in ("weight", "temperature"))
        return Mixture(kept["average"], weights, temperatures, float(kept["temperature"]))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def check_members(members: Sequence[Opened], average: str) -> None:
    """Raises ValueError, naming the runs and what differs, for runs whose outputs cannot be averaged."""
    first = members[0]
    check_average(first.kind, first.task.outputs_are, average)
    if first.task.outputs_are == "words" and first.task.context.kind != "decoder":
        raise ValueError("encoder–decoders cannot be averaged: language models of an ensemble are decoders.")
    for other in members[1:]:
        both = f"{other.path} and {first.path} cannot be averaged:"
        if other.kind != first.kind:
            raise ValueError(f"{both} their tasks are {other.kind} and {first.kind}.")
        labels, own = (getattr(run.task, "labels", None) for run in (other, first))
        if sorted(labels or ()) != sorted(own or ()):
            raise ValueError(f"{both} their labels are {labels} and {own}: an ensemble needs the same labels.")
        ranking, own_ranking = as_ranking(other.task), as_ranking(first.task)
        if ranking is not None and own_ranking is not None and ranking.catalogue.ids != own_ranking.catalogue.ids:
            raise ValueError(f"{both} they rank the items of different catalogues.")
        differs = difference(first, other)
        if differs and (first.task.outputs_are not in LATER or first.task.per_token):
            raise ValueError(f"{both} {differs} differs, but their networks have to read the same tokens.")


def difference(first: Opened, other: Opened) -> str:
    """A setting by which two runs read texts differently; "": they read the same tokens."""
    contexts = first.task.context, other.task.context
    for name in CONTEXT:
        if getattr(contexts[0], name) != getattr(contexts[1], name):
            return {"max_length": "data.max_length", "truncate": "data.truncate"}.get(name, name)
    if form_of(contexts[0].pixels) != form_of(contexts[1].pixels):
        return "preprocessor_config.json"
    digests = [tokenizer_digest(context) for context in contexts]
    if digests[0] != digests[1]:
        return "the tokenizer"
    task = first.config.task
    names: list[str] = [each.name for each in fields(task)] if is_dataclass(task) else []
    for name in names:
        if name not in NOT_READ and getattr(task, name) != getattr(other.config.task, name):
            return f"task.{name}"
    return ""


# ---------------------------------------------------------------- as one model


def averaged(run: Opened, size: Rows) -> Predict:
    """The `Predict` of an ensemble. Members with equal networks share their compiled programs."""
    kind = run.task.outputs_are
    assert kind is not None  # see check_members
    made: Programs = {}
    members = tuple(_member(run, member, size, made) for member in run.members)

    def together(
        texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        if kind == "scores" or dropout is not None or any(member.reads is not None for member in members):
            raise TypeError("the members of this ensemble are averaged case by case: run each of them.")
        return predict.averaged([member.run(texts, own) for member in members])

    predict = Predict(together, members=members, average=averaged_as(kind, run))
    return predict


def averaged_as(kind: OutputKind, run: Opened) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """See `Predict.average`. It raises ValueError naming the member whose outputs are NaN."""
    mixture = run.mixture
    assert mixture is not None

    def average(outputs: Sequence[np.ndarray]) -> np.ndarray:
        for path, output in zip((member.path for member in run.members), outputs, strict=True):
            if np.isnan(output).any():
                raise ValueError(f"the outputs of {path} are not numbers: the run diverged. Train it again.")
        return mixed(kind, outputs, mixture).astype(np.float32)

    return average


def _member(run: Opened, member: Opened, size: Rows, made: Programs) -> Predict:
    """A member as the first one's task sees it: its labels in that order, and its texts as it reads them."""
    if differs := difference(run, member):
        predict = member.sized_predictor(size)
        predict = replace(predict, reads=lambda encoded: _read_again(member, encoded, differs))
    else:
        graphdef = member.model.graphdef
        if graphdef not in made:
            made[graphdef] = predictor(run.task, graphdef, run.mesh, buckets(run.config), size=size)
        predict = member.with_known_items(made[graphdef](member.model.params), run.task)
    if member.calibration is not None:
        predict = member.calibration.behind(predict)
    labels, own = (getattr(each.task, "labels", None) for each in (run, member))
    if labels == own or labels is None or own is None:
        return predict
    order, inner = [own.index(label) for label in labels], predict.run

    def reordered(
        texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        return [output[..., order] for output in inner(texts, own, dropout)]

    return replace(predict, run=reordered)


def _read_again(member: Opened, encoded: Sequence[Encoded], differs: str) -> Sequence[Encoded]:
    """Examples as a member with another tokenizer reads them."""
    found = encode_again(member.task, encoded)
    if len(found) != len(encoded):
        raise ValueError(
            f"{len(encoded) - len(found)} texts are too long for {member.path}, whose {differs} is another: set "
            "data.truncate to left or right in its config.yaml."
        )
    return found


def joint_model(run: Opened) -> SplitModel:
    """The members of language models as one network, see `adapters.mixture`."""
    mixture = run.mixture
    assert mixture is not None and mixture.average != "rank"
    if run.task.outputs_are != "words":
        raise ValueError(
            f"{run.path} is an ensemble of {len(run.members)} networks, and this needs one: name one of its members, "
            f"such as {run.members[0].path}."
        )
    if {*mixture.temperatures, mixture.temperature} != {1.0}:
        raise ValueError(f"{run.path}: language models of an ensemble have no temperatures: they should be 1.")
    backbones: list[Decoder | GPT2] = []
    heads: list[LMHead] = []
    for member in run.members:
        network = member.model.network
        if not isinstance(network.backbone, Decoder | GPT2) or not isinstance(network.head, LMHead):
            raise ValueError(f"{member.path} is no language model with a decoder, so it cannot be averaged.")
        backbones.append(network.backbone)
        heads.append(network.head)
    sizes = {head.vocab_size(backbone) for head, backbone in zip(heads, backbones, strict=True)}
    if len(sizes) > 1:
        raise ValueError(f"{run.path}: the vocabularies of its members have different sizes: {sizes}.")
    head = MixtureHead(heads, [backbone.hidden_size for backbone in backbones], mixture.weights, mixture.average)
    graphdef, state = nnx.split(Model(MixtureBackbone(backbones), head))
    params = nnx.to_pure_dict(state)
    shardings = jax.tree.map(lambda x: x.sharding, params)
    return SplitModel(graphdef, params, shardings, run.members[0].model.source, lambda path: False)
