"""Without a shared disk each process writes and keeps a share, and makes the rest again where it is read."""

import functools
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from processes import Processes, as_processes

from instructrec_jax.data.parts import Part
from instructrec_jax.data.shares import SOURCE_ROW
from instructrec_jax.data.store import Store, StorePlan, open_store

ROWS, PART, ALL = 40, 4, 10  # records, records of a part, parts


def part(block: Sequence[int], shift: int = 0) -> Part:
    """Squares: none of record 5, two of record 6."""
    chosen = [n for n in block if n != 5 for _ in range(2 if n == 6 else 1)]
    columns = {
        "square": [n * n + shift for n in chosen],
        "name": [str(n) for n in chosen],
        SOURCE_ROW: chosen,
    }
    return Part(pa.record_batch([pa.array(each) for each in columns.values()], list(columns)), {"first": block[0]})


def plan(folder: Path | None, made: list[range] | None = None, key: object = 1, shift: int = 0) -> StorePlan:
    """`made` receives the records of each part that is made."""

    def make(blocks: Sequence[range]) -> Iterator[Part]:
        for block in blocks:
            if made is not None:
                made.append(block)
            yield part(block)

    def remake() -> Callable[[Sequence[int]], Part]:
        return functools.partial(part, shift=shift)

    def summarize(parts: Sequence[Part]) -> dict[str, object]:
        squares = [n for each in parts for n in each.rows.column("square").to_pylist()]
        return {"firsts": [each.meta["first"] for each in parts], "sum": sum(squares)}

    shared = ("square", SOURCE_ROW)
    return StorePlan(folder, key, lambda: ROWS, make, summarize, part_rows=PART, shared=shared, remake=remake)


def assert_whole(store: Store, sweep: bool) -> None:
    numbers = sorted([*range(5), *range(6, ROWS), 6])
    assert len(store) == len(numbers) and store.numbers("square").tolist() == [n * n for n in numbers]
    for row in range(len(store)) if sweep else reversed(range(len(store))):
        batch, place = store.find(row, sweep)
        assert batch.column("square")[place].as_py() == numbers[row] ** 2
        assert batch.column("name")[place].as_py() == str(numbers[row])
    assert store.summary == {"firsts": list(range(0, ROWS, PART)), "sum": sum(n * n for n in numbers)}


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("part-")) for path in folder.glob("*/part-*.arrow"))


def opened(patch: pytest.MonkeyPatch, folder: Path, count: int, made: list[list[range]]) -> list[Store]:
    return as_processes(patch, count, lambda number: open_store(plan(folder / str(number), made[number])))


def test_shares_of_other_numbers_of_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hosts, then two, then four, then one: each has its share, makes nothing twice, and reads all rows."""
    for count in (3, 2, 4):
        there = [kept(tmp_path / str(number)) for number in range(count)]
        made: list[list[range]] = [[] for _ in range(count)]
        stores = opened(monkeypatch, tmp_path, count, made)
        for number, store in enumerate(stores):
            share = range(number, ALL, count)
            assert [block.start // PART for block in made[number]] == [n for n in share if n not in there[number]]
            assert kept(tmp_path / str(number)) == sorted({*there[number], *share})
            assert store.elsewhere is not None and sorted({*store.elsewhere.blocks, *kept(tmp_path / str(number))}) == [
                *range(ALL)
            ]
            for each in (store, pickle.loads(pickle.dumps(store))):
                assert_whole(each, sweep=False)
                assert_whole(each, sweep=True)
        assert [store.reused for store in stores] == [not each for each in made]
        assert all(store.reused for store in opened(monkeypatch, tmp_path, count, [[] for _ in range(count)]))
    assert_whole(open_store(plan(tmp_path / "0")), sweep=True)


def test_expected_rows_are_made_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def remake() -> Callable[[Sequence[int]], Part]:
        def make(rows: Sequence[int]) -> Part:
            asked.append(list(rows))
            return part(rows)

        return make

    (store, _) = as_processes(monkeypatch, 2, lambda number: open_store(replace(plan(None), remake=remake)))
    store.expect([34, 1, 5, 6, 12])  # records 5 (none), 6 (two) and 12 are of parts 1 and 3; 1 and 34 are kept here
    assert asked == [[6, 12]]
    for row, square in ((5, 36), (6, 36), (12, 144), (1, 1), (34, 34 * 34)):
        batch, place = store.find(row)
        assert batch.column("square")[place].as_py() == square
    assert asked == [[6, 12]]


def test_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for store in as_processes(monkeypatch, 2, lambda number: open_store(plan(None))):
        assert store.elsewhere is not None and len(store.elsewhere.blocks) == ALL / 2
        assert_whole(pickle.loads(pickle.dumps(store)), sweep=False)
    few = as_processes(monkeypatch, 11, lambda number: open_store(plan(None)))
    assert all(store.elsewhere is None for store in few), "with less than a part each, all keep all"


def test_a_shared_disk_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[range] = []
    for store in as_processes(monkeypatch, 2, lambda number: open_store(plan(tmp_path / "one", made))):
        assert store.elsewhere is None and store.place is not None
        assert_whole(store, sweep=False)
    assert len(made) == ALL and [path.name for path in (tmp_path / "one").glob(".seen*")] == []
    as_processes(monkeypatch, 2, lambda number: open_store(plan(tmp_path / str(number))))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepared data")]
    assert [line.partition(" is ")[2] for line in said] == [
        "shared by all 2 processes",
        "not shared: each process keeps its share. Found by 2 processes",
    ]


def test_an_error_in_one_share_is_raised_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> str:
        good = plan(tmp_path / str(number))

        def failing(blocks: Sequence[range]) -> Iterator[Part]:
            for each in good.make(blocks):
                if number == 1 and each.meta["first"] == 20:
                    raise ValueError("row 21 is bad")
                yield each

        with pytest.raises(ValueError) as caught:
            open_store(replace(good, make=failing))
        return str(caught.value)

    assert as_processes(monkeypatch, 2, work) == ["row 21 is bad"] * 2
    made: list[list[range]] = [[], []]
    opened(monkeypatch, tmp_path, 2, made)
    assert made == [[], [range(20, 24), range(28, 32), range(36, 40)]], "what was made before is kept"


def test_hosts_with_other_data_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_key(number: int) -> None:
        with pytest.raises(ValueError, match="read other data"):
            open_store(plan(tmp_path / str(number), key=number))

    def other_source(number: int) -> None:
        store = open_store(plan(tmp_path / str(number), shift=number))
        if number == 0:
            return assert_whole(store, sweep=False)
        with pytest.raises(ValueError, match="row 1: .*the same files"):
            store.find(0)

    as_processes(monkeypatch, 2, other_key)
    as_processes(monkeypatch, 2, other_source)


# ---------------------------------------------------------------- real processes

SCRIPT = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
sys.path[:0] = {tests!r}
import test_shares as t
from instructrec_jax.data.store import open_store
from instructrec_jax.distributed.launch import initialize
initialize()
folder, made = Path(sys.argv[1]) / os.environ["PROCESS_ID"], []
plan = t.plan(folder, made)
def slowly(blocks):
    for part in plan.make(blocks):
        time.sleep(float(sys.argv[2]))
        yield part
store = open_store(replace(plan, make=slowly))
t.assert_whole(store, sweep=False)
print("MADE", len(made), "KEPT", t.kept(folder), flush=True)
"""


def command(folder: Path, pause: float) -> list[str]:
    script = SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    return [sys.executable, "-c", script, str(folder), str(pause)]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_without_a_shared_disk_and_a_kill(tmp_path: Path, count: int) -> None:
    """All are killed in the middle; started again, each makes what is missing of its share, and keeps this share."""
    folder = tmp_path / "stores"
    with Processes(command(folder, 0.2), count, 1, tmp_path / "logs") as some:
        some.wait_for(lambda: len(list(folder.glob("*/*/part-*.arrow"))) >= count)
        for each in some.all:
            each.send_signal(signal.SIGKILL)
    there = [kept(folder / str(number)) for number in range(count)]
    assert count <= len([n for each in there for n in each]) < ALL
    with Processes(command(folder, 0.0), count, 1, tmp_path / "logs") as some:
        assert some.wait() == [0] * count, [some.said(number) for number in range(count)]
        for number in range(count):
            share = list(range(number, ALL, count))
            assert f"MADE {len(share) - len(there[number])} KEPT {share}" in some.said(number)
        assert "is not shared" in some.said(0)
