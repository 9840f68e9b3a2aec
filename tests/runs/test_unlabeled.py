"""data.unlabeled: which views a batch has, without a trace of labels; and sources that cannot be."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SUBJECTS, task_config
from tiny_runs import changed, tiny_run

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.hold_out import HoldOutConfig
from instructrec_jax.data.prompts import render
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, load, to_yaml
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.training_data import TrainingData
from instructrec_jax.runs.unlabeled import UnlabeledBatches
from instructrec_jax.training.training_config import SemiSupervisedConfig

AUGMENT = AugmentConfig(delete=0.3, swap=0.3, copies=2)
WORDS = "good bad dull bright about old new film book".split()


def unlabeled_rows(count: int = 20, seed: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "text": f"{n} " + " ".join(map(str, rng.choice(WORDS, rng.integers(3, 9)))),
            "label": SUBJECTS[n % 5],
            "id": f"u{n}",
        }
        for n in range(count)
    ]


def config_of(
    checkpoint: Path, folder: Path, rows: list[dict[str, Any]] | None = None, augment: Any = AUGMENT, **changes: Any
) -> Config:
    path = folder / "unlabeled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (unlabeled_rows() if rows is None else rows)))
    config = tiny_run("classification", checkpoint, folder)
    every = {"data__unlabeled": [SourceConfig(str(path), augment=augment)], "data__batch_size": 4}
    return changed(config, **(every | {"semi_supervised": SemiSupervisedConfig("fixmatch", ratio=2.0)} | changes))


def opened(config: Config, multiple: int = 1) -> tuple[TrainingData, RunData, Any]:
    data = RunData(config)
    task = models.open_task(data.config, Path(config.backbone.path))
    return data.training(task, multiple), data, task


def batches_of(config: Config) -> UnlabeledBatches:
    training, _, _ = opened(config)
    found = training.batches.__closure__
    assert found is not None
    (batches,) = [each.cell_contents for each in found if isinstance(each.cell_contents, UnlabeledBatches)]
    return batches


def test_a_pass_has_each_example_once_beside_the_next_of_its_copies(checkpoint: Path, tmp_path: Path) -> None:
    batches = batches_of(config_of(checkpoint, tmp_path))
    assert batches.size == 8 and len(batches.order) == 20
    weak, strong = zip(*(batches.drawn(step)[:2] for step in range(5)), strict=True)  # two passes
    pairs = list(zip(np.concatenate(weak).tolist(), np.concatenate(strong).tolist(), strict=True))
    assert Counter(first for first, _ in pairs).most_common()[-1][1] == 2 and len({first for first, _ in pairs}) == 20
    assert len(set(pairs)) == 40, "each pass has another copy"
    plain = {f"{row['id']}": row["text"] for row in unlabeled_rows()}
    for first, second in pairs:
        one, other = batches.encoded[first].example, batches.encoded[second].example
        assert one.id == other.id and render(one) == plain[one.id]
        assert sorted(set(render(other).split()) - set(render(one).split())) == []  # words left out, or moved
    assert batches.drawn(3)[1].tolist() == batches.drawn(3)[1].tolist()


def test_both_views_of_a_text_lie_in_one_place_of_few_shapes(checkpoint: Path, tmp_path: Path) -> None:
    training, _, _ = opened(config_of(checkpoint, tmp_path), multiple=2)
    shapes = set()
    for host in training.batches(0, 16, None):
        views = host.batch.unlabeled
        assert views is not None and host.views == views.weak.texts.tokens.shape == views.strong.texts.tokens.shape
        np.testing.assert_array_equal(views.weak.own.weights, views.strong.own.weights)
        np.testing.assert_array_equal(views.weak.text_numbers, views.strong.text_numbers)
        assert views.weak.own.weights.sum() == 8 and host.views[0] % 2 == 0
        segments = sum(int((rows.texts.segment_ids > 0).sum()) for rows in (host.batch, views.weak, views.strong))
        assert host.tokens == segments
        shapes.add(host.views)
    assert len(shapes) == 1
    assert 0 < training.weak_share < 0.6


def test_no_view_depends_on_a_label(checkpoint: Path, tmp_path: Path) -> None:
    """Words of an example's label are no more protected than others; other labels, or none: the same views."""
    rows = [{**row, "text": f"{row['text']} {row['label']}"} for row in unlabeled_rows()]
    found = []
    for number, change in enumerate((lambda n: SUBJECTS[n % 5], lambda n: SUBJECTS[(n + 1) % 5], lambda n: None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        own = [{**row, "label": change(n)} for n, row in enumerate(rows)]
        own = [{name: value for name, value in row.items() if value is not None} for row in own]
        found.append(batches_of(config_of(checkpoint, folder, own)))
    first, other, without = found
    for step in range(3):
        for mine, theirs in ((first, other), (first, without)):
            for one, two in zip(mine.texts(step), theirs.texts(step), strict=True):
                for text, same in zip(one.texts, two.texts, strict=True):
                    np.testing.assert_array_equal(text.tokens, same.tokens)
        assert (first.texts(step)[0].own.targets >= 0).all()
        assert (first.texts(step)[0].own.targets != other.texts(step)[0].own.targets).all()
        assert (without.texts(step)[0].own.targets == -1).all()


def test_copies_of_the_file_are_strong_views(checkpoint: Path, tmp_path: Path) -> None:
    """Those that the verb augment writes; a copy without its original is left out."""
    rows = unlabeled_rows(6)
    copies = [{"text": "quite another", "id": f"c{n}", "origin": {"made_from": f"u{n}"}} for n in (0, 2, 2, 99)]
    batches = batches_of(config_of(checkpoint, tmp_path, [*rows, *copies], AugmentConfig()))
    assert len(batches.order) == 6
    seen: dict[str, set[str]] = {}
    for step in range(4):
        weak, strong, _ = batches.drawn(step)
        for one, other in zip(weak.tolist(), strong.tolist(), strict=True):
            seen.setdefault(batches.encoded[one].example.id, set()).add(batches.encoded[other].example.id)
    assert seen == {"u0": {"c0"}, "u1": {"u1"}, "u2": {"c2"}, "u3": {"u3"}, "u4": {"u4"}, "u5": {"u5"}}


@pytest.mark.parametrize("method", ["delete", "swap"])
def test_tagged_texts_keep_their_words(method: str, checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"input": f"{n} good old film".split(), "output": ["other"] * 4} for n in range(8)]
    (tmp_path / "tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(str(tmp_path / "tagged.jsonl"))
    own = [{"input": f"{n} very dull long book"} for n in range(100, 108)]
    task = task_config("token_classification", tmp_path)
    how = {"task": task, "data__train": [source], "data__validation": [], "data__test": []}
    with pytest.raises(ValueError, match=rf"augment\.{method}: views of a tagged text need the same words"):
        opened(config_of(checkpoint, tmp_path, own, AugmentConfig(**{method: 0.5}), **how))
    batches = batches_of(config_of(checkpoint, tmp_path, own, AugmentConfig(typos=0.5), **how))
    weak, strong = batches.texts(0)
    assert weak.own.supervised.sum() == strong.own.supervised.sum() == 8 * 5
    assert (weak.own.labels[weak.own.supervised > 0] == -1).all()
    copy = {**own[0], "id": "c", "origin": {"made_from": "first"}}
    with pytest.raises(ValueError, match="has rewritten copies .* of tagged texts"):
        opened(config_of(checkpoint, tmp_path, [{**own[0], "id": "first"}, copy], AugmentConfig(), **how))


def leaking(config: Config, split: str) -> list[dict[str, Any]]:
    """Unlabeled rows of which one is a case, but for case and punctuation."""
    source = getattr(config.data, split)[0]
    case = json.loads(Path(source.path).read_text().splitlines()[2])
    return [*unlabeled_rows(6), {"text": case["instruction"].upper() + " !", "id": "leak"}]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_cases_are_no_unlabeled_examples(split: str, checkpoint: Path, tmp_path: Path) -> None:
    config = config_of(checkpoint, tmp_path)
    config = config_of(checkpoint, tmp_path, leaking(config, split))
    with pytest.raises(ValueError, match=r"data\.unlabeled: 1 examples of .* are cases .*unlabeled\.jsonl.*line 7"):
        opened(config)
    _, data, _ = opened(changed(config, data__on_bad_example="skip"))
    assert [row.reason for row in data.skipped] == [f"case of data.{split}"]
    batches = batches_of(changed(config, data__on_bad_example="skip"))
    assert len(batches.order) == 6
    with pytest.raises(ValueError, match="data.unlabeled has no usable example"):
        opened(changed(config_of(checkpoint, tmp_path, leaking(config, split)[-1:]), data__on_bad_example="skip"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semi_supervised": SemiSupervisedConfig()}, "data.unlabeled is set, but no method"),
        ({"data__unlabeled": []}, "method is fixmatch, but data.unlabeled names no source"),
        ({"data__hold_out": HoldOutConfig(labels=["war"])}, "data.hold_out holds out examples by their labels"),
        ({"augment": AugmentConfig(delete=2.0)}, r"data\.unlabeled\[0\]\.augment\.delete is 2\.0"),
        ({"rows": []}, "holds no (valid )?(rows|examples)|is empty|no rows"),
        ({"rows": [{"text": "old film", "label": "weather"}]}, "weather"),
        ({"rows": [{"text": "word " * 50}]}, "data.max_length is 32"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        opened(config_of(checkpoint, tmp_path, **changes))


def test_settings_survive_a_yaml_file(checkpoint: Path, tmp_path: Path) -> None:
    config = config_of(checkpoint, tmp_path)
    (tmp_path / "settings.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "settings.yaml") == config
    short = load({"task.type": "classification", "data.unlabeled": "texts.jsonl"})
    assert short.data.unlabeled == [replace(SourceConfig(), path="texts.jsonl")]


def test_rows_count_by_their_mean_number_of_examples(checkpoint: Path, tmp_path: Path) -> None:
    config = config_of(checkpoint, tmp_path, data__batch_size=None, data__batch_rows=2)
    training, _, _ = opened(config)
    assert batches_of(config).size == round(2 * 24 / training.epoch_steps)
