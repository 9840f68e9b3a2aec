"""HuggingFace `datasets` (map-style and streamed) and `tensorflow-datasets`, from folders written here."""

import json
import subprocess
import sys

import datasets
import pytest

from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources

FIELDS = FieldsConfig(instruction="Is this good? {text}", output="label")
ROWS = {"text": [f"电影 {n} 🎬" for n in range(10)], "label": [n % 2 for n in range(10)]}
EXPECTED = [(f"Is this good? 电影 {n} 🎬", ["bad", "good"][n % 2]) for n in range(10)]


def labelled():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    return datasets.Dataset.from_dict(ROWS, features=features)


def pairs(examples):
    return [(e.instruction, e.output) for e in examples]


def all_of(mixture):
    return pairs(mixture[i] for i in range(len(mixture)))


def test_a_saved_data_set(tmp_path):
    labelled().save_to_disk(tmp_path / "one 数据")
    config = SourceConfig(path=str(tmp_path / "one 数据"), kind="datasets", fields=FIELDS)
    assert all_of(open_sources([config], labels=["bad", "good"])) == EXPECTED
    config.split = "test"
    with pytest.raises(ValueError, match="split: "):
        open_sources([config])


def test_saved_splits(tmp_path):
    datasets.DatasetDict(train=labelled(), test=labelled().select([3])).save_to_disk(tmp_path / "two")
    config = SourceConfig(path=str(tmp_path / "two"), kind="datasets", fields=FIELDS)
    assert len(open_sources([config])) == 10
    config.split = "test"
    assert all_of(open_sources([config])) == EXPECTED[3:4]
    config.split = "dev"
    with pytest.raises(ValueError, match="'dev'.*train, test"):
        open_sources([config])


def test_a_folder_of_data_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    with open(tmp_path / "data" / "train.jsonl", "w", encoding="utf-8") as stream:
        for text, label in zip(ROWS["text"], ROWS["label"], strict=True):
            stream.write(json.dumps({"text": text, "label": label}) + "\n")
    fields = FieldsConfig(instruction="Is this good? {text}", output="label", label_names={0: "bad", 1: "good"})
    config = SourceConfig(path=str(tmp_path / "data"), kind="datasets", fields=fields)
    assert all_of(open_sources([config])) == EXPECTED
    config.split = "train[2:4]"
    assert all_of(open_sources([config])) == EXPECTED[2:4]
    config.split, config.streaming, config.shuffle_block = "train", True, 1
    assert pairs(open_sources([config])) == EXPECTED
    config.split = "dev"
    with pytest.raises(ValueError, match="split dev.*path"):
        open_sources([config])


def test_bad_rows_of_a_data_set(tmp_path):
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": None, "output": "b"},
        {"instruction": "c", "output": "d"},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
    config = SourceConfig(path=str(tmp_path / "d"), kind="datasets", name="mine")
    with pytest.raises(ValueError, match=r"mine\[1\], field 'instruction': empty text"):
        open_sources([config])
    mixture = open_sources([config], on_bad_example="skip")
    assert all_of(mixture) == [("a", "b"), ("c", "d")]
    config.fields = FieldsConfig(instruction="prompt")
    with pytest.raises(ValueError, match="'prompt'.*instruction, output"):
        open_sources([config])


def test_a_stream_says_what_it_cannot_promise(tmp_path, caplog):
    labelled().save_to_disk(tmp_path / "one")
    config = SourceConfig(path=str(tmp_path / "one"), kind="datasets", fields=FIELDS, streaming=True, shuffle_block=1)
    stream = open_sources([config])
    assert pairs(stream) == EXPECTED
    assert len(caplog.records) == 1 and "streaming: false" in caplog.text
    with pytest.raises(ValueError, match="stream.*weight|weight.*stream"):
        open_sources([config, config])


TFDS = """
import sys
import tensorflow_datasets as tfds

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["bad", "good"]),
                    "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"]))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, downloads):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(10):
            yield n, {"text": f"电影 {n} 🎬", "label": n % 2, "tags": [n % 2, 1]}

builder = Tiny(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()

from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.sources import SourceConfig, open_sources

fields = FieldsConfig(instruction="Is this good? {text}", output="label")
config = SourceConfig(path=str(builder.data_path), kind="tfds", fields=fields)
mixture = open_sources([config], labels=["bad", "good"])
found = sorted((mixture[i].instruction, mixture[i].output) for i in range(len(mixture)))
assert found == [(f"Is this good? 电影 {n} 🎬", ["bad", "good"][n % 2]) for n in range(10)], found

config.fields = FieldsConfig(instruction="text", output="tags")
mixture = open_sources([config])
assert {mixture[i].output for i in range(len(mixture))} == {("O", "B"), ("B", "B")}

config.split = "test"
try:
    open_sources([config])
except ValueError as error:
    assert "split test" in str(error), error
else:
    raise AssertionError("there is no split test")
assert "tensorflow" not in sys.modules
"""


def test_array_records_without_tensorflow(tmp_path):
    for package in ("tensorflow_datasets", "array_record", "importlib_resources"):
        pytest.importorskip(package)
    # In a process of its own: other tests may have loaded TensorFlow into this one.
    done = subprocess.run([sys.executable, "-c", TFDS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"instructrec_jax\[tfds\]"):
        open_sources([SourceConfig(path="imdb_reviews", kind="tfds")])
