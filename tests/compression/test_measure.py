"""Bytes and speed. Quality is measured in test_compress.py, by the tasks' own scores."""

import numpy as np

from instructrec_jax.compression.measure import PAIRS, folder_bytes, parameter_bytes, timed


def test_bytes(tmp_path):
    assert parameter_bytes({"a": np.zeros((3, 4), np.int8), "b": {"c": np.zeros(2, np.float32)}}) == 20
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"12345")
    (tmp_path / "other").write_bytes(b"1")
    assert folder_bytes(tmp_path) == 6


def test_both_take_turns_and_the_first_pair_does_not_count():
    called = []

    def call(name, seconds):
        durations = iter([100.0, *seconds])

        def run():
            called.append(name)
            return 10, next(durations)

        return run

    speed = timed("texts/s", call("dense", [2, 2, 4, 2, 2]), call("small", [1, 1, 1, 1, 5]))
    assert called == ["dense", "small"] * (PAIRS + 1)
    assert (speed.unit, speed.dense, speed.compressed, speed.ratio) == ("texts/s", 5.0, 10.0, 2.0)
