"""What several test files build: examples, tasks and one compiled step."""

import base64
import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_pictures import png

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.batch import BatchTexts, lengths_of, split_tokens
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.loader import pack
from instructrec_jax.distributed.mesh import data_shards, make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.tasks import (
    ChoiceConfig,
    ClassificationConfig,
    ContrastiveConfig,
    DialogueConfig,
    ExtractiveSummarizationConfig,
    GenerativeConfig,
    ImageTokenizationConfig,
    LanguageModelConfig,
    LanguageModelRankingConfig,
    MaskedLMConfig,
    MultilabelConfig,
    MultitaskConfig,
    PositionTranslationConfig,
    PreferenceConfig,
    QuestionAnsweringConfig,
    RegressionConfig,
    RerankerConfig,
    RetrievalConfig,
    SequenceConfig,
    SetFitConfig,
    SimilarityConfig,
    SpanConfig,
    SummarizationConfig,
    TextToImageConfig,
    TokenClassificationConfig,
    TranscriptionConfig,
    TranslationConfig,
    VectorClassificationConfig,
)
from instructrec_jax.tasks.task_config import SubtaskConfig
from instructrec_jax.training.training_config import OptimizerConfig

SUBJECTS = "love war space crime music".split()
MIXED = {"classification": 1.0, "token_classification": 0.5, "regression": 0.1}  # tasks of "multitask", weights


def examples(kind: str, count: int = 32, seed: int = 0) -> list[Example]:
    """Ragged examples (1 to 20 words) with targets for a kind of task; those of `MIXED` in turn for "multitask"."""
    if kind == "multitask":
        return [examples(list(MIXED)[number % 3], count, seed)[number] for number in range(count)]
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        words = list(rng.choice("the a film book good bad dull bright about old new".split(), rng.integers(1, 20)))
        subject = str(rng.choice(SUBJECTS))
        text = " ".join([*words, subject])
        output: Any = {
            "classification": subject,
            "setfit": subject,
            "vector_classification": subject,
            "similarity": subject,
            "multilabel": tuple(sorted({subject, str(rng.choice(SUBJECTS))})),
            "regression": float(len(words)),
            "token_classification": tuple("subject" if w in SUBJECTS else "other" for w in text.split()),
            "masked_lm": None,
            "language_model": " ".join([*words[: len(words) // 2 : -1], subject]),
            "retrieval": f"item-{SUBJECTS.index(subject)}",
            "reranker": f"item-{SUBJECTS.index(subject)}",
            "language_model_ranking": f"item-{SUBJECTS.index(subject)}",
            "sequence": f"item-{SUBJECTS.index(subject)}",
            "generative": f"item-{SUBJECTS.index(subject)}",
            "choice": subject,
        }.get(kind, " ".join([*words[:3], subject]))  # of tasks that write, and of those that quote
        history: tuple[str, ...] = ()
        if kind in ("retrieval", "reranker", "language_model_ranking", "generative") and number % 3 == 0:
            history = (f"item-{(SUBJECTS.index(subject) + 1) % 5}",)
        if kind == "sequence":
            history = tuple(f"item-{i}" for i in 5 + rng.permutation(7)[: number % 8])
            text = f"a film about {subject}"  # few instructions, as there are few wordings
        more: dict[str, Any] = {}
        if kind in ("span", "extractive_summarization"):  # the answer stands in the text
            more = {"input": f"old book. {output}. " + "very new. " * (number % 3)}
        if kind == "dialogue":
            said = [Message("user", text), Message("assistant", "not good"), Message("user", "very dull")]
            more, text = {"messages": tuple(said)}, ""
        if kind == "preference":
            more = {"candidates": tuple(f"{other} dull" for other in SUBJECTS[: 1 + number % 3])}
        made.append(Example(instruction=text, output=output, history=history, id=f"e{number}", task=kind, **more))
    return made


def data_uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def task_config(kind: str, folder: Path, **settings: Any) -> Any:
    """The config of a task; `folder` receives a small catalogue if it needs one."""
    if kind in ("retrieval", "sequence", "reranker", "language_model_ranking", "generative"):
        items = list(range(12))
        texts = [f"a film about {SUBJECTS[i % 5]} " + "very " * i for i in items]
        folder.mkdir(exist_ok=True)
        pictured = settings.get("pictures") or settings.get("items", "text") != "text"
        images = [None if i % 3 == 2 else data_uri(png(i)) for i in items]
        facts = {"image": images} if pictured else {}
        Catalogue([f"item-{i}" for i in items], [f"title {i}" for i in items], texts, facts).save(folder)
        if kind == "sequence":
            small = {"hidden_size": 16, "history_limit": 8, "dropout": 0.1}
            return SequenceConfig(catalogue=str(folder), **(small | settings))
        if kind == "reranker":
            small = {"protocols": ["uni9"], "item_length": 16}
            return RerankerConfig(catalogue=str(folder), **(small | settings))
        if kind == "language_model_ranking":
            small = {"protocols": ["uni5"], "template": "plain"}
            return LanguageModelRankingConfig(catalogue=str(folder), **(small | settings))
        if kind == "generative":
            return GenerativeConfig(catalogue=str(folder), **settings)
        return RetrievalConfig(catalogue=str(folder), **settings)
    if kind == "multitask":
        return MultitaskConfig(
            [SubtaskConfig(name, task_config(name, folder), weight) for name, weight in MIXED.items()]
        )
    return {
        "classification": lambda: ClassificationConfig(labels=SUBJECTS),
        "setfit": lambda: SetFitConfig(labels=SUBJECTS),
        "vector_classification": lambda: VectorClassificationConfig(labels=SUBJECTS),
        "similarity": lambda: SimilarityConfig(**({"labels": SUBJECTS} | settings)),
        "contrastive": lambda: ContrastiveConfig(**settings),
        "multilabel": lambda: MultilabelConfig(labels=SUBJECTS),
        "regression": RegressionConfig,
        "token_classification": lambda: TokenClassificationConfig(labels=["other", "subject"]),
        "masked_lm": MaskedLMConfig,
        "language_model": lambda: LanguageModelConfig(template="plain", **settings),
        "choice": lambda: ChoiceConfig(**({"template": "plain", "labels": SUBJECTS} | settings)),
        "preference": lambda: PreferenceConfig(template="plain", **settings),
        "dialogue": lambda: DialogueConfig(template="plain", **settings),
        "question_answering": lambda: QuestionAnsweringConfig(template="plain", **settings),
        "summarization": lambda: SummarizationConfig(template="plain", **settings),
        "transcription": lambda: TranscriptionConfig(template="plain", **settings),
        "translation": lambda: TranslationConfig(template="plain", **settings),
        "image_tokenization": ImageTokenizationConfig,
        "text_to_image": lambda: TextToImageConfig(**settings),
        "span": lambda: SpanConfig(**({"stride": 4} | settings)),
        "extractive_summarization": ExtractiveSummarizationConfig,
        "position_translation": lambda: PositionTranslationConfig(vocabulary=list("abcdeghilnorsuvwy "), **settings),
    }[kind]()


class Setup:
    """A task, its model and a compiled training step on some of the eight devices."""

    def __init__(
        self,
        kind: str,
        checkpoint: Path,
        folder: Path,
        *,
        mesh: tuple[int, ...] = (1, 1, 1),
        accumulation: int = 1,
        optimizer: OptimizerConfig | None = None,
        freeze: list[str] | None = None,
        train_last: int | None = None,
        lora: LoraConfig | None = None,
        layer_decay: float = 1.0,
        remat: Any = "none",
        quantize: Any = "none",
        **settings: Any,
    ):
        self.config = Config(
            steps=10,
            accumulation=accumulation,
            backbone=BackboneConfig(
                str(checkpoint),
                freeze=freeze or [],
                train_last=train_last,
                quantize=quantize,
                dtype="float32",
                remat=remat,
            ),
            lora=lora or LoraConfig(),
            task=task_config(kind, folder / "catalogue", **settings),
            data=DataConfig(batch_size=32, max_length=128 if kind.startswith("language_model") else 64),
            optimizer=optimizer or OptimizerConfig(learning_rate=1e-3, warmup=0.0, schedule="constant"),
        )
        devices = jax.devices()[: int(np.prod(mesh))]
        self.mesh = make_mesh(MeshConfig(*mesh), devices)
        self.task = models.open_task(self.config, checkpoint)
        self.encoded = self.task.encode(examples(kind))
        self.task.prepare(self.encoded)
        self.row_multiple = data_shards(self.mesh) * accumulation
        self.buckets, self.target_buckets = run_data.buckets(self.config), run_data.target_buckets(self.task)
        self.config.optimizer.layer_decay = layer_decay
        buffers: dict[str, Any] = {}
        if kind == "sequence":
            rng = np.random.default_rng(0)
            shapes = self.task.buffer_shapes(32)
            buffers = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        elif getattr(self.config.task, "softmax", "") == "full":
            rng = np.random.default_rng(0)
            vectors = rng.normal(size=(12, 32)).astype(np.float32)
            buffers = {"item_vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}
        setup = TrainingSetup.load(self.config, self.task, checkpoint, self.mesh, buffers)
        self.model, self.state, self.shardings, self.step = setup.model, setup.state, setup.shardings, setup.step

    def parts(self) -> Any:
        return self.task.gather(self.encoded, np.random.default_rng(0))

    def batch(self) -> Any:
        return pack(self.parts(), self.buckets, self.row_multiple, target_buckets=self.target_buckets).batch


def by_text(parts: BatchTexts, name: str) -> list[np.ndarray]:
    """The task's array `name`, which lies along the tokens, for each text."""
    lengths, target_lengths = lengths_of(parts.texts)
    return split_tokens(getattr(parts.own, name), lengths if target_lengths is None else target_lengths)


def run_steps(setup: Setup, batches: list[Any]) -> tuple[list[float], Any]:
    """(loss after each step, final parameters on the host); the setup's state is used up."""
    from instructrec_jax.data.loader import to_devices

    losses, state = [], setup.state
    for batch in batches:
        state, sums = setup.step(state, to_devices(batch, setup.mesh))
        losses.append(float(sums["loss"] / sums["weight"]))
    setup.state = state
    return losses, jax.device_get(state.params)


def assert_close(actual: Any, expected: Any, atol: float) -> None:
    """Two nested dicts of arrays agree; the error names the parameter."""
    flat, _ = jax.tree_util.tree_flatten_with_path(actual)
    for (path, a), e in zip(flat, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))


def mutations(value: Any, count: int, draw: random.Random) -> Iterator[Any]:
    """Damaged copies of a JSON value: at a random place something of another type, another number, or nothing."""
    junk = (None, True, -1, 3.5, 10**30, 1e308, "", "x", [], [1], {}, {"a": None}, [[None]], "\ud800")

    def places(node: Any) -> list[tuple[Any, Any]]:
        if not isinstance(node, dict | list):
            return []
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]

    while count:
        mutant = copy.deepcopy(value)
        node, key = draw.choice(places(mutant))
        if draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(junk)
        if json.dumps(mutant) != json.dumps(value):
            count -= 1
            yield mutant
