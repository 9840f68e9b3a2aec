"""Items with pictures in `sequence` and `retrieval`: what a picture adds, and that a missing one costs nothing."""

import base64
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, Setup, run_steps, task_config
from tiny_pictures import png

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.media.picture import picture
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.ranking.item_pictures import PictureNetwork
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.base import LossInputs, TaskContext

ITEMS = 12
WITHOUT = [2, 5, 8, 11]  # items of `task_config` without a picture


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def with_images(folder: Path, images: list[str | None]) -> None:
    """Writes the column `image` into a catalogue."""
    old = Catalogue.load(folder)
    Catalogue(old.ids, old.titles, old.texts, {"image": images}).save(folder)


# ---------------------------------------------------------------- sequence


def test_without_any_picture_all_is_as_before_bit_by_bit(
    checkpoint: Path, image_networks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Trained parameters, losses and scores, with a column in which no item has a picture."""
    monkeypatch.setattr("helpers.data_uri", lambda file: None)
    found = []
    for changes in ({}, {"pictures": str(image_networks["vit"])}):
        setup: Any = Setup("sequence", checkpoint, tmp_path, **changes)
        losses, params = run_steps(setup, [setup.batch()] * 3)
        setup.model.params = {**params, **jax.device_get(setup.state.frozen)}
        scores = setup.task.score_items(predicted(setup), setup.encoded[:8])(slice(0, 8))
        found.append((losses, params["head"], scores))
    (losses, plain, scores), (seeing_losses, seeing, seeing_scores) = found
    assert losses == seeing_losses and losses[2] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, seeing, plain)
    assert "no item of" in caplog.text
    np.testing.assert_array_equal(scores, seeing_scores)


def predicted(setup: Any) -> Any:
    return predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)


def one_device() -> Any:
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.mark.parametrize("settings", [{}, {"ids": False}, {"text": False}], ids=["all", "no ids", "no text"])
def test_an_items_vector_is_the_sum_of_what_it_has(
    settings: dict[str, Any], checkpoint: Path, image_networks: dict[str, Path], tmp_path: Path
) -> None:
    setup = Setup("sequence", checkpoint, tmp_path, pictures=str(image_networks["clip"]), **settings)
    task: Any = setup.task
    head = setup.model.network.head
    predict = predicted(setup)
    found = task.item_vectors(predict)

    own = [number for number in range(ITEMS) if number not in WITHOUT]
    read = PictureNetwork(str(image_networks["clip"]))
    raw = read([picture(png(number)) for number in own], ["x"] * len(own)).astype(np.float64)
    pictures = np.zeros((ITEMS, raw.shape[1]))
    pictures[own] = (raw - raw.mean(0)) / raw.std()
    expected = pictures @ np.asarray(head.picture_projection.kernel[...], np.float64) / 4
    if task.config.text:
        texts = np.asarray(task.text_vectors(predict), np.float64)
        expected = expected + texts @ np.asarray(head.item_projection.kernel[...], np.float64) / 4
    if task.config.ids:
        expected = expected + np.asarray(head.items.table[...], np.float64)
    np.testing.assert_allclose(found[:, :-1], expected, atol=2e-5)
    refreshed = {} if task.config.text and not task._instructions else task.refresh(predict)
    np.testing.assert_allclose(refreshed["item_pictures"], pictures, atol=2e-5)


def test_training_learns_from_pictures(checkpoint: Path, image_networks: dict[str, Path], tmp_path: Path) -> None:
    setup = Setup("sequence", checkpoint, tmp_path, pictures=str(image_networks["vit"]))
    before = jax.device_get(setup.state.params["head"]["picture_projection"]["kernel"])
    losses, params = run_steps(setup, [setup.batch()] * 4)
    assert losses[-1] < losses[0]
    assert np.abs(params["head"]["picture_projection"]["kernel"] - before).max() > 1e-4


def test_an_item_with_nothing_is_named(context: TaskContext, image_networks: dict[str, Path], tmp_path: Path) -> None:
    network = str(image_networks["vit"])
    with pytest.raises(ValueError, match="'item-2' has no picture.*task.text"):
        task_config("sequence", tmp_path / "c", pictures=network, text=False, ids=False).build(context)
    task_config("sequence", tmp_path / "c", pictures=network, text=False).build(context)  # it has a vector of its own


def test_a_catalogue_without_pictures_is_refused(
    context: TaskContext, image_networks: dict[str, Path], tmp_path: Path
) -> None:
    config = task_config("sequence", tmp_path / "c", pictures=str(image_networks["vit"]))
    task_config("sequence", tmp_path / "c")  # written again, without the column
    with pytest.raises(ValueError, match="no column 'image'"):
        config.build(context)


# ---------------------------------------------------------------- items that training never saw


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_items_of_no_example_are_in_no_softmax(softmax: Any, checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup(
        "sequence", checkpoint, tmp_path, softmax=softmax, cold_items="left_out", negatives=500, seen_items="negatives"
    )
    task: Any = setup.task
    encoded = [e for e in setup.encoded if not {0, 7, 9} & {*e.target.items.tolist(), *e.target.history.tolist()}]
    task.prepare(encoded)
    graphdef = setup.model.graphdef
    parts = task.gather(encoded, np.random.default_rng(0))
    if softmax == "sampled":
        trained = {n for e in encoded for n in (*e.target.items, *e.target.history)}
        assert set(parts.own.sample.items.tolist()) == trained and len(trained) <= 9
        np.testing.assert_allclose(parts.own.sample.log_expected, np.log(500 / len(trained)), rtol=1e-5)
        return
    predict = predictor(task, graphdef, setup.mesh, setup.buckets)(setup.model.params)
    buffers = task.refresh(predict)
    batch = pack(parts, setup.buckets, 1).batch

    def loss(params: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs(buffers=buffers))[0]

    total, gradient = jax.value_and_grad(loss)(setup.model.params)
    never = np.flatnonzero(buffers["left_out"])
    assert {0, 7, 9} <= set(never.tolist())
    assert not np.asarray(gradient["head"]["bias"])[never].any()
    assert not np.asarray(gradient["head"]["items"]["table"])[never].any()
    head = setup.model.network.head
    table, bias = (np.asarray(x, np.float64) for x in head.item_vectors(buffers["item_texts"]))
    queries = np.asarray(head(*batch.texts, buffers["item_texts"], buffers["instruction_texts"]), np.float64)
    scores = queries @ table.T + bias
    scores[..., never] = -np.inf
    top = scores.max(-1)
    partition = np.log(np.exp(scores - top[..., None]).sum(-1)) + top
    own = np.take_along_axis(scores, np.asarray(batch.own.labels)[..., None], -1)[..., 0]
    counts = np.asarray(batch.own.supervised) != 0
    assert float(total) == pytest.approx(float((partition - own)[counts].sum()), rel=1e-5)


def test_a_stream_cannot_leave_items_out(context: TaskContext, tmp_path: Path) -> None:
    task = task_config("sequence", tmp_path / "c", text=False, cold_items="left_out").build(context)
    with pytest.raises(ValueError, match="task.cold_items.*streaming: false"):
        task.refresh(None)


# ---------------------------------------------------------------- retrieval


@pytest.fixture(params=["clip pair", "siglip pair"])
def pair(request: Any, pair_networks: dict[str, Path]) -> Path:
    return pair_networks[request.param]


def pair_setup(pair: Path, folder: Path, **settings: Any) -> Any:
    """A retrieval task on a pair: the lengths that SigLIP reads are those of its padded captions."""
    config = Config(
        backbone=BackboneConfig(str(pair), dtype="float32"),
        task=task_config("retrieval", folder / "catalogue", **settings),
        data=DataConfig(batch_size=8, max_length=128),
    )
    task: Any = models.open_task(config, pair)
    model = models.load_model(config, task, pair, one_device())
    return task, model, predictor(task, model.graphdef, one_device(), run_data.buckets(config))(model.params)


def test_an_items_vector_is_the_mean_of_its_text_and_picture(pair: Path, tmp_path: Path) -> None:
    task, model, predict = pair_setup(pair, tmp_path, items="both")
    found = task.item_vectors(predict)
    assert found.shape == (ITEMS, task.size)
    backbone = model.network.backbone
    read = task.context.pixels
    for number in range(ITEMS):
        (text,) = task._captions.tokens([task.catalogue.texts[number]], ["x"])
        tokens = text.tokens[None]
        places = np.arange(tokens.shape[1], dtype=np.int32)[None]
        expected = np.asarray(backbone.embed_texts(tokens, np.ones_like(tokens), places), np.float64)[0]
        expected /= np.linalg.norm(expected)
        if number not in WITHOUT:
            image = np.asarray(backbone.embed_images(read(picture(png(number)))[None]), np.float64)[0]
            expected = expected + image / np.linalg.norm(image)
        np.testing.assert_allclose(found[number], expected / np.linalg.norm(expected), atol=1e-5)


def test_pictures_alone_need_one_for_each_item(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'item-2' has no picture.*task.items to both"):
        pair_setup(pair, tmp_path, items="picture")


def test_settings_of_retrieval_that_cannot_be(pair: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name, value in (("projection", 8), ("pooling", "mean")):
        with pytest.raises(ValueError, match=f"task.{name} is set"):
            pair_setup(pair, tmp_path, items="both", **{name: value})
    with pytest.raises(ValueError, match="needs an image network and a text network"):
        Setup("retrieval", checkpoint, tmp_path, items="both")


def test_a_broken_picture_names_its_item_before_training(pair: Path, tmp_path: Path) -> None:
    task, *_ = pair_setup(pair, tmp_path, items="both")
    broken = f"data:image/png;base64,{base64.b64encode(png(1)[:60]).decode()}"
    with_images(tmp_path / "catalogue", [broken] + [None] * (ITEMS - 1))
    task = type(task)(task.config, task.context)
    asked = [Example(instruction=f"a film about {SUBJECTS[0]}", output="item-1")]
    with pytest.raises(ValueError, match="item 'item-0'.*cannot be read as a picture"):
        task.prepare(task.encode(asked))
