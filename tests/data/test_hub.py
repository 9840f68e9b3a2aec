"""HuggingFace `datasets` (map-style and streamed) and `tensorflow-datasets`, from folders written here."""

import json
import subprocess
import sys

import datasets
import pytest

from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.sources import SourceConfig, StreamSource, open_sources

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


def stream_of(count=23, block=5, shards=3, bad=(), **settings):
    rows = [{"instruction": "" if n in bad else f"{n}", "output": "x"} for n in range(count)]
    dataset = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    return StreamSource(dataset, FieldMapper(FieldsConfig()), "s", shuffle_block=block, **settings)


def numbers(examples):
    return [int(e.instruction) for e in examples]


def test_a_stream_shuffles_within_blocks_and_by_epoch():
    stream = stream_of()
    epochs = [numbers(stream) for _ in range(3)]
    for epoch in epochs:
        for start in range(0, 23, 5):
            assert sorted(epoch[start : start + 5]) == list(range(start, min(start + 5, 23)))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [numbers(stream_of())] == epochs[:1] and numbers(stream_of(seed=1)) != epochs[0]
    assert numbers(stream_of(block=1)) == list(range(23))


@pytest.mark.parametrize("count, block", [(23, 5), (20, 5), (7, 100), (9, 1)])
def test_a_stream_resumes_after_any_example(count, block):
    stream, walked, states = stream_of(count, block), [], []
    states.append(stream.get_state())
    for _ in range(2):
        for example in stream:
            walked.append(example)
            states.append(json.loads(json.dumps(stream.get_state())))
    assert len(walked) == 2 * count
    for place, state in enumerate(states):
        other = stream_of(count, block)
        other.set_state(state)
        rest = [e for _ in range(3) for e in other][: len(walked) - place]
        assert rest == walked[place:]


def test_a_stream_goes_back():
    stream = stream_of()
    first = numbers(stream)
    stream.set_state(None)  # between epochs: nothing to undo
    second = numbers(stream)
    assert first != second
    rows = iter(stream)
    third = [int(next(rows).instruction) for _ in range(8)]
    stream.set_state(None)
    assert numbers(stream)[:8] == third


def test_bad_rows_of_a_stream():
    with pytest.raises(ValueError, match="s, row 7, field 'instruction': empty text"):
        list(stream_of(bad=[7]))
    stream = stream_of(bad=[7, 11], on_bad_example="skip")
    assert sorted(numbers(stream)) == [n for n in range(23) if n not in (7, 11)]
    state = stream.get_state()
    list(stream)
    assert [row.where for row in sorted(stream.skipped, key=lambda r: len(r.where))] == [
        "s, row 7",
        "s, row 11",
    ]
    other = stream_of(bad=[7, 11], on_bad_example="skip")
    other.set_state(state)
    assert "skipped" not in state and other.skipped == []  # skipped.jsonl has them, not each checkpoint
    other.know_skipped(stream.skipped)
    assert other.skipped == stream.skipped
    with pytest.raises(ValueError, match="source"):
        list(stream_of(4, bad=range(4), on_bad_example="skip"))


def test_a_stream_refuses_another_shuffle():
    state = stream_of().get_state()
    with pytest.raises(ValueError, match="shuffle_block"):
        stream_of(seed=1).set_state(state)
    with pytest.raises(ValueError, match="shuffle_block 0"):
        stream_of(block=0)


def test_a_stream_says_what_it_cannot_promise(tmp_path, caplog):
    labelled().save_to_disk(tmp_path / "one")
    config = SourceConfig(path=str(tmp_path / "one"), kind="datasets", fields=FIELDS, streaming=True, shuffle_block=1)
    stream = open_sources([config])
    assert pairs(stream) == EXPECTED
    assert len(caplog.records) == 1 and "streaming: false" in caplog.text
    with pytest.raises(ValueError, match="stream"):
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
