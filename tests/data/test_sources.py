"""`open_sources`: the door that training and evaluation use."""

import json

import draccus
import pytest

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.skipped import SkippedRow, summarize_skipped, write_skipped
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import ListSource, open_sources


def jsonl(path, records):
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def good(count, start=0):
    return [{"instruction": f"问 {n} 🎬", "output": "yes", "id": "same"} for n in range(start, start + count)]


BROKEN = [
    *good(2),
    '{"instruction": "a", "output": "yes"',  # line 3
    {"instruction": "a"},  # 4
    {"instruction": "a", "output": "maybe"},  # 5
    {"instruction": "", "output": "yes"},  # 6
    {"instruction": ["a"], "output": "yes"},  # 7
    '{"instruction": "a", "output": NaN}',  # 8
    '{"instruction": "a\\u0000b", "output": "yes"}',  # 9
    *good(2, 2),
]


def test_a_file_becomes_a_mixture(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", good(5))
    mixture = open_sources([SourceConfig(path=path, task="ask")])
    assert isinstance(mixture, Mixture) and len(mixture) == 5 and mixture.skipped == []
    expected = [Example(instruction=f"问 {n} 🎬", output="yes", id="same", task="ask") for n in range(5)]
    assert [mixture[i] for i in range(5)] == expected
    assert sorted(mixture.example_at(p).instruction for p in range(5)) == sorted(e.instruction for e in expected)


def test_bad_rows_name_file_line_field_and_remedy(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", BROKEN)
    with pytest.raises(ValueError) as caught:
        open_sources([SourceConfig(path=path)], labels=["yes", "no"])
    text = str(caught.value)
    assert "7 bad rows" in text and "on_bad_example: skip" in text
    for line, field, reason in [
        (3, "", "malformed line"),
        (4, "output", "missing column"),
        (5, "output", "unknown label"),
        (6, "instruction", "empty text"),
        (7, "instruction", "wrong type"),
        (8, "output", "not a finite number"),
        (9, "instruction", "unusable character"),
    ]:
        place = f"{path}, line {line}" + (f", field '{field}'" if field else "")
        assert f"{place}: {reason}: " in text


def test_errors_stop_early(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*good(1), *["{"] * 1000])
    with pytest.raises(ValueError, match="10 bad rows") as caught:
        open_sources([SourceConfig(path=path)])
    assert str(caught.value).count("\n") < 15


def test_skipped_rows_are_left_out_counted_and_kept(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", BROKEN)
    mixture = open_sources([SourceConfig(path=path)], labels=["yes", "no"], on_bad_example="skip")
    assert [mixture[i].instruction for i in range(len(mixture))] == [f"问 {n} 🎬" for n in range(4)]
    assert [row.where for row in mixture.skipped] == [f"{path}, line {n}" for n in range(3, 10)]

    written = write_skipped(tmp_path, mixture.skipped)
    rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert written.name == "skipped.jsonl" and [SkippedRow(**row) for row in rows] == mixture.skipped
    summary = summarize_skipped(mixture.skipped)
    assert summary.startswith("7 ") and "1 missing column (output)" in summary
    assert f"{path}, line 3" in summary and "\n" not in summary

    assert write_skipped(tmp_path, []) is None and not written.exists()
    assert summarize_skipped([]) == ""


def test_zero_usable_rows_is_an_error_even_when_skipping(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ["{", {"instruction": "a"}])
    for choice in ("error", "skip"):
        with pytest.raises(ValueError, match="2 (bad )?rows.*\n.*line 1.*\n.*line 2"):
            open_sources([SourceConfig(path=path)], on_bad_example=choice)


def test_the_fingerprint_is_that_of_the_examples(tmp_path):
    config = SourceConfig(path=jsonl(tmp_path / "a.jsonl", good(4)))
    here = open_sources([config]).sources[0]
    (tmp_path / "elsewhere").mkdir()
    there = open_sources([SourceConfig(path=jsonl(tmp_path / "elsewhere" / "b.jsonl", good(4)))]).sources[0]
    in_memory = ListSource([here[i] for i in range(4)])
    broken = SourceConfig(path=jsonl(tmp_path / "c.jsonl", BROKEN))
    skipping = open_sources([broken], labels=["yes"], on_bad_example="skip").sources[0]
    assert here.fingerprint == there.fingerprint == in_memory.fingerprint == skipping.fingerprint
    remapped = SourceConfig(path=config.path, fields=FieldsConfig(instruction="Say: {instruction}"))
    retasked = SourceConfig(path=config.path, task="t")
    assert len({open_sources([c]).sources[0].fingerprint for c in (config, remapped, retasked)}) == 3


def test_several_sources(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", good(4))
    b = jsonl(tmp_path / "b.jsonl", good(12, 4))
    configs = [SourceConfig(path=a), SourceConfig(path=b), SourceConfig(path=b)]
    mixture = open_sources(configs, seed=3)
    assert len(mixture) == 28 and mixture.draws.tolist() == [4, 12, 12]
    assert [source.name for source in mixture.sources] == [a, b, f"{b} (2)"]
    weighted = [SourceConfig(path=a, weight=3), SourceConfig(path=b, weight=1)]
    assert open_sources(weighted).draws.tolist() == [12, 4]
    assert sorted(open_sources(configs, temperature=1e9).draws.tolist()) == [9, 9, 10]
    assert open_sources(configs, size_cap=4).draws.sum() == 28


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": ""}, "path"),
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"split": "test"}, "kind file.*split"),
        ({"subset": "x"}, "kind file.*subset"),
        ({"streaming": True, "targets": "b.txt"}, "kind file.*streaming"),
        ({"streaming": True, "kind": "tfds"}, "kind tfds.*streaming"),
        ({"weight": -1.0}, "weight -1"),
    ],
)
def test_settings_without_sense_are_errors(tmp_path, change, message):
    path = jsonl(tmp_path / "a.jsonl", good(4))
    with pytest.raises(ValueError, match=message):
        open_sources([SourceConfig(**{"path": path, **change})])


def test_more_settings_without_sense(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", good(4))
    with pytest.raises(ValueError, match="sources"):
        open_sources([])
    with pytest.raises(ValueError, match="weight"):
        open_sources([SourceConfig(path=path, weight=1), SourceConfig(path=path)])
    with pytest.raises(ValueError, match="on_bad_example"):
        open_sources([SourceConfig(path=path)], on_bad_example="ignore")


def test_lists():
    examples = [Example(instruction="a", output="yes"), Example(instruction="b", output="no")]
    source = ListSource(examples, "mine", "t")
    assert len(source) == 2 and source[1] is examples[1] and source.task == "t"
    with pytest.raises(BadExample, match=r"mine\[1\], field 'output': unknown label"):
        ListSource(examples, "mine", labels=["yes"])
    with pytest.raises(BadExample, match=r"mine\[0\], field 'instruction'"):
        ListSource([Example(instruction=" ")], "mine")


def test_settings_from_yaml_and_help(tmp_path):
    (tmp_path / "a.yaml").write_text("path: x\nfields:\n  input: null\n  label_names: {0: neg, 1: pos}\n")
    config = draccus.parse(SourceConfig, tmp_path / "a.yaml", args=["--fields.instruction", "Is {text} good?"])
    assert config.fields == FieldsConfig(instruction="Is {text} good?", input=None, label_names={0: "neg", 1: "pos"})
