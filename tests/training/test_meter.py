"""The speed in the log counts the time until the window's last number is there, not until its steps are dispatched."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from instructrec_jax.training import meter
from instructrec_jax.training.meter import Meter


def test_a_window_ends_when_its_numbers_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    logged: list[dict[str, float]] = []

    def fetch(sums: Any) -> Any:
        clock.now += 5.0  # the device works off what was dispatched
        return sums

    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(meter, "jax", SimpleNamespace(device_get=fetch))
    tracker: Any = SimpleNamespace(log=lambda kind, step, values: logged.append(values))
    bar: Any = SimpleNamespace(update=lambda *_: None)
    under_test = Meter(tracker, bar, lambda step: 0.1, max_nonfinite=5, _started=0.0, _window_started=0.0)
    names = ("loss", "weight", "grad_norm", "steps", "skipped", "skipped_in_a_row")
    sums = dict.fromkeys(names, 1.0) | {"skipped": 0.0, "skipped_in_a_row": 0.0}
    for step in (1, 2):
        under_test.count(1000)
        under_test.close_window(step, sums, 1000 * step)
        clock.now += 1.0  # the next step is dispatched
        under_test.flush()
        under_test.pause(0.0)
    assert [row["tokens_per_second"] for row in logged] == [pytest.approx(1000 / 6), pytest.approx(1000 / 6)]
    clock.now += 10.0
    under_test.pause(10.0)
    under_test.count(1000)
    under_test.close_window(3, sums, 3000)
    under_test.flush()
    assert logged[-1]["tokens_per_second"] == pytest.approx(1000 / 5)


def test_the_time_is_broken_down_and_mfu_follows_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    logged: list[dict[str, float]] = []
    shown: list[Any] = []
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(meter, "jax", SimpleNamespace(device_get=lambda sums: sums))
    tracker: Any = SimpleNamespace(log=lambda kind, step, values: logged.append(values))
    bar: Any = SimpleNamespace(update=lambda *values: shown.append(values))
    under_test = Meter(
        tracker,
        bar,
        lambda step: 0.1,
        5,
        flops=lambda tokens: 6e6 * tokens,
        peak=1e9,
        _started=0.0,
        _window_started=0.0,
    )
    names = ("loss", "weight", "grad_norm", "steps", "skipped", "skipped_in_a_row")
    sums = dict.fromkeys(names, 1.0) | {"skipped": 0.0, "skipped_in_a_row": 0.0}
    with under_test.timed("input"):
        clock.now += 2.0
    with under_test.timed("checkpoint"):
        clock.now += 1.0
    clock.now += 7.0
    under_test.count(1000)
    under_test.close_window(1, sums, 1000)
    under_test.flush()
    shares = {name: logged[0][f"{name}_share"] for name in ("input", "checkpoint", "logging", "step")}
    assert shares == pytest.approx({"input": 0.2, "checkpoint": 0.1, "logging": 0.0, "step": 0.7})
    assert logged[0]["mfu"] == pytest.approx(6e6 * 1000 / 10 / 1e9) == shown[0][3]


def watching(max_nonfinite: int) -> Meter:
    nothing: Any = SimpleNamespace()
    return Meter(nothing, nothing, lambda step: 0.1, max_nonfinite)


def test_every_step_is_looked_at_without_waiting_for_the_latest() -> None:
    """Not on lines of the log alone, of which there is none here; each value is fetched once it is `LAG` steps old."""
    fetched: list[int] = []

    class Value:
        def __init__(self, step: int, bad: int):
            self.step, self.bad = step, bad

        def __int__(self) -> int:
            fetched.append(self.step)
            return self.bad

    under_test = watching(3)
    in_a_row = [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(FloatingPointError, match=r"step 7 .*optimizer.max_nonfinite"):
        for step, bad in enumerate(in_a_row, 1):
            value: Any = Value(step, bad)
            under_test.watch(step, {"skipped_in_a_row": value})
            assert fetched == list(range(1, step - meter.LAG + 1))
    assert fetched[-1] == 7


def test_the_last_steps_are_looked_at_too() -> None:
    under_test = watching(2)
    for step, bad in enumerate([0, 1, 2], 1):
        under_test.watch(step, {"skipped_in_a_row": np.int32(bad)})  # type: ignore[dict-item]
    with pytest.raises(FloatingPointError, match="optimizer.max_nonfinite"):
        under_test.finish(3, np.int32(2))  # type: ignore[arg-type]


def test_a_run_whose_loss_was_never_finite_is_no_success() -> None:
    for step, skipped, fails in ((2, 2, True), (2, 1, False), (0, 0, False)):
        under_test = watching(5)
        if fails:
            with pytest.raises(FloatingPointError, match="2 steps"):
                under_test.finish(step, np.int32(skipped))  # type: ignore[arg-type]
        else:
            under_test.finish(step, np.int32(skipped))  # type: ignore[arg-type]
