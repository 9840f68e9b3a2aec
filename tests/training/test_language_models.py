"""Other tasks on language models, and the memory of the step; packing and devices: tests/tasks/test_properties.py."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import Setup, assert_close, run_steps

from instructrec_jax.data.batch import BatchTexts, lay_out, lengths_of
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.packing import unpacked
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.training_config import OptimizerConfig

# See test_step.py: Adam divides by |gradient|, so plain comparisons of parameters need a large epsilon.
SMOOTH = OptimizerConfig(learning_rate=1e-3, warmup=0.0, schedule="constant", epsilon=1e-3, clip_norm=1.0)


def plain_layout(parts: BatchTexts) -> dict[str, np.ndarray]:
    """One text (and target) a row."""
    lengths, targets = lengths_of(parts.texts)
    target_length = None if targets is None else int(targets.max())
    return lay_out(parts, unpacked(lengths, int(lengths.max()), 1, target_length))


@pytest.mark.parametrize(("network", "kind"), [("llama", "classification"), ("t5", "retrieval")])
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
    """Bytes of temporaries of the compiled step, and the same parameters after it."""
    policies = ("none", "attention", "dots", "full")

    def compiled(remat: Any) -> tuple[int, Any]:
        setup = Setup("language_model", language_models["llama"], tmp_path, optimizer=SMOOTH, remat=remat)
        batch = to_devices(setup.batch(), setup.mesh)
        program = setup.step.lower(setup.state, batch).compile()  # type: ignore[attr-defined]
        state, _ = program(setup.state, batch)
        return program.memory_analysis().temp_size_in_bytes, jax.device_get(state.params)

    sizes, params = zip(*(compiled(policy) for policy in policies), strict=True)
    assert list(sizes) == sorted(sizes, reverse=True) and sizes[0] > sizes[1], sizes
    for each in params[1:]:
        assert_close(each, params[0], atol=1e-6)
