"""Examples made from the interactions are those of instructions/*.jsonl, in every order and process."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.preparation import interaction_rows
from instructrec_jax.preparation.interaction_rows import InteractionRows
from instructrec_jax.prepare import main
from instructrec_jax.ranking.catalogue import SPLITS, load_card
from instructrec_jax.runs import data as runs_data
from instructrec_jax.runs.data import KINDS

PLAIN = ["--preferences", "[none]", "--intentions", "[none]", "--examples_per_user", "1", "--positions", "last"]
SETTINGS = {
    "defaults": [],
    "the next item": PLAIN,
    "three of each user": ["--examples_per_user", "3", "--intentions", "[none,vague]", "--contexts", "0.5"],
    "reranking": ["--forms", "[reranking,pointwise]", "--negatives", "2", "--seed", "5"],
    "ratio": ["--split", "ratio", "--validation", "0.2", "--test", "0.2"],
    "global_time": ["--split", "global_time", "--validation", "0.2", "--test", "0.2", "--k_core", "0"],
    "the last items": ["--sequence_limit", "5"],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    draw = random.Random(1)
    movies = [
        "movieId,title,genres",
        *(f"{n},Film {n} ({1980 + n}),{draw.choice(['Drama', 'Comedy'])}" for n in range(30)),
    ]
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(25):
        began = draw.randrange(1000)
        items = draw.sample(range(30), draw.choice([1, 2, 3, 9, 14]))
        ratings += [f"u{user},{item},{draw.randrange(1, 6)},{began + when}" for when, item in enumerate(items)]
    draw.shuffle(ratings[1:])
    (folder / "movies.csv").write_text("\n".join(movies) + "\n")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n")
    return folder


def prepared(source: Path, out: Path, *settings: str) -> Path:
    main(["movielens", "--source", str(source), "--out", str(out), "--k_core", "2", *settings])
    return out


def lines(folder: Path, split: str) -> list[dict[str, Any]]:
    path = folder / "instructions" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_the_lines_that_prepare_writes(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interaction_rows, "BATCH", 7)
    monkeypatch.setattr(interaction_rows, "GROUPS", 2)
    if name == "global_time":  # users whose first item is held out have no instruction, as a warning says
        with pytest.warns(UserWarning, match="no instruction"):
            written = prepared(source, tmp_path / "files", *SETTINGS[name], "--instructions", "files")
    else:
        written = prepared(source, tmp_path / "files", *SETTINGS[name], "--instructions", "files")
    folder = prepared(source, tmp_path / "made", *SETTINGS[name], "--instructions", "interactions")
    assert not (folder / "instructions").exists() and load_card(folder)["instructions"] == "interactions"
    assert load_card(folder)["examples"] == load_card(written)["examples"]
    table = pq.read_table(folder / "interactions.parquet")
    pq.write_table(table, folder / "interactions.parquet", row_group_size=10)  # users over several row groups
    for split in SPLITS:
        expected = lines(written, split)
        rows = InteractionRows(str(folder), split)
        assert [rows.row(number) for number in range(len(rows))] == expected
        again = pickle.loads(pickle.dumps(rows))
        for number in random.Random(0).choices(range(len(expected)), k=20):
            assert again.row(number) == expected[number]
        assert len(again.groups) <= 2
        assert rows.where(3) == f"{folder}/interactions.parquet, example 4 of {split}"


def test_a_source_of_this_kind_gives_the_same_examples(source: Path, tmp_path: Path) -> None:
    assert runs_data.KIND == "interactions"  # runs.data registers it
    folder = prepared(source, tmp_path / "out", *PLAIN)
    files = open_sources([SourceConfig(path=f"{folder}/instructions/train.jsonl")], kinds=KINDS)
    made = open_sources([SourceConfig(path=str(folder), kind="interactions", split="train")], kinds=KINDS)
    assert isinstance(files, Mixture) and isinstance(made, Mixture)
    assert made.fingerprint == files.fingerprint and len(made) == len(files)
    assert [made[number] for number in range(len(made))] == [files[number] for number in range(len(files))]


def test_a_pickled_source_is_small(source: Path, tmp_path: Path) -> None:
    rows = InteractionRows(str(prepared(source, tmp_path / "out", *PLAIN)), "train")
    rows.row(0)
    assert len(pickle.dumps(rows)) < 6000


def test_settings_whose_examples_cannot_be_counted_are_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--instructions files"):
        prepared(source, tmp_path / "out", "--forms", "[request]", "--instructions", "interactions")
    folder = prepared(source, tmp_path / "out", "--forms", "[matching,request]")
    with pytest.raises(ValueError, match="lack facts.*instructions/"):
        InteractionRows(str(folder), "train")


def test_what_is_no_prepared_folder_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a prepared folder"):
        InteractionRows(str(tmp_path), "train")
    folder = prepared(source, tmp_path / "out", *PLAIN)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        InteractionRows(str(folder), "dev")
    path = folder / "interactions.parquet"
    whole = pq.read_table(path)

    pq.write_table(whole.take(np.random.default_rng(0).permutation(len(whole))), path)
    with pytest.raises(ValueError, match="stand together"):
        InteractionRows(str(folder), "train")

    nothing = pa.array([None, *whole.column("user").to_pylist()[1:]])
    pq.write_table(whole.set_column(0, "user", nothing), path)
    with pytest.raises(ValueError, match="empty user"):
        InteractionRows(str(folder), "train")

    strange = pa.array(["strange", *whole.column("item").to_pylist()[1:]])
    pq.write_table(whole.set_column(1, "item", strange), path)
    rows = InteractionRows(str(folder), "train")
    with pytest.raises(ValueError, match="row group 1: item 'strange' is not in items.parquet"):
        rows.row(0)

    rows = InteractionRows(str(folder), "train")
    pq.write_table(whole.slice(0, 5), path)
    with pytest.raises(ValueError, match="changed while in use"):
        rows.row(0)
