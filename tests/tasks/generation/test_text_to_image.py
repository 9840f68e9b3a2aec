"""Text to image: what is learned, which prompts are blank, what the judge finds, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from helpers import examples
from task_cases import drawn
from tiny_pictures import png

from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.media.picture import picture, picture_of
from instructrec_jax.data.packing import fit, unpacked
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import load_model, open_task
from instructrec_jax.tasks import MultitaskConfig, TextToImageConfig
from instructrec_jax.tasks.task_config import SubtaskConfig
from instructrec_jax.training.step import batch_dropout_keys

MADE = [drawn(e, n) for n, e in enumerate(examples("text_to_image", 12))]


def opened(folder: Path, **settings: Any) -> Any:
    return open_task(Config(task=TextToImageConfig(**settings), data=DataConfig(max_length=96)), folder)


@pytest.mark.parametrize("kind", ["draw llama", "draw t5"])
def test_the_answer_is_the_images_codes_and_an_end(kind: str, drawing: dict[str, Path]) -> None:
    task = opened(drawing[kind])
    encoded = task.encode(MADE)
    codes = task.codec.codes([e.images[0] for e in MADE])
    for e, example, own in zip(encoded, MADE, codes, strict=True):
        assert e.example == example
        supervised = e.target.labels[e.target.supervised > 0]
        assert supervised.tolist() == [*(task.first_code + own), task.tokenizer.eos_token_id]
        assert task.codes_in(task.written(own)) == own.tolist()
    prompts = [text.tokens for text in task.asked(encoded)]
    assert prompts[0].tolist() == task.tokenizer(MADE[0].instruction)["input_ids"] + (
        task.tokenizer("\n")["input_ids"] if kind == "draw llama" else []
    )
    assert set(range(task.first_code, task.first_code + 16)).isdisjoint(task.suppressed)
    assert len(task.suppressed) == task.context.vocab_size - 16


@pytest.mark.parametrize("kind", ["draw llama", "draw t5"])
def test_blank_prompts_depend_on_seed_and_example_alone(kind: str, drawing: dict[str, Path]) -> None:
    """About the given share of them; codes stay; packed as unpacked; another step chooses others."""
    task = opened(drawing[kind], blank_prompts=0.4)
    many = task.encode([replace(MADE[n % 12], id=str(n)) for n in range(200)])
    texts = task.gather(many, np.random.default_rng(0))
    lengths, targets = lengths_of(texts.texts)
    plans = [unpacked(lengths, 96, 1, None if targets is None else 32)]
    plans.append(fit(lengths, 96, targets, None if targets is None else 64))
    found = []
    for plan in plans:
        batch = lay_out(texts, plan)
        blanked = task.blanked(batch, batch_dropout_keys(jnp.uint32(5), batch))
        before, after = np.asarray(batch.texts.tokens), np.asarray(blanked.texts.tokens)
        segments, numbers = batch.texts.segment_ids, batch.text_numbers
        own: dict[int, bool] = {}
        for row, segment in zip(*np.nonzero(numbers >= 0), strict=True):
            inside = (row, segments[row] == segment + 1)
            if not inside[1].any():
                continue
            words = before[inside] < task.first_code
            own[int(numbers[row, segment])] = is_blank = bool((after[inside][words] == task.blank).all())
            assert is_blank or (after[inside] == before[inside]).all()
            assert (after[inside][~words] == before[inside][~words]).all()
        assert (after[segments == 0] == before[segments == 0]).all()
        found.append(own)
    assert found[0] == found[1] and len(found[0]) == 200
    assert sum(found[0].values()) / 200 == pytest.approx(0.4, abs=0.1)
    batch = lay_out(texts, plans[0])
    another = task.blanked(batch, batch_dropout_keys(jnp.uint32(6), batch))
    first = task.blanked(batch, batch_dropout_keys(jnp.uint32(5), batch))
    assert not np.array_equal(another.texts.tokens, first.texts.tokens)
    assert task.blanked(batch, None) is batch  # evaluations


def test_the_judge_finds_captions_of_what_is_drawn(drawing: dict[str, Path], pair_networks: dict[str, Path]) -> None:
    """Its numbers are those of the pictures in the records, which are the answers to the same examples."""
    task = opened(drawing["draw llama"], judge=str(pair_networks["clip pair"]))
    mesh = make_mesh(Config().mesh)
    model = load_model(Config(task=task.config, data=DataConfig(max_length=96)), task, drawing["draw llama"], mesh)
    predict = predictor(task, model.graphdef, mesh, (32, 96))(model.params)
    encoded = task.encode(MADE[:6])
    found = task.score(predict, encoded)
    assert {"caption@1", "caption@5", "loss"} <= set(found.metrics) and "among 6" in found.protocol
    answers = task.answers(predict, encoded)
    assert [r["prediction"] for r in found.predictions] == [a.to_record()["prediction"] for a in answers]
    assert all(r["prediction"].startswith("data:image/png;base64,") for r in found.predictions)
    table = task.baselines(encoded, encoded)
    assert table["chance"].metrics["caption@1"] == pytest.approx(1 / 6)
    assert table["chance"].metrics["caption@5"] == pytest.approx(5 / 6)
    given = task.judge.ranks([e.example.images[0] for e in encoded], [e.example.instruction for e in encoded], 0)
    assert table["the given pictures"].metrics["caption@1"] == pytest.approx(np.mean(given.better == 0))
    shown = task.showcase(predict, encoded)
    assert len(shown) == 6 and all(one["wanted_picture"] and one["answers"][0]["picture"] for one in shown)


def test_guidance_is_only_for_runs_that_learned_without_prompts(drawing: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="task.guidance_scale is 3, but task.blank_prompts is 0"):
        opened(drawing["draw llama"], blank_prompts=0.0)
    assert opened(drawing["draw llama"], blank_prompts=0.0, guidance_scale=1.0).blank is None
    for settings, said in (
        ({"blank_prompts": 1.0}, "task.blank_prompts should be from 0"),
        ({"train_on": "all"}, "task.train_on all"),
        ({"temperature": -1.0}, "temperature"),
    ):
        with pytest.raises(ValueError, match=said):
            opened(drawing["draw llama"], **settings)


def test_a_judge_that_is_none_is_named_before_training(drawing: dict[str, Path]) -> None:
    """It is opened when pictures are scored, so a run draws where the judge's folder is gone."""
    task = opened(drawing["draw llama"], judge=str(drawing["fsq"]))
    with pytest.raises(ValueError, match="task.judge"):
        task.check(task.encode(MADE[:2]))


def test_unusable_examples_are_named(drawing: dict[str, Path], tmp_path: Path) -> None:
    task = opened(drawing["draw llama"])
    good = MADE[0]
    (tmp_path / "a.png").write_bytes(png(9))
    changed = picture_of(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(8))
    for example, said in (
        (replace(good, images=()), "it has no picture"),
        (replace(good, images=(*good.images, picture(png(1)))), "it has 2 pictures"),
        (replace(good, output="a cat"), "it has a picture and an output"),
        (replace(good, images=(), output="a cat"), "not the text of an image's 4 codes"),
        (replace(good, images=(picture(b"no file"),)), "e0"),
        (replace(good, images=(changed,)), "another one than when the data were read"),
    ):
        with pytest.raises(ValueError, match=said):
            task.encode([example])


def test_a_tokenizer_without_the_codes_is_named(
    drawing: dict[str, Path], language_models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a token for each of the 16 codes .* <code_0> to <code_15>.*add_tokens"):
        opened(language_models["llama"], tokenizer=str(drawing["fsq"]))
    folder = tmp_path / "small"
    shutil.copytree(drawing["draw llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 120}))
    with pytest.raises(ValueError, match="raise vocab_size in config.json .now 120. to the tokenizer's 128"):
        opened(folder)


def test_its_tokens_are_read_by_transformers(drawing: dict[str, Path]) -> None:
    """The folder is that of any language model: the codes are added tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(drawing["draw llama"])
    task = opened(drawing["draw llama"])
    assert tokenizer(task.written([3, 0, 15, 7]))["input_ids"] == [task.first_code + n for n in (3, 0, 15, 7)]
    assert task.encoding_depends_on()["image tokenizer"] == task.codec.fingerprint


def test_it_shares_no_run(drawing: dict[str, Path]) -> None:
    parts = [SubtaskConfig("a", TextToImageConfig()), SubtaskConfig("b", TextToImageConfig())]
    config = Config(task=MultitaskConfig(parts), data=DataConfig(max_length=96))
    with pytest.raises(ValueError, match="draws images and cannot share a run"):
        open_task(config, drawing["draw llama"])
