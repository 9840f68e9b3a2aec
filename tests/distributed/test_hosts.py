"""Hosts without a shared disk: each keeps its share of the prepared data, and trains on the batches of one process."""

import hashlib
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close
from processes import PATIENCE, Processes
from tiny_runs import TOLERANCE, assert_same_lines, changed, final_parameters, tiny_run, write_settings

from instructrec_jax import train
from instructrec_jax.data.loader import to_devices
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.config import Config, load
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.training.checkpoint import Checkpoints

STEPS = 6

# Each process has a folder of its own for prepared data, in parts of few rows.
BEGIN = """
import os, sys
sys.path[:0] = {tests!r}
from instructrec_jax.data import example_store
from instructrec_jax.tasks import encoded_store
example_store.PART_ROWS = encoded_store.PART_ROWS = 4
own = ["--config_path", sys.argv[1], "--data.store", os.path.join(sys.argv[2], os.environ["PROCESS_ID"])]
"""
BATCHES = """
from instructrec_jax.distributed.launch import initialize
initialize()
import test_hosts
from instructrec_jax.runs.config import Config, parse
test_hosts.tell_batches(parse(Config, own))
"""
TRAIN = """
from instructrec_jax import train
from instructrec_jax.runs import config
sys.argv[1:] = own
config.main_guard(train.main, processes=True)
"""


def command(what: str, settings: Path, stores: Path) -> list[str]:
    here = Path(__file__).parent
    return [sys.executable, "-c", BEGIN.format(tests=[str(here), str(here.parent)]) + what, str(settings), str(stores)]


def digests(batch: Any) -> dict[str, str]:
    """(array, place) -> hash of what lies there, for the arrays of a batch on the devices of this process."""
    found = {}
    for path, array in jax.tree_util.tree_leaves_with_path(batch):
        for shard in array.addressable_shards:
            first = shard.index[0].indices(len(array))[:2]
            found[f"{jax.tree_util.keystr(path)} {first}"] = hashlib.sha256(
                np.asarray(shard.data).tobytes()
            ).hexdigest()
    return found


def tell_batches(config: Config) -> None:
    sources = RunData(config)
    mesh = make_mesh(config.mesh)
    task = open_task(config, Path(config.backbone.path))
    data = sources.training(task, len(jax.devices()), mesh)
    for step, batch in enumerate(data.batches(0, STEPS, None)):
        print("BATCH", json.dumps([step, batch.tokens, digests(to_devices(batch.batch, mesh))]), flush=True)
    print("DATA", data.fingerprint, len(sources.skipped), flush=True)


@pytest.fixture
def configs(checkpoint: Path, tmp_path: Path) -> Mapping[str, Config]:
    """Batches of examples, and of rows; with a bad row, and labels that are held out."""
    config = tiny_run("classification", checkpoint, tmp_path, data__on_bad_example="skip")
    path = Path(config.data.train[0].path)
    records = read_jsonl(path)
    write_jsonl(path, [*records[:5], {"instruction": "", "output": "x"}, *records[5:]])
    return {
        "examples": changed(config, data__batch_size=10),
        "rows": changed(config, data__batch_size=None, data__batch_rows=4),
    }


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["examples", pytest.param("rows", marks=pytest.mark.slow)])
def test_batches_are_those_of_one_process(kind: str, count: int, configs: Mapping[str, Config], tmp_path: Path) -> None:
    """Byte for byte; no process keeps all rows, and each gathers the rows of its devices only."""
    settings = write_settings(configs[kind], tmp_path / "settings.yaml")
    config = load(settings)
    sources = RunData(config)
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    data = sources.training(open_task(config, Path(config.backbone.path)), 4)
    expected = [(batch.tokens, digests(to_devices(batch.batch, mesh))) for batch in data.batches(0, STEPS, None)]
    stores = tmp_path / "stores"
    with Processes(command(BATCHES, settings, stores), count, 4 // count, tmp_path / "logs") as some:
        assert some.wait(2 * PATIENCE) == [0] * count, [some.said(number) for number in range(count)]
        said = [some.said(number).splitlines() for number in range(count)]
    assert sum("is not shared" in line for line in said[0]) == 1
    found: list[dict[str, str]] = [{} for _ in range(STEPS)]
    for number, own in enumerate(said):
        for step, tokens, each in (json.loads(line[6:]) for line in own if line.startswith("BATCH ")):
            assert tokens == expected[step][0] and not each.keys() & found[step].keys()
            found[step] |= each
        assert f"DATA {data.fingerprint} 1" in own
        kept = {path.stem for path in stores.glob(f"{number}/*/part-*.arrow")}
        assert kept == {f"part-{part:05d}" for part in range(number, 7, count)}
    assert found == [each for _, each in expected]


@pytest.mark.slow
def test_killed_and_resumed_with_another_number_of_hosts(configs: Mapping[str, Config], tmp_path: Path) -> None:
    """Four hosts, all of which are killed; then two, whose shares are others: the lines and weights of one process."""
    longer = changed(configs["examples"], steps=24, checkpoint__every=4)
    alone = replace(longer, run_dir=str(tmp_path / "alone"))
    train.train(alone)
    run_dir, settings = Path(longer.run_dir), write_settings(longer, tmp_path / "settings.yaml")
    stores = tmp_path / "stores"
    with Processes(command(TRAIN, settings, stores), 4, 1, tmp_path / "logs") as four:
        four.wait_for(lambda: bool(Checkpoints(run_dir).steps()) if run_dir.is_dir() else False)
        for each in four.all:
            each.send_signal(signal.SIGKILL)
    step = Checkpoints(run_dir).steps()[-1]
    assert 0 < step < 24
    with Processes(command(TRAIN, settings, stores), 2, 2, tmp_path / "logs") as two:
        assert two.wait() == [0, 0], two.said(0) + two.said(1)
        assert f"resuming from step {step}" in two.said(0) and "is not shared" in two.said(0)
    assert_same_lines(run_dir, Path(alone.run_dir))
    assert_close(final_parameters(run_dir, 24), final_parameters(alone.run_dir, 24), atol=TOLERANCE)
