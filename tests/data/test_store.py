"""Stores: written once and whole, however writers die, and in memory where nothing can be written."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from processes import Processes

from instructrec_jax.data import store as module
from instructrec_jax.data.parts import Part
from instructrec_jax.data.store import INDEX, Store, StorePlan, open_store

ROWS, PART = 40, 4


def part(block: range) -> Part:
    rows = pa.record_batch([pa.array([n * n for n in block]), pa.array([str(n) for n in block])], ["square", "name"])
    return Part(rows, {"first": block.start})


def plan(folder: Path | None, made: list[int] | None = None, key: object = 1, **more: Any) -> StorePlan:
    """Squares; `made` receives the first row of each part that is made."""

    def make(blocks: Sequence[range]) -> Iterator[Part]:
        for block in blocks:
            if made is not None:
                made.append(block.start)
            yield part(block)

    def summarize(parts: Sequence[Part]) -> dict[str, object]:
        return {"firsts": [each.meta["first"] for each in parts]}

    return StorePlan(folder, key, lambda: ROWS, make, summarize, part_rows=PART, **more)


def assert_whole(store: Store) -> None:
    assert len(store) == ROWS
    assert store.numbers("square").tolist() == [n * n for n in range(ROWS)]
    for row in (0, 5, ROWS - 1):
        batch, place = store.find(row)
        assert batch.column("name")[place].as_py() == str(row)
    assert store.summary == {"firsts": list(range(0, ROWS, PART))}


def test_written_once_and_read_again(tmp_path: Path) -> None:
    made: list[int] = []
    first = open_store(plan(tmp_path, made))
    assert not first.reused and made == list(range(0, ROWS, PART))
    again = open_store(plan(tmp_path, made))
    assert again.reused and len(made) == ROWS / PART
    for store in (first, again):
        assert store.place is not None and store.place.parent == tmp_path
        assert_whole(store)
    assert not open_store(plan(tmp_path, made, key=2)).reused
    assert not (tmp_path / ".gitignore").exists(), "the folder was the user's"
    assert open_store(plan(tmp_path / "new")).place is not None
    assert (tmp_path / "new" / ".gitignore").read_text() == "*\n"
    assert not open_store(plan(tmp_path, key={"b": [1]})).reused
    assert open_store(plan(tmp_path, key={"b": [1]})).reused


def test_few_rows_and_no_folder_stay_in_memory(tmp_path: Path) -> None:
    for each in (plan(None), plan(tmp_path, kept_from=ROWS + 1)):
        store = open_store(each)
        assert store.place is None
        assert_whole(store)
    assert list(tmp_path.iterdir()) == []
    assert open_store(plan(tmp_path, kept_from=ROWS)).place is not None


def damaged(place: Path, kind: str) -> None:
    path = place / "part-00003.arrow"
    match kind:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "longer":
            path.write_bytes(path.read_bytes() + b"\0")
        case "other rows":
            path.write_bytes((place / "part-00002.arrow").read_bytes())
            index = json.loads((place / INDEX).read_text())
            index["rows"][3] += 1
            (place / INDEX).write_text(json.dumps(index))
        case "index cut":
            (place / INDEX).write_text((place / INDEX).read_text()[:40])
        case "other format":
            (place / INDEX).write_text(json.dumps({"format": 1}))


@pytest.mark.parametrize("kind", ["missing", "cut", "longer", "other rows", "index cut", "other format"])
def test_a_damaged_store_is_mended(tmp_path: Path, kind: str) -> None:
    place = open_store(plan(tmp_path)).place
    assert place is not None
    damaged(place, kind)
    made: list[int] = []
    store = open_store(plan(tmp_path, made))
    assert_whole(store)
    assert made == ([] if kind.startswith(("index", "other format")) else [3 * PART])
    assert open_store(plan(tmp_path)).reused


def test_an_error_keeps_what_was_made(tmp_path: Path) -> None:
    made: list[int] = []
    good = plan(tmp_path, made)

    def failing(blocks: Sequence[range]) -> Iterator[Part]:
        for each in good.make(blocks):
            if each.meta["first"] == 20:
                raise ValueError("row 21 is bad")
            yield each

    with pytest.raises(ValueError, match="row 21"):
        open_store(StorePlan(tmp_path, 1, good.rows, failing, good.summarize, part_rows=PART))
    assert made == [0, 4, 8, 12, 16, 20]
    assert_whole(open_store(good))
    assert made[6:] == [20, 24, 28, 32, 36]


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    store = open_store(plan(occupied / "stores"))
    assert store.place is None and "data.store" in caplog.text
    assert_whole(store)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    whole, written = module.write_part, list[Path]()

    def write(path: Path, each: Part) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        whole(path, each)

    monkeypatch.setattr(module, "write_part", write)
    store = open_store(plan(tmp_path))
    assert store.place is None and "No space left" in caplog.text
    assert_whole(store)
    monkeypatch.undo()
    made: list[int] = []
    assert_whole(open_store(plan(tmp_path, made)))
    assert made[0] == 3 * PART


# ---------------------------------------------------------------- several processes

SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = {tests!r}
import test_store as t
from instructrec_jax.data.store import StorePlan, open_store
from instructrec_jax.distributed.launch import initialize
initialize()
folder, made = Path(sys.argv[1]), []
plan = t.plan(folder, made)
def slowly(blocks):
    for part in plan.make(blocks):
        time.sleep(float(sys.argv[2]))
        yield part
store = open_store(StorePlan(folder, 1, plan.rows, slowly, plan.summarize, part_rows=t.PART))
t.assert_whole(store)
print("MADE", len(made), "REUSED", store.reused, flush=True)
"""


def command(folder: Path, pause: float) -> list[str]:
    return [
        sys.executable,
        "-c",
        SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        str(folder),
        str(pause),
    ]


def started(folder: Path, pause: float, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    own = {"XLA_FLAGS": "", **environment}
    with log.open("wb") as out:
        return subprocess.Popen(command(folder, pause), stdout=out, stderr=subprocess.STDOUT, env=os.environ | own)


def wait_for_parts(folder: Path, count: int, writer: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/part-*.arrow"))) < count:
        assert writer.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_two_starts_at_once_and_a_kill(tmp_path: Path) -> None:
    """A killed writer leaves whole parts; of two others, one writes the rest while the second waits."""
    folder = tmp_path / "stores"
    with started(folder, 0.3, tmp_path / "killed.log") as first:
        wait_for_parts(folder, 3, first)
        first.send_signal(signal.SIGKILL)
    assert not list(folder.glob(f"*/{INDEX}"))
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    both = [started(folder, 0.3, log) for log in logs]
    assert [each.wait(timeout=120) for each in both] == [0, 0], [log.read_text() for log in logs]
    said = sorted(line for log in logs for line in log.read_text().splitlines() if line.startswith("MADE"))
    made = [int(line.split()[1]) for line in said]
    assert min(made) == 0 and max(made) <= ROWS / PART - 3
    assert open_store(plan(folder)).reused


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_the_work(tmp_path: Path, count: int) -> None:
    """Each makes a share; after a kill of all, they make what is missing."""
    folder = tmp_path / "stores"
    with Processes(command(folder, 0.2), count, 1, tmp_path / "logs") as some:
        wait_for_parts(folder, count, some.all[0])
        for each in some.all:
            each.send_signal(signal.SIGKILL)
    there = len(list(folder.glob("*/part-*.arrow")))
    assert there < ROWS / PART
    with Processes(command(folder, 0.0), count, 1, tmp_path / "logs") as some:
        assert some.wait() == [0] * count, some.said(0)
        made = [int(some.said(number).partition("MADE ")[2].split()[0]) for number in range(count)]
    assert sum(made) == ROWS / PART - there
    assert max(made) <= -(-ROWS // PART // count)
    assert open_store(plan(folder)).reused


def test_without_a_shared_disk_each_process_keeps_its_own(tmp_path: Path) -> None:
    own = command(tmp_path / "stores", 0.0)
    own[2] = own[2].replace("Path(sys.argv[1])", "Path(sys.argv[1] + __import__('os').environ['PROCESS_ID'])")
    with Processes(own, 2, 1, tmp_path / "logs") as two:
        assert two.wait() == [0, 0], two.said(0)
    for number in range(2):
        assert open_store(plan(tmp_path / f"stores{number}")).reused


def test_a_store_travels_to_workers_by_its_place(tmp_path: Path) -> None:
    for folder in (tmp_path, None):
        store = open_store(plan(folder))
        assert_whole(pickle.loads(pickle.dumps(store)))
    assert len(pickle.dumps(open_store(plan(tmp_path)))) < 500
    assert np.array_equal(store.ends, np.arange(PART, ROWS + 1, PART))
