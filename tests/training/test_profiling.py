"""Which steps are traced, and that a trace that began also ends."""

from pathlib import Path

import jax
import pytest

from instructrec_jax.training.profiling import Profiler, traced_steps
from instructrec_jax.training.training_config import ProfileConfig


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, []), ("3", [3]), ("3..3", [3]), ("10..13", [10, 11, 12, 13]), (" 2..3 ", [2, 3])],
)
def test_steps_count_from_1_and_both_ends_are_traced(steps: str | None, expected: list[int]) -> None:
    assert list(traced_steps(ProfileConfig(steps))) == expected
    assert list(traced_steps(ProfileConfig(steps), last_step=13)) == expected


@pytest.mark.parametrize("steps", ["", "0", "0..2", "3..2", "a", "1-3", "1...3", "1..", "-1..2", "1..2..3", "1.5"])
def test_what_is_no_range_is_named(steps: str) -> None:
    with pytest.raises(ValueError, match="profile.steps"):
        traced_steps(ProfileConfig(steps))


def test_steps_beyond_the_run_are_named() -> None:
    with pytest.raises(ValueError, match="profile.steps.*5..7.* 6 "):
        traced_steps(ProfileConfig("5..7"), last_step=6)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: seen.append(f"start {Path(folder).name}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    monkeypatch.setattr(jax, "block_until_ready", lambda result: seen.append(f"wait for {result}"))
    return seen


def run(steps: str | None, first: int, last: int, folder: Path, calls: list[str]) -> list[str]:
    with Profiler(folder, ProfileConfig(steps)) as profiler:
        for step in range(first, last + 1):
            profiler.begin(step)
            calls.append(str(step))
            profiler.end(step, f"result {step}")
    return calls


def test_a_trace_covers_its_steps_and_their_work(calls: list[str], tmp_path: Path) -> None:
    expected = ["1", "start profile", "2", "3", "wait for result 3", "stop", "4"]
    assert run("2..3", 1, 4, tmp_path, calls) == expected


def test_no_trace(calls: list[str], tmp_path: Path) -> None:
    assert run(None, 1, 2, tmp_path, calls) == ["1", "2"]


def test_a_run_that_resumes_inside_or_behind_the_steps(calls: list[str], tmp_path: Path) -> None:
    assert run("2..3", 3, 4, tmp_path, calls) == ["start profile", "3", "wait for result 3", "stop", "4"]
    calls.clear()
    assert run("2..3", 4, 5, tmp_path, calls) == ["4", "5"]


def test_a_trace_ends_with_a_run_that_stops_earlier(calls: list[str], tmp_path: Path) -> None:
    assert run("2..9", 1, 3, tmp_path, calls) == ["1", "start profile", "2", "3", "stop"]
    calls.clear()
    with pytest.raises(ZeroDivisionError), Profiler(tmp_path, ProfileConfig("1..2")) as profiler:
        profiler.begin(1)
        raise ZeroDivisionError
    assert calls == ["start profile", "stop"]
