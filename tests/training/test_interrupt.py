"""The first signal asks for a stop, the second one has its own effect; several processes stop together."""

import signal
from collections.abc import Iterator

import pytest

from instructrec_jax.training import interrupt
from instructrec_jax.training.interrupt import Interrupt, Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def outside() -> Iterator[list[int]]:
    """Signals that arrive at the handlers which were there before."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_one_passes(number: signal.Signals, outside: list[int]) -> None:
    with Interrupt() as stop:
        assert stop.requested is None and not stop.after(1)
        signal.raise_signal(number)
        assert stop.after(2) and stop.requested == number.name and outside == []
        signal.raise_signal(number)
        assert outside == [number]
    signal.raise_signal(number)
    assert outside == [number, number]


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_come_back_where_nothing_arrived_too(number: signal.Signals, outside: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), Interrupt():
        raise ZeroDivisionError
    signal.raise_signal(number)
    assert outside == [number]


@pytest.mark.parametrize(("number", "said", "status"), [(SIGNALS[0], "SIGTERM", 0), (SIGNALS[1], "Interrupted", 130)])
def test_both_end_with_an_error_that_has_the_status(
    number: signal.Signals, said: str, status: int, outside: list[int]
) -> None:
    with Interrupt() as stop:
        signal.raise_signal(number)
    with pytest.raises(Interrupted, match=f"{said}: saved step 3 of 10") as ended:
        stop.end(3, 10)
    assert ended.value.status == status
    assert issubclass(Interrupted, KeyboardInterrupt)  # not caught as an error of the run


def test_several_processes_stop_after_the_step_that_they_agree_on(
    outside: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """jax's coordination service handles SIGTERM; Ctrl-C becomes a SIGTERM for it."""
    asked: list[int] = []
    monkeypatch.setattr(interrupt, "_are_several", lambda: True)
    agree = lambda step: asked.append(step) or step == 3  # noqa: E731
    monkeypatch.setattr(interrupt.multihost_utils, "reached_preemption_sync_point", agree)
    with Interrupt() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert outside == [signal.SIGTERM]  # left to the service
        signal.raise_signal(signal.SIGINT)
        assert outside == [signal.SIGTERM, signal.SIGTERM]
        assert [stop.after(step) for step in (1, 2, 3)] == [False, False, True] and asked == [1, 2, 3]
    with pytest.raises(Interrupted) as ended:
        stop.end(3, 10)
    assert ended.value.status == 130  # on the process that received it
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
