from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import task_config
from task_cases import Built, built, examples_of, packed, texts_of
from task_cases import networks as networks

from instructrec_jax.adapters.preferences import preference_losses
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import open_task
from instructrec_jax.tasks import PreferenceConfig
from instructrec_jax.tasks.base import LossInputs


@pytest.fixture(scope="module", params=["llama", "t5"])
def made(request: Any, networks: Any) -> Built:
    records = examples_of("preference", "preference")
    return built(PreferenceConfig(template="plain"), records, request.param, networks, dropout=False, lora=False)


def predicts(made: Built) -> Any:
    return predictor(made.task, made.model.graphdef, made.mesh, (32, 64, 128))(made.model.params)


def loss_of(made: Built, buffers: Any) -> Any:
    batch = packed(made, texts_of(made.task, made.encoded))
    params = made.model.params
    found = jax.jit(
        jax.value_and_grad(
            lambda p: made.task.loss(nnx.merge(made.model.graphdef, p), batch, LossInputs(buffers=buffers))[0]
        )
    )
    return found(params)


def test_before_training_the_loss_is_that_of_chance(made: Built) -> None:
    """The reference comes from the decoding cache, the loss from packed rows: they agree."""
    reference = made.task.refresh(predicts(made))
    counts = [len(e.target.lengths) for e in made.encoded]
    total, _ = loss_of(made, reference)
    assert total == pytest.approx(np.sum(np.log(counts)), rel=1e-4)
    assert reference["reference"].shape == (len(made.encoded), 4)


def test_the_gradient_is_that_of_whole_logits(made: Built) -> None:
    """Autodiff through −log softmax of all logits, answer by answer."""
    task, rng = made.task, np.random.default_rng(1)
    buffers = {"reference": -rng.gamma(2.0, 3.0, (len(made.encoded), 4)).astype(np.float32)}
    texts = texts_of(task, made.encoded)
    batch = packed(made, texts)
    rows, segments = batch.text_numbers.shape

    def expected(params: Any) -> Any:
        model = nnx.merge(made.model.graphdef, params)
        table, bias = model.head.output(model.backbone)
        z = model.head.spec.scale * model.hidden(batch) @ table.T + (0 if bias is None else bias)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(z), batch.own.labels[..., None], axis=-1)[..., 0]
        inside = batch.outputs.segment_ids[..., None] == np.arange(1, segments + 1)
        sums = jnp.einsum("rl,rls->rs", chosen * batch.own.weights, inside).reshape(-1)
        tokens = jnp.einsum("rl,rls->rs", batch.own.weights, inside).reshape(-1)
        own = batch.own
        reference = buffers["reference"][own.numbers]
        return preference_losses("dpo", sums[own.answers], tokens[own.answers], reference, own.present, 0.1).sum()

    total, slopes = loss_of(made, buffers)
    value, truth = jax.jit(jax.value_and_grad(expected))(made.model.params)
    assert float(total) == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), slopes, truth)


def test_scores_are_means_over_pairs(made: Built) -> None:
    found = made.task.score(predicts(made), made.encoded)
    values = made.task._log_probabilities(predicts(made), made.encoded)
    means = [each[:, 0] / each[:, 1] for each in values]
    assert found.metrics["accuracy"] == pytest.approx(np.mean([np.mean(m[0] > m[1:]) for m in means]))
    assert found.metrics["margin"] == pytest.approx(np.mean([np.mean(m[0] - m[1:]) for m in means]))
    record = found.predictions[0]
    assert {"reference", "preferred", "margin"} <= set(record)
    baselines = made.task.baselines(made.encoded, made.encoded)
    assert sum(each.metrics["accuracy"] for each in baselines.values()) == pytest.approx(1)


def opened(folder: Path, **settings: Any) -> Any:
    config = Config(task=PreferenceConfig(template="plain", **settings), data=DataConfig(max_length=64))
    return open_task(config, folder)


def test_bad_input_is_named(language_models: dict[str, Path], checkpoint: Path) -> None:
    folder = language_models["llama"]
    for settings, said in (
        ({"beta": 0.0}, "task.beta should be positive"),
        ({"beta": float("nan")}, "task.beta"),
        ({"loss": "dop"}, "task.loss is 'dop'"),
        ({"label_smoothing": 0.1}, "do not belong to preference"),
    ):
        with pytest.raises(ValueError, match=said):
            opened(folder, **settings)
    with pytest.raises(ValueError, match="decoder or an encoder"):
        opened(checkpoint)
    task = opened(folder)
    with pytest.raises(ValueError, match="example 'a' has no answer to compare with"):
        task.encode([Example(instruction="good", output="yes", candidates=("yes",), id="a")])
    task.prepare(task.encode([Example(instruction="good", output="yes", candidates=("no",), id="a")]))
    other = task.encode([Example(instruction="bad", output="yes", candidates=("no",), id="b")])
    with pytest.raises(ValueError, match="which a stream does not have"):
        task.gather(other, np.random.default_rng(0))
    without = opened(folder, loss="orpo")
    without.gather(without.encode([other[0].example]), np.random.default_rng(0))


def test_multitask_names_it(language_models: dict[str, Path], tmp_path: Path) -> None:
    from instructrec_jax.tasks import MultitaskConfig
    from instructrec_jax.tasks.task_config import SubtaskConfig

    both = [SubtaskConfig(name, task_config(name, tmp_path)) for name in ("preference", "language_model")]
    with pytest.raises(ValueError, match="preference"):
        open_task(Config(task=MultitaskConfig(both), data=DataConfig(max_length=64)), language_models["llama"])


def test_chosen_and_rejected_columns() -> None:
    """A text in a named column is one candidate; TRL's and ShareGPT's forms reach it by a path."""
    fields = FieldsConfig(instruction="prompt", output="chosen", candidates="rejected")
    example = FieldMapper(fields)({"prompt": "Name a fruit.", "chosen": "Plum, a fruit.", "rejected": "Car, no fruit."})
    assert (example.output, example.candidates) == ("Plum, a fruit.", ("Car, no fruit.",))
    fields = replace(fields, output="chosen.value", candidates="rejected.value", instruction=None, messages="talk")
    row = {"talk": [{"from": "human", "value": "Hi"}], "chosen": {"value": "Hello"}, "rejected": {"value": "No"}}
    example = FieldMapper(fields)(row)
    assert (example.output, example.candidates, example.messages[0].content) == ("Hello", ("No",), "Hi")
