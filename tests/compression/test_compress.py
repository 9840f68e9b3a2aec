"""Compressed runs of every kind: opened by the other verbs, with the same answers as the codes stand for."""

from typing import Any

import numpy as np
import pytest

from instructrec_jax.compression.compress import compress
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.runs.run import Run

TEXTS = ["a dull film about a book", "the new bright film"]


@pytest.fixture(scope="module")
def w8a8(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("compressed") / "w8a8"
    return out, compress(finished.run_dir, out, Quantization(activations="int8"), calibration=8)


def test_a_compressed_run_opens_with_the_codes_that_were_chosen(w8a8, finished):
    out, found = w8a8
    run = Run.open(out)
    assert run.config.backbone.quantize == "int8" and not run.config.lora.on
    np.testing.assert_allclose(
        [each.probability for each in run.predict(TEXTS)],
        [each.probability for each in Run.open(finished.run_dir).predict(TEXTS)],
        atol=0.02,
    )
    assert found.after < 0.45 * found.before
