"""`scripts/prepare_instructions.py`: no instance is in two of the files."""

import gzip
import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from instructrec_jax.files import read_jsonl

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_instructions.py"
spec: Any = importlib.util.spec_from_file_location("prepare_instructions", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

WORDS = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "al", "en", "ir")]


def rows() -> list[dict[str, str]]:
    """Sixty texts, each in three templates with long texts of their own."""
    draw = random.Random(0)
    passages = [" ".join(draw.choices(WORDS, k=60)) for _ in range(60)]
    wordings = [" ".join(draw.choices(WORDS, k=20)) for _ in range(3)]
    return [
        {"template": f"set_{number}", "prompt": f"{wording}\n{passage}\n", "completion": f"answer {passage[:9]}"}
        for number, wording in enumerate(wordings)
        for passage in passages
    ]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_instructions.py", *map(str, arguments)])
    script.main()


def test_texts_stay_together_and_templates_do_not_bind_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mix.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows())).encode()))
    run(monkeypatch, file, "--out", tmp_path, "--validation", 0.2, "--test", 0.2)
    found = {name: read_jsonl(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")}
    passages = {name: {row["instruction"].split("\n")[1] for row in each} for name, each in found.items()}
    assert sum(map(len, found.values())) == 180 and all(found.values())
    assert sum(map(len, passages.values())) == 60  # disjoint
    assert {row["origin"]["template"] for row in found["test"]} == {"set_0", "set_1", "set_2"}


def test_every_form_is_read_and_an_unknown_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hello there"}, {"from": "gpt", "value": "hi"}, {"from": "human", "value": "?"}]
    forms = {
        "alpaca.json": [{"instruction": "a b c", "input": "", "output": "d"}],
        "self.jsonl": [
            {"instruction": "e f", "instances": [{"input": "g", "output": "h"}, {"input": "", "output": ""}]}
        ],
        "share.json": [{"conversations": turns, "chosen": {"from": "gpt", "value": "line\u2028separator"}}],
        "plain.jsonl": [{"prompt": "i j k\n", "completion": "l"}],
    }
    for name, content in forms.items():
        text = json.dumps(content, ensure_ascii=False) if name.endswith(".json") else json.dumps(content[0])
        (tmp_path / name).write_text(text, encoding="utf-8")
    run(monkeypatch, *(tmp_path / name for name in forms), "--out", tmp_path / "out", "--validation", 0, "--test", 0)
    by_task = {row["task"]: row for row in read_jsonl(tmp_path / "out" / "train.jsonl")}
    assert by_task["alpaca"] == {"instruction": "a b c", "output": "d", "task": "alpaca", "id": "alpaca-0"}
    assert by_task["self"]["input"] == "g" and by_task["self"]["id"] == "self-0-0"
    assert by_task["share"]["messages"][-1] == {"role": "assistant", "content": "line\u2028separator"}
    assert by_task["plain"]["origin"] == {"template": "plain"}
    (tmp_path / "odd.jsonl").write_text('{"question": "a"}')
    with pytest.raises(SystemExit, match=r"odd.jsonl, row 0.*'instruction'.*\['question'\]"):
        run(monkeypatch, tmp_path / "odd.jsonl", "--out", tmp_path / "out")
