"""Examples of pictures, encoded: alone, each is a token; between words, its V tokens, which are not trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from tiny_pictures import png

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.batch import images_of, lay_out, lengths_of
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import BadExample, Example, Message
from instructrec_jax.data.media.picture import picture
from instructrec_jax.data.packing import unpacked
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import load_model, open_task
from instructrec_jax.tasks import ChoiceConfig, ClassificationConfig, LanguageModelConfig
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.tasks.encoded_store import encode_stored, token_key
from instructrec_jax.tasks.encoding import encode_usable


def opened(folder: Path, **settings: Any) -> Any:
    data = DataConfig(**({"max_length": 8} | settings))
    config = Config(backbone=BackboneConfig(str(folder)), task=ClassificationConfig(labels=["cat", "dog"]), data=data)
    return open_task(config, folder)


def example(*data: bytes, **fields: Any) -> Example:
    return Example(**({"instruction": "", "output": "cat"} | fields), images=tuple(map(picture, data)))


def test_a_picture_is_a_token(image_networks: dict[str, Path]) -> None:
    encoded = opened(image_networks["vit"]).encode([example(png(0)), example(png(1), png(2), output="dog")])
    assert [len(e.text.tokens) for e in encoded] == [1, 2]
    assert [e.text.images.places.tolist() for e in encoded] == [[0], [0, 1]]
    assert [e.target.label for e in encoded] == [0, 1]


BAD = [
    (example(), "it has no picture"),
    (example(png(0), instruction="what is it?"), "has the words 'what is it\\?'"),
    (example(*map(png, range(9))), "it has 9 pictures, but data.max_length is 8"),
    (example(png(0)[:99]), "cannot be read as a picture"),
    (example(png(0, mode="I;16")), "mode I;16"),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_an_unusable_picture_is_named_or_skipped(bad: Example, said: str, image_networks: dict[str, Path]) -> None:
    task, good = opened(image_networks["vit"]), example(png(0))
    placed = [
        Example(**{**{n: getattr(e, n) for n in ("instruction", "output", "images")}, "where": f"line {number}"})
        for number, e in enumerate([good, bad, good])
    ]
    with pytest.raises(BadExample, match=f"line 1: .*{said}"):
        encode_usable(task, placed, "error")
    encoded, skipped = encode_usable(task, placed, "skip")
    assert len(encoded) == 2 and [row.where for row in skipped] == ["line 1"]


def test_a_task_on_words_refuses_pictures(checkpoint: Path) -> None:
    task = opened(checkpoint, max_length=32)
    with pytest.raises(ValueError, match=r"this task does not read image.*fields.ignore to \[image\]"):
        encode_usable(task, [example(png(0), instruction="a film")], "error")


def test_a_task_without_images_refuses_a_network_of_images(image_networks: dict[str, Path]) -> None:
    config = Config(backbone=BackboneConfig(str(image_networks["vit"])), task=LanguageModelConfig())
    with pytest.raises(ValueError, match="holds a network of images"):
        open_task(config, image_networks["vit"])


def test_a_store_holds_references_and_gives_the_same_texts(image_networks: dict[str, Path], tmp_path: Path) -> None:
    task = opened(image_networks["vit"])
    examples = [example(png(number), png(number + 1)) for number in range(4)]

    class Source:
        fingerprint = "x"

        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> Example:
            return examples[index]

        def digest(self, index: int) -> bytes:
            return bytes(32)

    key = token_key(task, {}, "x", np.arange(4), "error")
    encoded = encode_stored(task, Source(), np.arange(4), "error", folder=tmp_path, key=key)
    assert encoded.image_counts is not None and encoded.image_counts.tolist() == [2] * 4
    for stored, plain in zip(encoded, task.encode(examples), strict=True):
        assert list(stored.text.images.pictures) == list(plain.text.images.pictures)
        assert np.array_equal(stored.text.images.places, plain.text.images.places)
        assert stored.text.images.read is task.context.pixels
    assert key != token_key(opened(image_networks["clip"]), {}, "x", np.arange(4), "error")


# ---------------------------------------------------------------- between words

V = 9  # tokens of a picture


def writer(folder: Path, task: Any = None, **settings: Any) -> Any:
    """(task, config) of a language model that reads pictures."""
    data = DataConfig(**({"max_length": 64} | settings))
    config = Config(
        backbone=BackboneConfig(str(folder), dtype="float32"),
        task=task or LanguageModelConfig(template="plain"),
        data=data,
    )
    return open_task(config, folder), config


ASKED = [
    Example(instruction="a film", output="good", images=(picture(png(0)),)),
    Example(instruction="the <image> and <image> book", output="bad", images=(picture(png(1)), picture(png(2)))),
    Example(
        instruction="",
        messages=(Message("user", "a book"), Message("assistant", "good"), Message("user", "and a film")),
        output="bad",
        images=(picture(png(3)),),
    ),
    Example(instruction="a book", output="good"),
]


@pytest.mark.parametrize("kind", ["llava", "paligemma", "gemma3"])
def test_pictures_stand_between_words_and_are_not_trained_on(kind: str, seeing: dict[str, Path]) -> None:
    task, _ = writer(seeing[kind])
    how = task.context.image_tokens
    for e, example in zip(task.encode(ASKED), ASKED, strict=True):
        here = e.text.tokens == how.token_id
        assert here.sum() == V * len(example.images)
        assert not e.target.supervised[:-1][here[1:]].any() and e.target.supervised.any()
        said = task.tokenizer.decode(e.text.tokens[1:][e.target.supervised[:-1] > 0])
        assert said.replace(" ##", "").split()[-2] == example.output
        if example.images:
            np.testing.assert_array_equal(e.text.images.places[here], np.arange(V * len(example.images)))
        else:
            assert e.text.images is None
        # the prompt of an answer is the beginning of the text that is trained on
        (asked,) = task.asked([e])
        np.testing.assert_array_equal(asked.tokens, e.text.tokens[: len(asked.tokens)])
    everything, _ = writer(seeing["llava"], LanguageModelConfig(template="plain", train_on="all"))
    (e,) = everything.encode(ASKED[:1])
    here = e.text.tokens == everything.context.image_tokens.token_id
    np.testing.assert_array_equal(e.target.supervised[:-1] > 0, ~here[1:])


def losses(folder: Path, examples: list[Example], task: Any = None) -> tuple[Any, Any, list[float]]:
    """(task, encoded, mean loss of each example alone)."""
    made, config = writer(folder, task)
    model = load_model(config, made, folder, make_mesh(MeshConfig(), jax.devices()[:1]))
    encoded, found = made.encode(examples), []
    for e in encoded:
        texts = made.gather([e], np.random.default_rng(0))
        lengths, targets = lengths_of(texts.texts)
        total, weight = made.loss(model.network, lay_out(texts, unpacked(lengths, 64, 1, targets)), LossInputs(None))
        found.append(float(total) / float(weight))
    return made, encoded, found


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_the_loss_is_that_of_transformers(kind: str, seeing: dict[str, Path]) -> None:
    made, encoded, found = losses(seeing[kind], ASKED)
    name = {"llava": "Llava", "gemma3": "Gemma3"}[kind]
    network = getattr(transformers, f"{name}ForConditionalGeneration").from_pretrained(seeing[kind]).eval()
    for e, loss in zip(encoded, found, strict=True):
        more = {}
        if e.text.images is not None:
            row = images_of(e.text, made.context.pixels.shape)
            more["pixel_values"] = torch.tensor(row.pixels[0]).permute(0, 3, 1, 2)
        tokens = torch.tensor(e.text.tokens[None]).long()
        if kind == "gemma3":
            more["token_type_ids"] = (tokens == made.context.image_tokens.token_id).long()
        with torch.no_grad():
            said = torch.log_softmax(network(input_ids=tokens, **more).logits[0].double(), -1).numpy()
        at = np.flatnonzero(e.target.supervised)
        assert loss == pytest.approx(-said[at, e.target.labels[at]].mean(), abs=2e-5)


def test_options_are_as_likely_as_the_loss_says(seeing: dict[str, Path]) -> None:
    """The prompt with its pictures is read once for all options."""
    examples = [replace(e, candidates=("good", "bad")) for e in ASKED[:2]]
    task = ChoiceConfig(template="plain")
    made, config = writer(seeing["llava"], task)
    model = load_model(config, made, seeing["llava"], make_mesh(MeshConfig(), jax.devices()[:1]))
    predict = predictor(made, model.graphdef, make_mesh(MeshConfig(), jax.devices()[:1]), (32, 64))(model.params)
    asked = [[(replace(e, output=None), list(e.candidates))] for e in examples]
    found = made.log_likelihoods(predict, asked, end=True)
    for place, option in enumerate(("good", "bad")):
        said = losses(seeing["llava"], [replace(e, output=option) for e in examples], task)[2]
        assert said == pytest.approx([-each[0][place, 0] / each[0][place, 1] for each in found], abs=2e-5)


def test_pictures_are_never_cut(seeing: dict[str, Path]) -> None:
    long = Example(instruction="a film " * 10, output="good", images=(picture(png(0)),))
    (length,) = (len(e.text.tokens) for e in writer(seeing["llava"])[0].encode([long]))
    with pytest.raises(ValueError, match="would cut into its images"):
        writer(seeing["llava"], max_length=length - 3, truncate="left")[0].encode([long])
    assert writer(seeing["llava"], max_length=length - 3, truncate="drop")[0].encode([long]) == []
    behind = replace(long, instruction=long.instruction + "<image>")
    (e,) = writer(seeing["llava"], max_length=length - 3, truncate="left")[0].encode([behind])
    assert len(e.text.tokens) == length - 3 and (e.text.images.places >= 0).sum() == V


WRONG = [
    (Example(instruction="the <image>", output="good"), "has 1 × <image>, but 0 images"),
    (Example(instruction="<image> <image>", output="good", images=ASKED[0].images), "has 2 × <image>, but 1 images"),
    (Example(instruction="a film", output="the <image>", images=ASKED[0].images), "stand for 2 images"),
    (Example(instruction="a film", output="good", images=(picture(png(0)[:99]),)), "cannot be read as a picture"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_cannot_stand_between_words_is_named(wrong: Example, said: str, seeing: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=f"^example 0.*{said}"):
        writer(seeing["llava"])[0].encode([wrong])
