"""Every registered task with a tiny network: for the tests of what holds for all of them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SUBJECTS, examples, task_config
from tiny_pictures import png
from tiny_sounds import wav

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.lora import is_lora
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.media.picture import Sound, picture
from instructrec_jax.data.packing import fit
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.files import read_json, write_json
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.task_config import TaskConfig
from instructrec_jax.training.distillation import Teachers
from instructrec_jax.training.state import create_state, state_shardings
from instructrec_jax.training.step import make_train_step
from instructrec_jax.training.training_config import RobustTrainingConfig

SEED, LENGTH, COUNT = 7, 128, 8
IMAGES = ("vit", "dinov2", "clip", "siglip")
READERS = ("llava", "paligemma", "gemma3")


@dataclass(frozen=True)
class Case:
    """A task as it is tested.

    Attributes:
      network: "bert", "whisper", or one of `language_models`, `image_networks`, `pair_networks` or `seeing`.
      settings: of the task.
      beside: whether it can be learnt beside others; False: it is refused there, by name.
      lora: whether its backbone is trained, so that LoRA has something to do; False: LoRA is refused.
      mesh: data, fsdp, tensor (and context) of the eight devices that its step is spread over.
    """

    network: str
    settings: dict[str, Any] = field(default_factory=dict)
    beside: bool = True
    lora: bool = True
    mesh: tuple[int, ...] = (2, 2, 2)


# "type" or "type, what is special about it"
CASES = {
    "classification": Case("bert", mesh=(2, 1, 1, 4)),
    "classification, vit": Case("vit"),
    "classification, clip": Case("clip", mesh=(8, 1, 1)),
    "multilabel, dinov2": Case("dinov2", mesh=(1, 2, 4)),
    "regression, siglip": Case("siglip", mesh=(2, 1, 1, 4)),
    "classification, whisper": Case("whisper", mesh=(8, 1, 1)),
    "multilabel": Case("bert", mesh=(1, 1, 8)),
    "regression": Case("bert"),
    "token_classification": Case("bert"),
    "masked_lm": Case("bert"),
    "span": Case("bert"),
    "extractive_summarization": Case("bert"),
    "position_translation": Case("bert"),
    "position_translation, ctc": Case("bert", {"form": "ctc"}),
    "similarity": Case("bert", beside=False),
    "setfit": Case("bert", beside=False),
    "vector_classification": Case("bert", beside=False, mesh=(1, 2, 4)),
    "contrastive": Case("clip pair", beside=False, mesh=(8, 1, 1)),
    "contrastive, labels": Case("siglip pair", {"labels": SUBJECTS}, beside=False, mesh=(1, 2, 2, 2)),
    "retrieval": Case("bert", beside=False, mesh=(1, 2, 2, 2)),
    "retrieval, sampled": Case("bert", {"softmax": "sampled", "negatives": 6}, beside=False, mesh=(8, 1, 1)),
    "retrieval, full": Case("bert", {"softmax": "full"}, beside=False, mesh=(1, 8, 1)),
    # untrained vectors are nearly equal: a small temperature would multiply what rounding does to their differences
    "retrieval, pictures": Case("clip pair", {"items": "both", "temperature": 0.5}, beside=False, mesh=(8, 1, 1)),
    "sequence": Case("bert", beside=False, lora=False, mesh=(1, 1, 1, 8)),
    "sequence, pictures": Case(
        "bert", {"pictures": "vit", "cold_items": "left_out"}, beside=False, lora=False, mesh=(2, 2, 2)
    ),
    "sequence, sampled": Case("bert", {"softmax": "sampled", "negatives": 6}, beside=False, lora=False),
    "sequence, gbce": Case(
        "bert",
        {"loss": "gbce", "negatives": 3, "norm": "post", "activation": "relu", "mlp_factor": 1, "item_bias": False}
        | {"attention_dropout": 0.3, "positions": "both"},
        beside=False,
        lora=False,
        mesh=(2, 2, 2),
    ),
    "sequence, masked": Case(
        "bert",
        {"objective": "masked", "mask_share": 0.5, "activation": "swiglu", "label_smoothing": 0.1},
        beside=False,
        lora=False,
        mesh=(2, 1, 1, 4),
    ),
    "sequence, gru": Case("bert", {"network": "gru", "positions": "none"}, beside=False, lora=False, mesh=(2, 2, 2)),
    "sequence, hstu": Case(
        "bert", {"network": "hstu", "positions": "relative"}, beside=False, lora=False, mesh=(2, 1, 1, 4)
    ),
    "reranker": Case("bert", {"negatives": 2}),
    "reranker, listwise": Case("bert", {"negatives": 2, "loss": "listwise"}, beside=False),
    "language_model": Case("llama", mesh=(2, 1, 1, 4)),
    "language_model, gpt2": Case("gpt2"),
    "language_model, llava": Case("llava", mesh=(2, 2, 2)),
    "language_model, gemma3": Case("gemma3", mesh=(8, 1, 1)),
    "language_model, encoder–decoder": Case("t5"),
    "language_model, bart": Case("bart", mesh=(2, 1, 1, 4)),
    "choice": Case("llama"),
    "choice, llava": Case("llava"),
    "preference": Case("llama", beside=False),
    "preference, encoder–decoder": Case("t5", {"loss": "ipo", "beta": 1.0}, beside=False, mesh=(8, 1, 1)),
    "preference, orpo": Case("gpt2", {"loss": "orpo"}, beside=False, mesh=(2, 1, 1, 4)),
    "dialogue": Case("llama"),
    "dialogue, encoder–decoder": Case("t5"),
    "question_answering": Case("llama"),
    "question_answering, paligemma": Case("paligemma"),
    "summarization": Case("llama"),
    "transcription": Case("whisper", mesh=(2, 1, 1, 4)),
    "translation": Case("llama"),
    "language_model_ranking": Case("llama"),
    "language_model_ranking, yes_no": Case("llama", {"form": "yes_no", "negatives": 2}),
    "generative": Case("codes llama", {"beams": 20}),
    "generative, encoder–decoder": Case("codes t5", {"beams": 20}, mesh=(8, 1, 1)),
    "image_tokenization": Case("fsq", beside=False, mesh=(8, 1, 1)),
    "text_to_image": Case("draw llama", {"blank_prompts": 0.5}, beside=False, mesh=(2, 1, 1, 4)),
    "text_to_image, encoder–decoder": Case("draw t5", {"blank_prompts": 0.5}, beside=False),
    "text_to_image, dalle-mini": Case("dallebart", {"blank_prompts": 0.5}, beside=False),
    "multitask": Case("bert", beside=False),
}
# With -m slow only: tasks whose methods are those of another one, and cases that differ in the step alone.
ALIKE = ("dialogue", "dialogue, encoder–decoder", "summarization", "translation")
STEPS = (
    *("language_model, gemma3", "choice, llava", "language_model, gpt2", "language_model, bart"),
    *("retrieval, sampled", "retrieval, full", "sequence, sampled", "preference, orpo"),
)
# With -m slow only, where each case compiles steps of its own: other cases have their networks, losses and layouts.
REPEATED = (
    *("classification, clip", "multilabel, dinov2", "contrastive, labels", "retrieval, sampled", "retrieval, pictures"),
    *("sequence, pictures", "sequence, sampled", "sequence, gbce", "reranker, listwise", "language_model, llava"),
    *("language_model, gemma3", "language_model, bart", "language_model, gpt2", "choice, llava", "preference, orpo"),
    *("preference, encoder–decoder", "generative, encoder–decoder", "text_to_image, encoder–decoder"),
    "text_to_image, dalle-mini",
)
SLOW = pytest.mark.slow


def named(names: Iterable[str], slow: Collection[str] = (*ALIKE, *STEPS)) -> list[Any]:
    return [pytest.param(name, marks=SLOW) if name in slow else name for name in names]


# ---------------------------------------------------------------- a task, its model and its examples


@pytest.fixture(scope="module")
def networks(
    checkpoint: Path,
    language_models: dict[str, Path],
    image_networks: dict[str, Path],
    hearing: Path,
    pair_networks: dict[str, Path],
    seeing: dict[str, Path],
    drawing: dict[str, Path],
    coded: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, bool], Path]:
    """(network, whether it has dropout) -> folder."""
    found = {}
    for name, folder in {
        "bert": checkpoint,
        **language_models,
        **image_networks,
        **pair_networks,
        **seeing,
        **drawing,
        **coded,
        "whisper": hearing,
    }.items():
        silent = tmp_path_factory.mktemp(f"silent-{name}")
        for file in folder.iterdir():
            (silent / file.name).symlink_to(file)
        config = without_dropout(read_json(folder / "config.json"))
        (silent / "config.json").unlink()
        write_json(silent / "config.json", config | {"summary_first_dropout": 0.0})
        found |= {(name, True): folder, (name, False): silent}
    return found


def without_dropout(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_dropout(value) if isinstance(value, dict) else 0.0 if "drop" in key else value
        for key, value in config.items()
    }


@dataclass
class Built:
    config: Config
    task: Any
    model: Any
    mesh: Any
    encoded: Any


def examples_of(name: str, task: str = "") -> list[Example]:
    kind, _, network = name.partition(", ")
    made = [replace(e, task=task or e.task) for e in examples(kind, COUNT)]
    if kind in ("image_tokenization", "text_to_image"):
        return [drawn(e, n, kind) for n, e in enumerate(made)]
    if kind == "contrastive":
        return paired(made, network == "labels")
    if CASES.get(name, Case(network)).network == "whisper":
        return [sounding(e, n, 1 if kind == "transcription" else 1 + n % 3) for n, e in enumerate(made)]
    if network in READERS:
        return [illustrated(e, n) for n, e in enumerate(made)]
    return list(map(pictured, made, range(COUNT))) if network in IMAGES else made


def pictured(example: Example, number: int) -> Example:
    """One to three pictures in place of the words."""
    return replace(example, instruction="", images=tuple(picture(png(3 * number + n)) for n in range(1 + number % 3)))


def paired(made: list[Example], labels: bool) -> list[Example]:
    """Pictures with a label, or with a caption among those of all examples; two have the same picture."""
    said = [str(e.output) for e in made]
    kept = [each.split()[-1] for each in said] if labels else said
    candidates = () if labels else tuple(dict.fromkeys(said))
    return [
        replace(e, instruction="", output=each, candidates=candidates, images=(picture(png(n % (len(made) - 1))),))
        for n, (e, each) in enumerate(zip(made, kept, strict=True))
    ]


def drawn(example: Example, number: int, kind: str = "text_to_image") -> Example:
    """A picture in place of the answer; with image_tokenization, of the words, too."""
    asked = example.instruction if kind == "text_to_image" else ""
    return replace(example, instruction=asked, output=None, images=(picture(png(number)),))


def illustrated(example: Example, number: int) -> Example:
    """None to two pictures between the words, at marks or in front."""
    pictures = tuple(picture(png(3 * number + n)) for n in range(number % 3))
    start = "<image>" * len(pictures) if number % 2 else ""
    return replace(
        example, instruction=f"the {start} {example.instruction}" if start else example.instruction, images=pictures
    )


def sounding(example: Example, number: int, count: int) -> Example:
    """Sounds in place of the words."""
    return replace(example, instruction="", sounds=tuple(Sound.of(wav(3 * number + n)) for n in range(count)))


def built(
    task: TaskConfig,
    records: list[Example],
    network: str,
    networks: Any,
    *,
    dropout: bool,
    lora: bool,
    mesh: tuple[int, ...] = (1, 1, 1),
    loaded: bool = True,
) -> Built:
    """loaded: False: without a model, for what is made of examples alone."""
    folder = networks[network, dropout]
    rows: Any = "added" if network.startswith("codes ") else "none"
    settings = LoraConfig(rank=2, dropout=0.1 if dropout else 0.0, token_rows=rows) if lora else LoraConfig()
    length = 64 if network == "bert" else LENGTH
    config = Config(
        backbone=BackboneConfig(str(folder), dtype="float32"),
        task=task,
        lora=settings,
        data=DataConfig(batch_size=COUNT, max_length=length),
    )
    devices = make_mesh(MeshConfig(*mesh), jax.devices()[: int(np.prod(mesh))])
    made = models.open_task(config, folder)
    model = models.load_model(config, made, folder, devices) if loaded else None
    if model is not None and lora:  # b begins at zero, where a has no gradient
        model.params = jax.tree_util.tree_map_with_path(_moved, model.params)
    encoded = made.encode(records)
    if encoded:
        made.prepare(encoded)
    return Built(config, made, model, devices, encoded)


def _moved(path: Any, x: jax.Array) -> jax.Array:
    name = "/".join(str(part.key) for part in path)
    noise = 0.1 * np.sin(np.arange(x.size)).reshape(x.shape)
    return jax.device_put(x + noise, x.sharding) if is_lora(name) else x


def settings_of(name: str, networks: Any) -> dict[str, Any]:
    """The settings of a case, with the folder of a network that they name."""
    settings = CASES[name].settings
    kind = settings.get("pictures")
    return settings if kind is None else settings | {"pictures": str(networks[kind, False])}


def alone(name: str, networks: Any, folder: Path, **how: Any) -> Built:
    case = CASES[name]
    config = task_config(name.partition(",")[0], folder / "catalogue", **settings_of(name, networks))
    return built(config, examples_of(name), case.network, networks, **how)


def texts_of(task: Any, encoded: Any) -> Any:
    return task.gather(encoded, np.random.default_rng(SEED))


def buffers_of(made: Built) -> dict[str, Any]:
    """Random vectors of length 1, as those of items are; longer ones make logits and gradients of several hundred."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in made.task.buffer_shapes(32).items()}
    return {name: x / np.linalg.norm(x, axis=-1, keepdims=True) for name, x in drawn.items()}


def packed(made: Built, texts: Any, rows: int = 1) -> Any:
    """Several texts in a row; with more `rows` than they need, the empty ones lie between."""
    lengths, targets = lengths_of(texts.texts)
    room, target_room = (None if each is None else -(-2 * int(each.max()) // 8) * 8 for each in (lengths, targets))
    assert room is not None
    room = max(room, 16)  # shorter rows hold one text
    plan = fit(lengths, room, targets, target_room)
    rows = -(-plan.rows // rows) * rows
    return lay_out(texts, replace(plan, rows=rows, row=plan.row * (rows // plan.rows)))


def after_one_step(
    made: Built,
    batch: Any,
    accumulation: int = 1,
    teachers: Teachers | None = None,
    robust: RobustTrainingConfig | None = None,
) -> tuple[float, float, Any]:
    """(Σ w ℓ, Σ w, trained parameters less the mean gradient) of the step that training runs."""
    params = jax.tree.map(jnp.copy, made.model.params)  # the step gives the old state's memory to the new one
    state = create_state(params, optax.sgd(1.0), SEED, is_frozen=made.model.is_frozen, buffers=buffers_of(made))
    shardings = state_shardings(state, made.model.shardings, made.mesh)
    step = make_train_step(
        made.task,
        made.model.graphdef,
        optax.sgd(1.0),
        mesh=made.mesh,
        shardings=shardings,
        accumulation=accumulation,
        teachers=teachers,
        robust_training=robust,
    )
    state, sums = step(jax.device_put(state, shardings), to_devices(batch, made.mesh))
    return float(sums["loss"]), float(sums["weight"]), jax.device_get(state.params)
