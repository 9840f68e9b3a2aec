"""Images and captions: vectors and losses are those of transformers, recall that of brute force."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import task_cases
import torch
import transformers
from helpers import SUBJECTS
from task_cases import Built, after_one_step, built, packed
from tiny_pictures import png

from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import picture
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs import model as models
from instructrec_jax.tasks import ContrastiveConfig
from instructrec_jax.tasks.prediction import Predict

CAPTIONS = ["a film", "the bright new book about love", "old war", "good music", "a dull space"]
KINDS = ("clip", "siglip")


def pairs(captions: list[str], pictures: list[int] | None = None, **more: Any) -> list[Example]:
    numbers = pictures or list(range(len(captions)))
    return [
        Example(instruction="", output=said, images=(picture(png(n)),), id=f"e{place}", **more)
        for place, (said, n) in enumerate(zip(captions, numbers, strict=True))
    ]


networks = task_cases.networks  # a fixture


@pytest.fixture
def make(networks: Any) -> Callable[..., Built]:
    def made(kind: str, examples: list[Example], **settings: Any) -> Built:
        config = ContrastiveConfig(**settings)
        return built(config, examples, f"{kind} pair", networks, dropout=False, lora=False)

    return made


def predict_of(made: Built) -> Predict:
    return predictor(made.task, made.model.graphdef, made.mesh, (32, 64, 128))(made.model.params)


def theirs(made: Built, kind: str, pictures: int) -> Any:
    """The output of transformers for `CAPTIONS`, as its processor pads them, and the first pictures."""
    folder = made.config.backbone.path
    model = transformers.AutoModel.from_pretrained(folder).eval().double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    how = dict(padding="max_length", max_length=127) if kind == "siglip" else dict(padding=True)
    texts = tokenizer(CAPTIONS, return_tensors="pt", **how)
    read = made.task.context.pixels
    pixels = np.stack([read(picture(png(n))) for n in range(pictures)])
    ids = {"input_ids": texts["input_ids"]}  # SigLIP sees its padding
    if kind == "clip":
        ids["attention_mask"] = texts["attention_mask"]
    with torch.no_grad():
        return model(**ids, pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2).double(), return_loss=True)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_loss_are_those_of_transformers(kind: str, make: Callable[..., Built]) -> None:
    """Of packed rows, and of captions and images alone."""
    made = make(kind, pairs(CAPTIONS))
    expected = theirs(made, kind, len(CAPTIONS))
    outputs = np.stack(predict_of(made)([e.text for e in made.encoded])).astype(np.float64)
    bias = 0.0 if kind == "clip" else float(made.model.network.backbone.logit_bias[...][0])
    logits = outputs[:, 0] @ outputs[:, 1].T + bias
    np.testing.assert_allclose(logits, expected.logits_per_text.numpy(), atol=1e-4)
    alone = made.task.caption_vectors(predict_of(made), CAPTIONS)
    np.testing.assert_allclose(alone, outputs[:, 0], atol=1e-5)
    texts = made.task.gather(made.encoded, np.random.default_rng(0))
    total, weight, _ = after_one_step(made, packed(made, texts))
    assert weight == len(CAPTIONS)
    assert total / weight == pytest.approx(float(expected.loss), abs=1e-4)


@pytest.mark.parametrize(("kind", "loss"), [("clip", "softmax"), ("clip", "sigmoid"), ("siglip", "softmax")])
def test_equal_captions_and_equal_images_are_no_negatives(kind: str, loss: str, make: Callable[..., Built]) -> None:
    captions, pictures = ["a film", "old war", "a film", "good music"], [0, 1, 2, 1]
    made = make(kind, pairs(captions, pictures), loss=loss)
    texts = made.task.gather(made.encoded, np.random.default_rng(0))
    total, _, _ = after_one_step(made, packed(made, texts))
    network = made.model.network
    outputs = np.stack(predict_of(made)([e.text for e in made.encoded])).astype(np.float64)
    bias = 0.0 if network.head.bias is None else float(network.head.bias[...])
    if network.backbone.logit_bias is not None:
        bias += float(network.backbone.logit_bias[...][0])
    z = outputs[:, 0] @ outputs[:, 1].T + bias
    expected = 0.0
    for i in range(4):
        rivals = [j for j in range(4) if j != i and captions[i] != captions[j] and pictures[i] != pictures[j]]
        if loss == "softmax":
            for row in (z[i], z[:, i]):
                expected += (np.log(np.exp(row[[i, *rivals]]).sum()) - row[i]) / 2
        else:
            expected += np.log1p(np.exp(-z[i, i])) + sum(np.log1p(np.exp(z[i, j])) for j in rivals)
    assert total == pytest.approx(expected, rel=1e-4)


def test_recall_is_that_of_brute_force(make: Callable[..., Built]) -> None:
    """With two captions of a picture, and a caption of two pictures."""
    captions = [*CAPTIONS, "a film", "the end"]
    pictures = [0, 1, 2, 3, 4, 5, 1]
    made = make("clip", pairs(captions, pictures))
    predict = predict_of(made)
    scores = made.task.score(predict, made.encoded)
    outputs = np.stack(predict([e.text for e in made.encoded])).astype(np.float64)
    known, seen = sorted(set(captions)), sorted(set(pictures))
    texts = np.stack([outputs[captions.index(each), 0] for each in known])
    images = np.stack([outputs[pictures.index(each), 1] for each in seen])
    z = images @ texts.T
    for k in (1, 5):
        by_picture, by_caption = [], []
        for said, shown in zip(captions, pictures, strict=True):
            best = {known[j] for j in np.argsort(-z[seen.index(shown)])[:k]}
            by_picture.append(bool(best & {c for c, p in zip(captions, pictures, strict=True) if p == shown}))
            best_pictures = {seen[j] for j in np.argsort(-z[:, known.index(said)])[:k]}
            by_caption.append(bool(best_pictures & {p for c, p in zip(captions, pictures, strict=True) if c == said}))
        assert scores.metrics[f"caption@{k}"] == pytest.approx(np.mean(by_picture))
        assert scores.metrics[f"image@{k}"] == pytest.approx(np.mean(by_caption))
    chance = made.task.baselines(made.encoded, made.encoded)["chance"].metrics
    assert chance["image@1"] == pytest.approx((5 * 1 / 6 + 2 * 2 / 6) / 7)
    assert [r["prediction"] for r in scores.predictions][0] == known[int(z[0].argmax())]
    owners = scores.owners["caption@1"].tolist()
    assert [owners.index(each) for each in owners] == [0, 1, 2, 3, 4, 5, 1]  # cases of one picture have one owner


def test_labels_are_the_mean_of_their_templates(make: Callable[..., Built]) -> None:
    templates = ["a film about {label}", "the {label} book", "{label}"]
    made = make("clip", pairs(SUBJECTS), labels=SUBJECTS, templates=templates)
    predict = predict_of(made)
    found = made.task.caption_vectors(predict, SUBJECTS)
    plain = make("clip", pairs(CAPTIONS)).task
    for name, vector in zip(SUBJECTS, found, strict=True):
        each = plain.caption_vectors(predict, [t.replace("{label}", name) for t in templates])
        unit = each / np.linalg.norm(each, axis=1, keepdims=True)
        mean = unit.mean(0) / np.linalg.norm(unit.mean(0))
        np.testing.assert_allclose(vector / np.linalg.norm(vector), mean, atol=1e-6)
    scores = made.task.score(predict, made.encoded)
    assert {"accuracy", "macro_f1"} <= set(scores.metrics)
    answered = made.task.answers(predict, made.encoded)
    assert [a.choice for a in answered] == [r["prediction"] for r in scores.predictions]
    chance = made.task.baselines(made.encoded, made.encoded)["chance"].metrics
    assert chance["accuracy"] == pytest.approx(0.2)


def test_both_networks_learn(make: Callable[..., Built]) -> None:
    made = make("clip", pairs(CAPTIONS))
    texts = made.task.gather(made.encoded, np.random.default_rng(0))
    before = jax.device_get(made.model.params["backbone"])
    _, _, after = after_one_step(made, packed(made, texts))
    for part in ("text", "vision", "text_projection", "image_projection"):
        moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), before[part], after["backbone"][part])
        assert all(jax.tree.leaves({k: v for k, v in moved.items() if k != "word_embeddings"})), part
    assert before["log_factor"] != after["backbone"]["log_factor"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=()), "has 0 images"),
        (dict(images=(picture(png(0)), picture(png(1)))), "has 2 images"),
        (dict(instruction="a cat"), "words 'a cat' beside its image"),
        (dict(output=None), r"caption \(fields.output\) is None"),
        (dict(output=("a", "b")), "should be one text"),
        (dict(candidates=("x", "y")), "'old war' is not one of its candidates"),
        (dict(output="a [SEP] b"), "once, at its end"),
    ],
)
def test_what_is_no_pair_is_named(change: dict[str, Any], message: str, make: Callable[..., Built]) -> None:
    made = make("clip", [])
    with pytest.raises(ValueError, match=message):
        made.task.encode([replace(pairs(["old war"])[0], **change)])


def test_settings_are_checked(make: Callable[..., Built], pair_networks: dict[str, Path], checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="two different label names"):
        make("clip", [], labels=["a"])
    with pytest.raises(ValueError, match="{label} in them"):
        make("clip", [], templates=["a photo"])
    made = make("siglip", [])
    for length in (127, 64):
        config = replace(made.config, data=replace(made.config.data, max_length=length))
        with pytest.raises(ValueError, match="padded to 127 tokens.*set it to 128"):
            models.open_task(config, pair_networks["siglip pair"])
    with pytest.raises(ValueError, match="needs an image network and a text network"):
        models.open_task(made.config, checkpoint)
    for change in (
        dict(backbone=replace(made.config.backbone, train_last=1)),
        dict(optimizer=replace(made.config.optimizer, layer_decay=0.9)),
    ):
        with pytest.raises(ValueError, match="counts the layers of one network"):
            models.open_task(replace(made.config, **change), pair_networks["siglip pair"])
    with pytest.raises(ValueError, match="no captions to choose from"):
        made.task.unanswered(pairs(["old war"])[0])
    mixed = [*pairs(["old war"]), *pairs(["old war"], candidates=("old war", "x"))]
    with pytest.raises(ValueError, match="evaluate them as two sources"):
        made.task.check(made.task.encode(mixed))


def test_a_long_caption_leaves_room_for_its_image(make: Callable[..., Built], pair_networks: dict[str, Path]) -> None:
    made = make("clip", [])
    config = replace(made.config, data=replace(made.config.data, max_length=8, truncate="right"))
    task: Any = models.open_task(config, pair_networks["clip pair"])
    (encoded,) = task.encode(pairs(["the bright new book about love and war and music"]))
    assert len(encoded.text.tokens) == 8 and encoded.text.images.places.tolist() == [-1] * 7 + [0]
    assert encoded.text.tokens[-2] == task.spec.end_id and task.context.counts == {"texts cut": 1}
