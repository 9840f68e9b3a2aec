"""The configuration as YAML: read back as it was meant, whatever the names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from byte_tokenizer import byte_tokenizer

from instructrec_jax.preparation.inspection.sizing import Network
from instructrec_jax.preparation.inspection.splitting import SPLITS, Parts
from instructrec_jax.preparation.inspection.table import Guess, Setting
from instructrec_jax.preparation.inspection.writing import WIDTH, comment, configuration, entry, flow

ODD: list[Any] = [
    *("plain", "a: b", "#x", "- y", "null", "true", "007", "1e3", "", " ", "it's", '"', "{x}", "[a", "a\nb", "\t"),
    *("电影 🎬", "\u2028", "\x07", "x" * 500, "a # b", "%", "@a", "&a", "*a", "!a", "|", ">", "?", "~", "=x"),
    *(3, 0.5, 1e-05, 1e22, True, None, [], {}, ["a, b", ["c"]], {"a: b": [1, None]}, {0: "false", 1: "true"}),
]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_value_is_read_back(value: Any) -> None:
    text = flow(value)
    assert ("\n" in text) == (value == "a\nb")
    assert yaml.safe_load(f"a: {text}\nb: 1") == {"a": value, "b": 1}
    assert yaml.safe_load(f"a:\n  - b: {text}  # why") == {"a": [{"b": value}]}
    assert yaml.safe_load(f"a: [{text}, 1]") == {"a": [value, 1]}


@pytest.mark.parametrize("text", ["one two " * 100, "x" * 300 + " y", "a\nb", "\x00 \ud800 \ufeff é 🎬 #", ""])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_comments_are_comments_of_bounded_width(text: str, depth: int) -> None:
    lines = comment(text, depth)
    assert yaml.safe_load("\n".join([*lines, "a: 1"])) == {"a": 1}
    for line in lines:
        assert line.startswith("  " * depth + "#") and "\n" not in line
        assert len(line) <= WIDTH or len(line.split()) == 2  # a word that is longer by itself
    words = " ".join(line.strip().removeprefix("#") for line in lines).split()
    assert words == [w for w in text.replace("\x00", " ").replace("\ud800", " ").replace("\ufeff", " ").split()]


def test_a_reason_stands_beside_its_value_or_above_it() -> None:
    assert entry("steps", Setting(3)) == ["steps: 3"]
    assert entry("steps", Setting(3, "few rows"), 1) == ["  steps: 3  # few rows"]
    *above, line = entry("steps", Setting(3, "many words " * 30))
    assert line == "steps: 3" and len(above) > 1 and all(each.startswith("# ") for each in above)
    assert entry("steps", Setting(3, "two\nlines")) == ["steps: 3  # two lines"]


def written(name: str, rows: dict[str, list[int]], sizes: dict[str, Setting], exact: bool = True) -> Any:
    guess = Guess(
        {"type": Setting("classification", "two values"), "labels": Setting([name, "b"])},
        {"instruction": Setting(name, "the text"), "output": Setting("label"), "ignore": Setting([name], "not read")},
        (name,),
        "label",
    )
    network = Network(name, "encoder", 512, byte_tokenizer(), exact)
    split = [SPLITS.index(name) for name in SPLITS for _ in rows[name]]
    parts = Parts(np.array(split), "10% test: by seed 0")
    text = configuration(Path(f"{name}.yaml"), [name], guess, network, parts, Path("my.data"), sizes, ["3 rows left"])
    return text, yaml.safe_load(text)


SIZES = {"steps": Setting(20), "batch_size": Setting(8), "max_length": Setting(32), "every": Setting(2)}
SIZES |= {"learning_rate": Setting(5e-05)}


@pytest.mark.parametrize("name", ["plain", "a: b", "#1", "电影 🎬", "it's", "- y", "a\nb"])
def test_the_whole_file_is_read_back(name: str) -> None:
    text, found = written(name, {"train": [0, 1, 2], "validation": [3], "test": []}, SIZES)
    fields = {"instruction": name, "output": "label", "ignore": [name]}
    assert found["run_dir"] == f"runs/{name}" and found["backbone"] == {"path": name} and "lora" not in found
    assert found["task"] == {"type": "classification", "labels": [name, "b"]}
    assert found["data"]["train"] == [{"path": "my.data/train.jsonl", "fields": fields}]
    assert "test" not in found["data"] and "truncate" not in found["data"]
    assert (found["data"]["batch_size"], found["data"]["max_length"]) == (8, 32)
    assert float(found["optimizer"]["learning_rate"]) == 5e-05
    assert found["evaluation"] == found["checkpoint"] == {"every": 2}
    assert "# 3 rows left" in text and "# 3 rows" in text and "# two values" in text


def test_settings_that_only_some_data_need() -> None:
    more = {"rank": Setting(16), "truncate": Setting("right")}
    _, found = written("plain", {"train": [0], "validation": [1], "test": [2]}, SIZES | more)
    assert found["lora"] == {"rank": 16} and found["data"]["truncate"] == "right"
