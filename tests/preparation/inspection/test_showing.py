"""`prepare inspect SOURCE`: forms are named and rendered, duplicates and bad rows counted, and nothing is written."""

import gzip
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.unpacked import PlainFile
from instructrec_jax.preparation.inspection import showing
from instructrec_jax.preparation.inspection.showing import Shown, show
from instructrec_jax.preparation.inspection.sizing import Network, open_network
from instructrec_jax.preparation.own_config import InspectConfig
from instructrec_jax.prepare import main

CHATML = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
ASKED, ANSWER = {"role": "user", "content": "two?"}, {"role": "assistant", "content": "Four."}
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "two?", "input": None, "output": "Four."}, "Alpaca"),
    ({"prompt": "two?", "completion": "Four."}, "prompt and completion"),
    ({"prompt": [ASKED], "completion": [ANSWER]}, "prompt and completion, as lists of messages"),
    ({"prompt": "two?", "chosen": "Four.", "rejected": "no"}, "preferences"),
    ({"chosen": [ASKED, ANSWER], "rejected": [ASKED, ANSWER]}, "preferences"),
    ({"messages": [ASKED, ANSWER]}, "conversations of role and content"),
    ({"conversations": [{"from": "human", "value": "two?"}, {"from": "gpt", "value": "Four."}]}, "ShareGPT"),
    (
        {"messages": [ASKED, ANSWER | {"tool_calls": [CALL]}], "tools": [{"name": "add"}]},
        "calls of tools, a list of tools",
    ),
    ({"question": "two?", "context": "math", "answer": "Four."}, "question and context and answer"),
]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model with a chat template as --backbone."""
    network = Network("chat", "decoder", 4096, byte_tokenizer(chat_template=CHATML), exact=True)
    monkeypatch.setattr(showing, "open_network", lambda name: network)


def write(path: Path, rows: Sequence[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    text = f"[{', '.join(lines)}]" if ".json" in path.suffixes else "\n".join(lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def shown(path: Path, **settings: Any) -> Shown:
    return show(InspectConfig(files=[str(path)], **settings))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("row, form", FORMS)
def test_every_form_is_named_and_rendered(
    tmp_path: Path, chat: None, name: str, row: dict[str, Any], form: str
) -> None:
    found = shown(write(tmp_path / name, [row] * 4), backbone="chat")
    assert form in found.form and not found.bad and found.rows == 4 and found.duplicates == 3
    assert len(found.examples) == 3 and found.examples[0][0].startswith(str(tmp_path / name))
    text = found.examples[0][1]
    assert "two?" in text and "⟦Four." in text and text.count("⟦") == text.count("<|im_end|>⟧") == 1
    assert ('{"name": "add"' in text.split("⟦Four.")[1]) == ("tools" in row)
    assert found.trained < found.lengths.sum() and len(found.lengths) == 4
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_lengths_duplicates_and_bad_rows(tmp_path: Path, chat: None) -> None:
    rows: list[Any] = [{"instruction": "a" * n, "output": "b", "id": n // 2} for n in range(1, 101)]
    rows += [
        rows[0],
        {"instruction": "a", "output": "c"},
        "{",
        {"instruction": "x\x00", "output": "y"},
        {"output": "z"},
    ]
    found = shown(write(tmp_path / "a.jsonl", rows), backbone="chat", max_length=100)
    around = found.lengths[0] - 1
    assert found.lengths[[0, -1]].tolist() == [around + 1, around + 100] and len(found.lengths) == 102
    assert (found.bad, found.duplicates, found.questions, found.ids) == (3, 1, 1, 50)
    assert [error.where.split(", ")[1] for error in found.errors] == ["line 103", "line 104", "line 105"]
    text = found.describe()
    share = float((found.lengths > 100).mean())
    assert f"{share:.1%} have more than max_length 100" in text and "105, 3 bad" in text and "on_bad_example" in text
    assert f"least {found.lengths[0]}, median " in text and f"most {found.lengths[-1]} (of 102 examples)" in text


def test_rows_that_the_template_cannot_write_are_bad(tmp_path: Path) -> None:
    turns = [ASKED, ANSWER | {"tool_calls": [CALL]}]
    found = shown(
        write(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": [ASKED]}, {"messages": [ASKED, ANSWER]}])
    )
    assert found.bad == 2 and found.errors[0].reason == "not rendered"
    assert "tool_calls" in found.errors[0].detail and "--backbone" in found.errors[0].detail
    assert "no answer" in found.errors[1].detail and any("alpaca" in note for note in found.notes)


def test_an_encoder_reads_texts_and_learns_targets(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "dull", "label": "bad", "url": "x"}])
    found = shown(path, backbone="films")
    assert found.examples[0][1] == "dull\n⟦target: bad⟧" and "url (1)" in found.notes[0]
    network = open_network("films")
    assert found.lengths.tolist() == network.count(["dull"]) and not found.trained
    mine = shown(path, fields=FieldsConfig(instruction="Say: {text}", output="label", ignore=["url"]))
    assert "Say: dull" in mine.examples[0][1] and "fields      {instruction: Say: {text}" in mine.describe()


def test_long_texts_are_cut_and_control_characters_written_out(tmp_path: Path, chat: None) -> None:
    rows = [{"instruction": "a\x1b[2J" + "b" * 5_000, "output": "c"}]
    text = shown(write(tmp_path / "a.jsonl", rows), backbone="chat").examples[0][1]
    assert "\\x1b[2J" in text and "\x1b" not in text and "characters ..." in text and len(text) < 2_000


def test_a_sample_is_measured_and_all_rows_are_counted(
    tmp_path: Path, chat: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(showing, "SAMPLE", 20)
    rows = [{"instruction": f"a{n}", "output": "b"} for n in range(500)] + ["{"] * 7
    found = shown(write(tmp_path / "a.jsonl", rows), backbone="chat")
    assert found.rows == 507 and found.bad == 7 and 15 <= len(found.lengths) <= 23
    again = shown(tmp_path / "a.jsonl", backbone="chat")
    assert np.array_equal(again.lengths, found.lengths)


@pytest.mark.parametrize("name", ["a.json.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, chat: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(showing, "SAMPLE", 20)
    peaks = []
    for count in (200, 200, 1_500):  # the first one for what is made once
        path = write(tmp_path / name, [{"instruction": f"{n} " + "x " * 3_000, "output": "b"} for n in range(count)])
        tracemalloc.start()
        shown(path, backbone="chat")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 1.5e6  # bytes: 1,300 rows more, of 6,000 characters each
    assert PlainFile(path, text=True).size


def test_a_data_set_of_huggingface(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    datasets.Dataset.from_dict({"text": ["dull", "warm"], "label": [0, 1]}, features=features).save_to_disk(
        tmp_path / "a"
    )
    found = shown(tmp_path / "a", kind="datasets", backbone="films")
    assert [text for _, text in found.examples] == ["dull\n⟦target: bad⟧", "warm\n⟦target: good⟧"]
    with pytest.raises(ValueError, match="split"):
        shown(tmp_path / "a", kind="datasets", split="test")
    with pytest.raises(ValueError, match="--split test: files"):
        shown(tmp_path / "a", split="test")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "two?", "answer": "Four.", "note": 1}])
    told = main(["inspect", str(path), "--max_length", "10", "--fields.ignore", "[note]"])
    assert told == {"form": "question and answer", "rows": 1, "bad": 0, "duplicates": 0}
    out = capsys.readouterr().out
    assert "max_length 10" in out and "⟦Four." in out
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    out = capsys.readouterr().out
    assert "--max_length" in out and "--fields.messages" in out and "--overwrite" in out
    for args, message in [
        ([], "name one or more"),
        ([str(path), "--out", str(tmp_path / "x.yaml"), "--max_length", "10"], "--max_length is for showing"),
        ([str(path), "--template", "tokenizer"], "--backbone"),
        ([str(tmp_path / "none.jsonl")], "no such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            main(["inspect", *args])
