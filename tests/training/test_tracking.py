import contextlib
import json
import os
import re
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from instructrec_jax.files import read_jsonl
from instructrec_jax.training.tracking import TIMING_FIELDS, Tracker, progress_bar
from instructrec_jax.training.training_config import TrackingConfig

QUIET = TrackingConfig(tensorboard=False)


def train(tracker, start, stop, seconds=1.0):
    """A pretended run: the evaluation before the first step, a row per step, an evaluation every third."""
    if start == 0:
        tracker.log("evaluation", 0, {"NDCG@10": 0.1})
    for step in range(start + 1, stop + 1):
        values = {
            "loss": 1 / step,
            "tokens": 100 * step,
            "seconds": seconds,
            "tokens_per_second": 7 * seconds,
        }
        tracker.log("train", step, values)
        if step % 3 == 0:
            tracker.log("evaluation", step, {"NDCG@10": step / 10})


def rows_without_timing(folder):
    return [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in read_jsonl(folder / "metrics.jsonl")]


def scalars(folder):
    """(tag, step) -> value as TensorBoard would show it: purged by later sessions."""
    found = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_rows_are_on_disk_at_once_and_plain(tmp_path):
    tracker = Tracker(tmp_path, QUIET, 0, {})
    values = {"loss": jnp.float32(0.5), "tokens": np.int64(7), "grad_norm": float("nan"), "seconds": 2}
    tracker.log("train", 10, values)
    wanted = {"kind": "train", "step": 10, "loss": 0.5, "tokens": 7, "grad_norm": None, "seconds": 2}
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(wanted) + "\n"
    tracker.close()


def test_reading_device_values_is_allowed_under_a_transfer_guard(tmp_path):
    loss = jnp.float32(0.25)
    with Tracker(tmp_path, QUIET, 0, {}) as tracker, jax.transfer_guard("disallow"):
        tracker.log("train", 1, {"loss": loss})
    assert rows_without_timing(tmp_path) == [{"kind": "train", "step": 1, "loss": 0.25}]


@pytest.mark.parametrize("checkpoint", [0, 2, 3, 6])
@pytest.mark.parametrize("torn", [b"", b'{"kind": "train", "st'])
def test_a_resumed_run_ends_with_the_rows_of_an_uninterrupted_one(tmp_path, checkpoint, torn):
    with Tracker(tmp_path / "whole", QUIET, 0, {}) as tracker:
        train(tracker, 0, 9)
    train(Tracker(tmp_path / "killed", QUIET, 0, {}), 0, 7)  # never closed
    with open(tmp_path / "killed" / "metrics.jsonl", "ab") as file:
        file.write(torn)
    with Tracker(tmp_path / "killed", QUIET, checkpoint, {}) as tracker:
        train(tracker, checkpoint, 9, seconds=5.0)
    assert rows_without_timing(tmp_path / "killed") == rows_without_timing(tmp_path / "whole")


def test_opening_drops_later_rows_before_anything_is_logged(tmp_path):
    train(Tracker(tmp_path, QUIET, 0, {}), 0, 5)
    Tracker(tmp_path, QUIET, 2, {}).close()
    assert [(row["kind"], row["step"]) for row in read_jsonl(tmp_path / "metrics.jsonl")] == [
        ("evaluation", 0),
        ("train", 1),
        ("train", 2),
    ]


def test_a_step_logged_again_keeps_or_replaces_its_row_in_place(tmp_path):
    tracker = Tracker(tmp_path, QUIET, 0, {})
    tracker.log("train", 1, {"loss": 1.0, "seconds": 1.0})
    tracker.log("train", 2, {"loss": 0.5, "seconds": 2.0})
    tracker.log("train", 1, {"loss": 1.0, "seconds": 9.0})
    assert [row["seconds"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1.0, 2.0]
    tracker.log("train", 1, {"loss": 3.0, "seconds": 9.0})
    assert [row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [3.0, 0.5]


def test_a_broken_line_in_the_middle_stops_the_run_by_name(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\nrubbish\n{"kind": "train", "step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        Tracker(tmp_path, QUIET, 5, {})


@pytest.mark.parametrize("value", [np.zeros(2), "0.5", None, 1j])
def test_what_is_not_a_number_is_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match="'loss'"):
        Tracker(tmp_path, QUIET, 0, {}).log("train", 1, {"loss": value})
    assert rows_without_timing(tmp_path) == []


def test_reserved_names_and_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="step"):
        Tracker(tmp_path, QUIET, 0, {}).log("train", 1, {"step": 3})
    with pytest.raises(ValueError, match="tracking.log_every"):
        Tracker(tmp_path, TrackingConfig(log_every=0), 0, {})


def test_tensorboard_shows_one_history_after_a_resume(tmp_path):
    with Tracker(tmp_path, TrackingConfig(), 0, {}) as tracker:
        train(tracker, 0, 5)
    with Tracker(tmp_path, TrackingConfig(), 3, {}) as tracker:
        tracker.log("train", 4, {"loss": 0.125})
    found = scalars(tmp_path)
    assert found["train/loss", 2] == 0.5 and found["train/loss", 4] == 0.125
    assert found["evaluation/NDCG_10", 3] == pytest.approx(0.3)
    assert ("train/loss", 5) not in found and len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_tensorboard_can_be_left_out(tmp_path):
    with Tracker(tmp_path, QUIET, 0, {}) as tracker:
        train(tracker, 0, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Tracker(tmp_path, TrackingConfig(wandb_project="p"), 0, {}) as tracker:
        train(tracker, 0, 3)
    with progress_bar(3) as bar:
        bar.update(1, 0.5, 10.0)
        bar.print("hello")
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


class FakeWandb(types.SimpleNamespace):
    """Records what it is told; without a network `init` fails unless it is offline, as the real one does."""

    def __init__(self, online):
        failure = type("Error", (Exception,), {})
        super().__init__(errors=types.SimpleNamespace(Error=failure), online=online, inits=[], logged=[])

    def init(self, **settings):
        self.inits.append(settings)
        if settings["mode"] != "offline" and not self.online:
            raise self.errors.Error("no route to host")
        return types.SimpleNamespace(define_metric=lambda *_, **__: None, log=self.logged.append, finish=lambda: None)

    def teardown(self):
        self.inits.append("teardown")


def test_wandb_missing_says_what_to_install_before_anything_is_dropped(tmp_path, monkeypatch):
    train(Tracker(tmp_path, QUIET, 0, {}), 0, 3)
    before = rows_without_timing(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=re.escape('pip install "instructrec_jax[wandb]"')):
        Tracker(tmp_path, TrackingConfig(wandb_project="films"), 0, {})
    assert rows_without_timing(tmp_path) == before


def test_wandb_goes_on_under_one_id(tmp_path, monkeypatch):
    fake = FakeWandb(online=True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = TrackingConfig(tensorboard=False, wandb_project="films")
    for resume in (0, 1):
        with Tracker(tmp_path, config, resume, {"seed": 3}) as tracker:
            tracker.log("train", resume + 1, {"loss": 0.5})
    first, second = fake.inits
    assert first == second and first["project"] == "films" and first["config"] == {"seed": 3}
    assert fake.logged == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.5}]


def test_wandb_without_a_network_records_offline(tmp_path, monkeypatch, capsys):
    fake = FakeWandb(online=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Tracker(tmp_path, TrackingConfig(tensorboard=False, wandb_project="films"), 0, {}) as tracker:
        tracker.log("train", 1, {"loss": 0.5})
    assert fake.inits[1] == "teardown" and fake.inits[2]["mode"] == "offline"
    assert fake.logged == [{"step": 1, "train/loss": 0.5}]
    assert "wandb sync" in capsys.readouterr().err


def test_without_a_terminal_progress_is_one_plain_line_a_log(capsys):
    with progress_bar(total=40, initial=10) as bar:
        for step in range(11, 41):
            bar.update(step, *((0.5, 12345.6) if step % 10 == 0 else ()))
        bar.print("saved")
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert output.out == "" and "\r" not in output.err and "\x1b" not in output.err
    assert [re.sub(r"\d\d:\d\d left", "ETA", line) for line in lines] == [
        "step 20/40 (50%), loss 0.5000, 12,346 tokens/s, ETA",
        "step 30/40 (75%), loss 0.5000, 12,346 tokens/s, ETA",
        "step 40/40 (100%), loss 0.5000, 12,346 tokens/s, ETA",
        "saved",
    ]


def test_in_a_terminal_progress_is_a_bar_on_one_line(monkeypatch):
    main, side = os.openpty()
    with open(side, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar(total=40, initial=10) as bar:
            bar.update(39)
            bar.update(40, float("nan"), 12345.6)
    screen = b""  # read until the end of the terminal, which is an error
    with open(main, "rb", buffering=0) as reader, contextlib.suppress(OSError):
        while chunk := reader.read(4096):
            screen += chunk
    assert screen.count(b"\n") == 1  # only the end of the bar
    last = screen.decode().strip().split("\r")[-1]
    assert last.startswith("100%") and "40/40 steps, loss nan, 12,346 tokens/s" in last and "left" in last
