"""Lists of examples as data of training: kept in the run directory, which then needs nothing else."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers import SUBJECTS, examples, task_config
from tiny_runs import tiny_run

from instructrec_jax.data.example import Example, Message
from instructrec_jax.files import read_jsonl
from instructrec_jax.runs.config import Config, load
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.directory import RunLock, check_run_dir, start_run_dir
from instructrec_jax.runs.given import with_given, write_given
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.train import train, train_run


def listed(count: int, seed: int = 0) -> list[Example]:
    """Examples of as many words each."""
    rng = np.random.default_rng(seed)
    subjects = [str(rng.choice(SUBJECTS)) for _ in range(count)]
    return [Example(instruction=f"a good film about {subject}", output=subject) for subject in subjects]


def test_the_run_directory_needs_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_run("classification", checkpoint, tmp_path, steps=1, data__train=[], data__validation=[])
    config = replace(config, data=replace(config.data, test=[]))
    run = train_run(config, train=listed(12))
    own = load(run.path / "config.yaml")
    assert [source.path for source in own.data.train] == [str(run.path / "given" / "train.jsonl")]
    train(replace(own, steps=2))  # resumes from the files alone
    config = replace(config, steps=3)
    with pytest.raises(ValueError, match="the training data changed since"):
        train_run(config, train=listed(12)[1:])
    assert len(read_jsonl(run.path / "given" / "train.jsonl")) == 12  # a refused list is not written
    moved = Run.open(shutil.move(run.path, tmp_path / "moved"))
    assert list(moved.data.examples("train")) == listed(12) and moved.checkpoint == 2


def begin(config: Config, **given: list[Example]) -> Config:
    """Starts a run as training does, without training."""
    config, rows = with_given(config, given)  # type: ignore[arg-type]
    with RunLock(config.run_dir) as lock:
        start_run_dir(config, check_run_dir(config), lock, RunData(config, rows).source("train").fingerprint, rows)  # type: ignore[union-attr]
    return config


def test_files_of_a_run_that_starts_over(tmp_path: Path) -> None:
    config = Config(run_dir=str(tmp_path / "run"), task=ClassificationConfig())
    folder = tmp_path / "run" / "given"
    began = begin(config, train=listed(8), validation=listed(3), test=listed(4))
    (folder / "own.txt").touch()
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    begin(config, train=listed(8), validation=listed(3), test=listed(2))  # a test set may change on resume
    assert len(read_jsonl(folder / "test.jsonl")) == 2
    (tmp_path / "run" / "config.yaml").unlink()  # as if killed between the files and the settings
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    begin(config, train=listed(8), validation=listed(3), test=listed(2))
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    begin(replace(began, overwrite=True, data=replace(began.data, test=[])))  # keeps the files that it reads
    assert sorted(path.name for path in folder.iterdir()) == ["own.txt", "train.jsonl", "validation.jsonl"]
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    begin(replace(config, overwrite=True), train=listed(5))
    assert sorted(path.name for path in folder.iterdir()) == ["own.txt", "train.jsonl"]


def test_a_folder_of_the_user_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(ValueError, match="not a run directory"):
        begin(Config(run_dir=str(tmp_path), task=ClassificationConfig()), train=listed(8))


CONVERSATION = Example(
    instruction="", messages=(Message("user", "hello"), Message("assistant", "no", learn=False), Message("user", "so")),
    output="yes", system="be kind",
)  # fmt: skip
WORDS = Example(instruction="find", input="a b  c", output=("O", "O", "B"), words=("a", "b ", "c"))


@pytest.mark.parametrize(
    "made",
    [
        examples("multitask", 12),
        examples("retrieval", 6),
        examples("multilabel", 6),
        [replace(each, output=None) for each in examples("classification", 4)],
        [CONVERSATION, replace(CONVERSATION, output=None)],
        [WORDS, replace(WORDS, origin={"template": "x"}, candidates=("a", "b"))],
        [Example(instruction="half a pair ’ \u2028 and a line\nbreak", output=1.5), Example(instruction="x", output=0)],
    ],
)
def test_examples_are_read_back_as_they_were_given(made: list[Example], tmp_path: Path) -> None:
    config, given = with_given(Config(run_dir=str(tmp_path), task=ClassificationConfig(labels=[])), {"train": made})
    write_given(tmp_path, given)
    config = replace(config, task=task_config("language_model", tmp_path))
    memory, file = RunData(config, given), RunData(config)
    assert list(memory.examples("train")) == made == list(file.examples("train"))
    assert memory.source("train").fingerprint == file.source("train").fingerprint  # type: ignore[union-attr]


def test_records_have_the_settings_fields_or_usual_names(tmp_path: Path) -> None:
    records = [{"story": "dull", "label": np.int64(0)}, {"story": "warm", "label": 1}]
    table = pandas.DataFrame(records)
    settings = {"task.type": "classification", "run_dir": str(tmp_path)}
    config, given = with_given(
        load(settings), {"train": [{"text": "dull", "label": "bad"}, {"text": "warm", "label": "good"}]}
    )
    assert RunData(config, given).config.task.labels == ["bad", "good"]  # type: ignore[attr-defined]
    fields = {"instruction": "story", "output": "label", "label_names": {0: "bad", 1: "good"}}
    config = load(settings | {"data.train": {"fields": fields}})
    with pytest.raises(ValueError, match="data.train has a source without path"):
        RunData(config)
    config, given = with_given(config, {"train": records, "validation": table, "test": iter(records)})
    assert [e.output for e in RunData(config, given).examples("test")] == ["bad", "good"]
    assert config.data.train[0].fields.instruction == "story"


BAD: dict[str, tuple[object, str]] = {
    "an empty list": ([], "train is empty"),
    "a path": ("reviews.csv", "data.train"),
    "one example": (Example(instruction="x"), "train is one Example"),
    "one record": ({"text": "x"}, "train is one"),
    "a number": (3, "train is int 3"),
    "texts": ([Example(instruction="x"), "y"], r"train\[1\] is str 'y'"),
    "both kinds": ([{"text": "x"}, Example(instruction="x")], r"train\[1\]"),
    "some without output": ([Example(instruction="x", output="a"), Example(instruction="y")], r"train\[1\].*output"),
    "an unusable output": ([Example(instruction="x", output=float("nan"))], r"train\[0\].*output"),
    "a list for a tuple": ([Example(instruction="x", output=["a"])], r"train\[0\].*output"),  # type: ignore[arg-type]
    "an empty instruction": ([Example(instruction="", output="a")], r"train\[0\].*instruction"),
    "an object": ([{"text": object()}], r"train\[0\].*JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_one_clear_error(name: str, tmp_path: Path) -> None:
    given, named = BAD[name]
    with pytest.raises(ValueError, match=named) as error:
        with_given(Config(run_dir=str(tmp_path)), {"train": given})  # type: ignore[dict-item]
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (listed(3) + [Example(instruction="x", output="cooking")], r"train\[3\].*cooking"),
        ([replace(each, output=None) for each in listed(4)], r"train\[0\]"),
        ([{"text": "x"}], "output"),
    ],
)
def test_what_the_task_cannot_use_is_named_and_nothing_is_written(
    given: Iterable[Example | Mapping[str, object]], named: str, checkpoint: Path, tmp_path: Path
) -> None:
    config = tiny_run("classification", checkpoint, tmp_path)
    with pytest.raises(ValueError, match=named):
        train_run(config, train=given)
    assert not Path(config.run_dir).exists()
