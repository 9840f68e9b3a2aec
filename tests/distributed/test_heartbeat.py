"""Signs of life of what takes long."""

import threading

import pytest

from instructrec_jax.distributed import heartbeat as module
from instructrec_jax.distributed.heartbeat import heartbeat


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat("reading"):
        pass
    assert capsys.readouterr().err == ""


def test_what_takes_long_says_so_and_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 0.0)
    said: list[str] = []
    spoken = threading.Event()

    def show(text: str) -> None:
        said.append(text)
        spoken.set()

    with pytest.raises(ValueError, match="x"), heartbeat("fitting baselines", show):
        assert spoken.wait(60)
        raise ValueError("x")
    assert said == ["fitting baselines: 0 s so far"]  # an error ends it without "done"
    spoken.clear()
    with heartbeat("fitting baselines", show):
        assert spoken.wait(60)
    assert said[-1] == "fitting baselines: done in 0 s" and not [t for t in threading.enumerate() if "speak" in t.name]
