"""Checkpoints on disk: what damages them is found and named, before anything is trained or answered on it."""

import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from instructrec_jax.training.checkpoint import CHECKSUMS, Checkpoints, abstract
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.training_config import CheckpointConfig


def state(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {"params": {"x": jax.numpy.asarray(rng.normal(size=(40, 50)), jax.numpy.float32)}, "step": np.int32(step)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 4 and 6."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    for step in (4, 6):
        checkpoints.save(step, state(step), Progress("data", tokens=step), {}, 0.5)
    checkpoints.close()
    return tmp_path


def restored(run: Path, step: int) -> Any:
    like = jax.tree.map(jax.numpy.asarray, state(step))
    like = abstract(like, jax.tree.map(lambda x: x.sharding, like))
    return jax.device_get(Checkpoints(run).restore(step, like))


def test_what_was_saved_is_read(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_array_equal(restored(run, 6)["params"]["x"], state(6)["params"]["x"])
    assert Checkpoints(run).progress(6) == Progress("data", tokens=6) and Checkpoints(run).best_step() == 6
    assert not caplog.text


def test_a_flipped_bit_anywhere_in_the_arrays_is_found(run: Path) -> None:
    """And a zeroed or vanished file; the error names the checkpoint, and the older one that is whole."""
    draw = random.Random(0)
    files = sorted(path for path in (run / "checkpoints" / "6" / "state").rglob("*") if path.is_file())
    files = [path for path in files if path.name != "commit_success.txt"]
    assert len(files) > 5 and any(path.stat().st_size > 4000 for path in files)
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        for damaged in (bytes(flipped), bytes(len(whole)), whole[:-1], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            if path.name == CHECKSUMS and damaged in (None, whole[:-1]):
                path.write_bytes(whole)  # the first is a checkpoint of version 0.1, the second only lacks a newline
                continue
            with pytest.raises(ValueError, match=r"(?s)checkpoints/6.*--step 4"):
                restored(run, 6)
            path.write_bytes(whole)
    restored(run, 6)
    restored(run, 4)


def test_a_checkpoint_without_checksums_opens_with_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "checkpoints" / "6" / "state" / CHECKSUMS).unlink()
    np.testing.assert_array_equal(restored(run, 6)["params"]["x"], state(6)["params"]["x"])
    assert "not verified" in caplog.text


def test_a_whole_checkpoint_of_another_model_is_no_damage(run: Path) -> None:
    like = jax.ShapeDtypeStruct((3,), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with pytest.raises(ValueError, match="config.yaml"):
        Checkpoints(run).restore(6, {"params": {"other": like}})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tokens": "many"}', "\x00\x00", None])
def test_damaged_progress_is_named(text: str | None, run: Path) -> None:
    (file,) = [path for path in (run / "checkpoints" / "6" / "progress").iterdir() if path.name == "metadata"]
    file.unlink() if text is None else file.write_text(text)
    for read in (lambda: Checkpoints(run).progress(6), lambda: Checkpoints(run).best_step()):
        with pytest.raises(ValueError, match=r"checkpoints/6.*step 4"):
            read()


def test_a_checkpoint_with_the_metric_of_another_measure_ranks_last(tmp_path: Path) -> None:
    for step, metric, measure in ((1, 0.9, "old"), (2, 0.4, "new"), (3, 0.3, "new")):
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1), measure=measure)
        checkpoints.save(step, {"x": np.zeros(3)}, Progress("data"), {}, metric)
        checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [2, 3]
