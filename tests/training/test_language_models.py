"""Language models on the sharded step: the same loss and gradients however texts and targets are packed or split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import Setup, assert_close, run_steps

from instructrec_jax.data.batch import BatchTexts, lay_out, lengths_of
from instructrec_jax.data.loader import pack
from instructrec_jax.data.packing import unpacked
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.optimizer import OptimizerConfig
from instructrec_jax.training.step import batch_dropout_keys

# See test_step.py: Adam divides by |gradient|, so plain comparisons of parameters need a large epsilon.
SMOOTH = OptimizerConfig(learning_rate=1e-3, warmup=0.0, schedule="constant", epsilon=1e-3, clip_norm=1.0)
PAIRS = ("t5", "bart")


def plain_layout(parts: BatchTexts) -> dict[str, np.ndarray]:
    """One text (and target) a row."""
    lengths, targets = lengths_of(parts.texts)
    target_length = None if targets is None else int(targets.max())
    return lay_out(parts, unpacked(lengths, int(lengths.max()), 1, target_length))


def mean_loss(setup: Setup, seed: int | None = 7) -> Callable[[Any, Any], jax.Array]:
    """(parameters, batch) -> mean loss; seed of the dropout, or None for none."""

    def function(params: Any, batch: Any) -> jax.Array:
        keys = None if seed is None else batch_dropout_keys(jnp.uint32(seed), batch)
        model = nnx.merge(setup.model.graphdef, params)
        total, weight = setup.task.loss(model, batch, LossInputs(keys))
        return total / weight

    return function


@pytest.mark.parametrize("network", ["gpt2", "llama", "t5", "bart"])
def test_packed_loss_and_gradients_equal_unpacked(
    network: str, language_models: dict[str, Path], tmp_path: Path
) -> None:
    setup = Setup("language_model", language_models[network], tmp_path)
    batch = setup.batch()
    assert (batch.texts.segment_ids.max(1) > 1).mean() > 0.5  # several texts to most rows
    assert (batch.targets is not None) == (network in PAIRS)
    with_gradients = jax.jit(jax.value_and_grad(mean_loss(setup)))
    loss, gradients = with_gradients(setup.model.params, batch)
    plain_loss, plain_gradients = with_gradients(setup.model.params, plain_layout(setup.parts()))
    np.testing.assert_allclose(loss, plain_loss, atol=1e-5)
    assert_close(gradients, plain_gradients, atol=1e-5)
    assert optax.tree.norm(gradients) > 0.1
    assert abs(jax.jit(mean_loss(setup, seed=None))(setup.model.params, batch) - loss) > 1e-4  # so dropout is on


@pytest.fixture(scope="module")
def references(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two steps on one device in one part, for each network, made when first asked for."""
    made: dict[str, tuple[list[float], Any]] = {}

    def of(network: str) -> tuple[list[float], Any]:
        if network not in made:
            folder = tmp_path_factory.mktemp(network)
            setup = Setup("language_model", language_models[network], folder, optimizer=SMOOTH)
            made[network] = run_steps(setup, [eight_rows(setup)] * 2)
        return made[network]

    return of


def eight_rows(setup: Setup) -> dict[str, np.ndarray]:
    return pack(setup.parts(), setup.buckets, 8, target_buckets=setup.target_buckets).batch


@pytest.mark.parametrize("network", [pytest.param("gpt2", marks=pytest.mark.slow), "t5"])
def test_accumulation_equals_one_batch(
    network: str, language_models: dict[str, Path], tmp_path: Path, references: Any
) -> None:
    setup = Setup("language_model", language_models[network], tmp_path, optimizer=SMOOTH, accumulation=4)
    losses, params = run_steps(setup, [eight_rows(setup)] * 2)
    np.testing.assert_allclose(losses, references(network)[0], atol=1e-5)
    assert_close(params, references(network)[1], atol=1e-5)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (2, 1, 1, 4), pytest.param((1, 2, 2, 2), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("network", ["llama", "t5"])
def test_eight_devices_equal_one(
    network: str, mesh: tuple[int, ...], language_models: dict[str, Path], tmp_path: Path, references: Any
) -> None:
    setup = Setup("language_model", language_models[network], tmp_path, optimizer=SMOOTH, mesh=mesh)
    losses, params = run_steps(setup, [eight_rows(setup)] * 2)
    np.testing.assert_allclose(losses, references(network)[0], atol=1e-5)
    assert_close(params, references(network)[1], atol=1e-5)


@pytest.mark.parametrize(
    ("network", "kind"), [("llama", "classification"), ("llama", "retrieval"), ("t5", "retrieval")]
)
def test_other_tasks_run_on_language_models(
    network: str, kind: str, language_models: dict[str, Path], tmp_path: Path
) -> None:
    setup = Setup(kind, language_models[network], tmp_path)
    batch = setup.batch()
    assert (batch.texts.segment_ids.max(1) > 1).any()

    @jax.jit
    def loss(params: Any, batch: Any) -> jax.Array:
        total, weight = setup.task.loss(
            nnx.merge(setup.model.graphdef, params), batch, LossInputs(buffers=setup.state.buffers)
        )
        return total / weight

    packed, plain = (loss(setup.model.params, each) for each in (batch, plain_layout(setup.parts())))
    np.testing.assert_allclose(packed, plain, atol=1e-5)
    losses, _ = run_steps(setup, [batch] * 5)
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------- memory


def test_each_remat_policy_keeps_less(language_models: dict[str, Path], tmp_path: Path) -> None:
    """Bytes of temporaries of the compiled gradient, and the same gradient."""

    def compiled(remat: Any) -> tuple[int, Any]:
        setup = Setup("language_model", language_models["llama"], tmp_path, optimizer=SMOOTH, remat=remat)
        batch = eight_rows(setup)
        program = setup.step.lower(setup.state, batch).compile()  # type: ignore[attr-defined]
        return program.memory_analysis().temp_size_in_bytes, run_steps(setup, [batch])[1]

    found = {remat: compiled(remat) for remat in ("none", "attention", "dots", "full")}
    sizes = [found[remat][0] for remat in ("none", "attention", "dots", "full")]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[1], sizes
    for remat in ("attention", "dots", "full"):
        assert_close(found[remat][1], found["none"][1], atol=1e-6)
