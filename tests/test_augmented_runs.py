"""data.train[].augment in whole runs: resumed exactly, refused where it cannot be, and true targets in every task."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import task_cases
from helpers import assert_close, task_config
from task_cases import CASES, SLOW, after_one_step, built, examples_of, named, packed, texts_of
from tiny_runs import changed, final_parameters, rows, tiny_run

from instructrec_jax import train
from instructrec_jax.augmentation.augmenter import METHODS, AugmentConfig
from instructrec_jax.data.augmented import ExampleAugmenter
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.config import Config, load, to_yaml
from instructrec_jax.runs.data import RunData
from instructrec_jax.tasks.base import Encoded

networks = task_cases.networks  # a fixture
AUGMENT = AugmentConfig(delete=0.2, swap=0.3, typos=0.3, copies=2)


def augmented_run(checkpoint: Path, folder: Path, augment: AugmentConfig = AUGMENT, **changes: Any) -> Config:
    config = tiny_run("classification", checkpoint, folder, **changes)
    return changed(config, data__train=[replace(source, augment=augment) for source in config.data.train])


@pytest.mark.parametrize(
    "batch", [{}, pytest.param({"data__batch_size": None, "data__batch_rows": 8}, marks=SLOW)], ids=["examples", "rows"]
)
def test_a_resumed_run_sees_the_same_copies(batch: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    """24 examples, 8 a step: the checkpoint of step 4 lies in the second pass, which draws other versions."""
    whole = augmented_run(checkpoint, tmp_path, steps=8, evaluation__every=0, **batch)
    train.train(whole)
    again = changed(whole, run_dir=str(tmp_path / "again"))
    shutil.copytree(whole.run_dir, again.run_dir)
    for step in (6, 8):
        shutil.rmtree(Path(again.run_dir) / "checkpoints" / str(step), ignore_errors=True)
    train.train(again)
    assert rows(again.run_dir) == rows(whole.run_dir)
    assert_close(final_parameters(again.run_dir, 8), final_parameters(whole.run_dir, 8), atol=0)


def drawn(config: Config, epochs: int) -> list[list[Example]]:
    """The examples of the batches of each epoch."""
    from instructrec_jax.runs import model as models

    data = RunData(config)
    task = models.open_task(data.config, Path(config.backbone.path))
    seen: list[Encoded] = []
    gather = task.gather

    def noting(encoded: Any, rng: Any) -> Any:
        seen.extend(encoded)
        return gather(encoded, rng)

    task.gather = noting  # type: ignore[method-assign]
    training = data.training(task, 1)
    steps = round(training.epoch_steps)
    found = []
    for epoch in range(epochs):
        seen.clear()
        list(training.batches(epoch * steps, (epoch + 1) * steps, None))
        found.append([e.example for e in seen])
    return found


def test_each_pass_draws_every_example_once_in_some_version(checkpoint: Path, tmp_path: Path) -> None:
    config = augmented_run(checkpoint, tmp_path)
    plain = {e.id: e for e in RunData(config).examples("train")}
    assert len(plain) == 24  # the originals alone: what labels are read from, and baselines
    epochs = drawn(config, 3)
    for epoch in epochs:
        assert sorted(e.id for e in epoch) == sorted(plain)
    versions = Counter((e.id, "made_from" in e.origin) for epoch in epochs for e in epoch)
    assert all(versions[name, False] == 1 and versions[name, True] == 2 for name in plain)
    assert drawn(config, 1)[0] == epochs[0]
    assert drawn(changed(config, seed=3), 1)[0] != epochs[0]


def test_examples_that_become_several_or_none_keep_their_versions(checkpoint: Path, tmp_path: Path) -> None:
    """Windows of a context, and copies that are too long."""
    rows = [
        {
            "instruction": "good film",
            "input": " ".join(["old book about the bad dull film"] * (1 + n % 4)) + " war",
            "output": "war",
            "id": str(n),
        }
        for n in range(8)
    ]
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = augmented_run(checkpoint, tmp_path, task=task_config("span", tmp_path))
    source = SourceConfig(str(tmp_path / "spans.jsonl"), augment=AugmentConfig(delete=0.3, typos=0.2, copies=2))
    config = changed(config, data__train=[source], data__batch_size=1, data__max_length=24)
    for epoch in drawn(config, 3):
        assert {e.id for e in epoch} == {str(n) for n in range(8)}
        assert all(e.input is not None and "war" in e.input.split() for e in epoch)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_training_data_are_augmented(split: str, checkpoint: Path, tmp_path: Path) -> None:
    config = augmented_run(checkpoint, tmp_path)
    sources = [replace(source, augment=AUGMENT) for source in getattr(config.data, split)]
    config = changed(config, **{f"data__{split}": sources})
    with pytest.raises(ValueError, match=f"data.{split} has a source with augment, but only data.train is augmented"):
        RunData(config).examples(split)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"data.{split} has a source with augment"):
        train.train(config)
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delete": 2.0}, r"data\.train\[0\]\.augment\.delete is 2\.0: a rate is a share of words, from 0 to 1\."),
        ({"delete": 0.0, "swap": 0.0, "typos": 0.0}, r"data\.train\[0\]\.augment sets no method"),
        ({"synonyms": 0.1, "thesaurus": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    config = augmented_run(checkpoint, tmp_path, replace(AUGMENT, **changes))
    with pytest.raises(ValueError, match=message):
        train.train(config)


def test_streams_and_tasks_that_split_examples_are_refused(
    checkpoint: Path, language_models: dict[str, Path], tmp_path: Path
) -> None:
    config = augmented_run(checkpoint, tmp_path)
    stream = changed(config, data__train=[replace(source, streaming=True) for source in config.data.train])
    with pytest.raises(ValueError, match="augment needs sources of known size"):
        train.train(stream)
    turns = [{"role": role, "content": "old film"} for role in ("user", "assistant") * 3]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": turns, "id": n}) + "\n" for n in "abc"))
    source = SourceConfig(str(tmp_path / "talks.jsonl"), augment=AUGMENT)
    changes = {"task": task_config("dialogue", tmp_path), "data__train": [source], "data__max_length": 64}
    talking = changed(config, backbone__path=str(language_models["t5"]), **changes)
    with pytest.raises(ValueError, match="augment cannot be used with this task, which makes examples of its own"):
        drawn(talking, 1)


def test_settings_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "task: {type: classification}\ndata: {train: [{path: a.csv, augment: {delete: 0.1, copies: 2}}]}\n"
    )
    config = load(tmp_path / "a.yaml")
    assert config.data.train[0].augment == AugmentConfig(delete=0.1, copies=2)
    (tmp_path / "b.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "b.yaml") == config
    (tmp_path / "a.yaml").write_text("data: {train: [{path: a.csv, augment: {deletes: 0.1}}]}\n")
    with pytest.raises(ValueError, match="there is no setting 'data.train.augment.deletes'. Did you mean"):
        load(tmp_path / "a.yaml")


# ---------------------------------------------------------------- every task


def copies_of(name: str, config: Any) -> tuple[list[Example], list[Example]]:
    """(examples of a case, a changed copy of each, as far as the task allows)."""
    made = examples_of(name)
    how = {method: 0.4 for method in METHODS if method != "synonyms" and method in config.augmentations(made[0].task)}
    augment = ExampleAugmenter(AugmentConfig(**how), 7, (), config.has_tags)
    return made, [augment(example, 1) for example in made]


AUGMENTED = [name for name in CASES if name.partition(",")[0] not in ("sequence", "transcription", "contrastive")]


@pytest.mark.parametrize("name", CASES)
def test_targets_are_kept_or_carried_along(name: str, tmp_path: Path) -> None:
    kind = name.partition(",")[0]
    config = task_config(kind, tmp_path / "catalogue", **CASES[name].settings)
    if name not in AUGMENTED:
        assert config.augmentations("") == ()
        return
    made, copies = copies_of(name, config)
    assert sum(one != other for one, other in zip(made, copies, strict=True)) == len(made)
    for one, other in zip(made, copies, strict=True):
        if config.has_tags(one.task):
            words = (other.input or other.instruction).split()
            assert isinstance(one.output, tuple) and isinstance(other.output, tuple) and len(words) == len(other.output)
            assert not Counter(other.output) - Counter(one.output)
        else:
            assert other.output == one.output
        assert (other.candidates, other.history, other.media) == (one.candidates, one.history, one.media)
        if kind in ("span", "extractive_summarization"):
            assert other.input is not None and str(one.output) in other.input


@pytest.mark.parametrize("name", named(AUGMENTED, [name for name in AUGMENTED if name != "classification"]))
def test_a_step_on_copies(name: str, networks: Any, tmp_path: Path) -> None:
    """The loss of copies is a number, over as many targets as before where these are not in the text."""
    kind, case = name.partition(",")[0], CASES[name]
    config = task_config(kind, tmp_path / "catalogue", **case.settings)
    weights = []
    for records in copies_of(name, config):
        made = built(config, records, case.network, networks, dropout=True, lora=False)
        loss, weight, _ = after_one_step(made, packed(made, texts_of(made.task, made.encoded)))
        assert np.isfinite(loss) and weight > 0
        weights.append(weight)
    in_text = ("token_classification", "masked_lm", "span", "extractive_summarization", "multitask")
    assert kind in in_text or weights[0] == weights[1]
    jax.clear_caches()
