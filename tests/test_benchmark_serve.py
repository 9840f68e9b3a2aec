"""The load of `scripts/benchmark.py serve`: each request is asked once, and a failed one is no result."""

import runpy
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "benchmark_serve.py"))


def test_questions_are_the_same_for_the_same_number() -> None:
    assert SCRIPT["asked"](3, 12) == SCRIPT["asked"](3, 12) != SCRIPT["asked"](4, 12)
    assert len(SCRIPT["asked"](3, 12).split()) == 12


def test_each_request_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    numbers: list[int] = []
    lock = threading.Lock()

    def ask(http: httpx.Client, url: str, number: int) -> Any:
        with lock:
            numbers.append(number)
        return SCRIPT["Took"](0.1, 0.2, 5)

    took = SCRIPT["load"]("http://127.0.0.1", 4, 20, ask)
    assert sorted(numbers) == list(range(20)) and len(took[1]) == 20
    assert SCRIPT["line"]("ours", 4, (2.0, took[1])) == 20 * 5 / 2.0
    assert capsys.readouterr().out.split()[:3] == ["ours", "4", "20"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_request_is_an_error() -> None:
    def ask(http: httpx.Client, url: str, number: int) -> Any:
        raise httpx.ConnectError("refused")

    with pytest.raises(RuntimeError, match="failed"):
        SCRIPT["load"]("http://127.0.0.1", 2, 4, ask)
