"""data.mask: which fields are masked, what the store's key holds, and which tasks refuse it."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.masked import ExampleMask
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.data.storage import Storage
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.masking.masker import MaskConfig
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData, example_mask
from instructrec_jax.tasks.task_config import MultitaskConfig, SubtaskConfig, TaskConfig

MAIL = MaskConfig(["email", "phone"])


def task(name: str) -> TaskConfig:
    return TaskConfig.get_known_choices()[name]()


def mask_for(name: str, config: MaskConfig = MAIL) -> ExampleMask:
    return ExampleMask(config, task(name).text_fields)


EXAMPLE = Example(
    instruction="Answer b@example.com.",
    input="From a@example.com to b@example.com",
    output="a@example.com",
    candidates=("a@example.com", "c@example.com"),
    system="You are help@example.com.",
    messages=(
        Message("user", "I am a@example.com."),
        Message(
            "assistant",
            "Mailing a@example.com.",
            extra={
                "reasoning": "b@example.com?",
                "tool_calls": [{"function": {"name": "mail", "arguments": {"to": ["a@example.com"], "count": 1}}}],
            },
        ),
    ),
    id="a@example.com",
)


def test_texts_are_masked_with_one_numbering_and_labels_are_not() -> None:
    masked = mask_for("classification")(EXAMPLE)
    assert masked.system == "You are <EMAIL_1>."
    assert [message.content for message in masked.messages] == ["I am <EMAIL_2>.", "Mailing <EMAIL_2>."]
    assert masked.messages[1].extra == {
        "reasoning": "<EMAIL_3>?",
        "tool_calls": [{"function": {"name": "mail", "arguments": {"to": ["<EMAIL_2>"], "count": 1}}}],
    }
    assert masked.instruction == "Answer <EMAIL_3>."
    assert masked.input == "From <EMAIL_2> to <EMAIL_3>"
    assert (masked.output, masked.candidates, masked.id) == (EXAMPLE.output, EXAMPLE.candidates, EXAMPLE.id)


def test_answers_that_are_texts_are_masked() -> None:
    assert mask_for("language_model")(EXAMPLE).output == "<EMAIL_2>"
    assert mask_for("language_model")(replace(EXAMPLE, output=("x", "a@example.com"))).output == ("x", "<EMAIL_2>")
    chosen = mask_for("choice")(EXAMPLE)
    assert chosen.output == "<EMAIL_2>" and chosen.candidates == ("<EMAIL_2>", "<EMAIL_4>")
    assert mask_for("retrieval")(replace(EXAMPLE, output="+49 171 2345678")).output == "+49 171 2345678"  # an item
    both = MultitaskConfig([SubtaskConfig("a", task("language_model")), SubtaskConfig("b", task("classification"))])
    mask = ExampleMask(MAIL, both.text_fields)
    assert mask(replace(EXAMPLE, task="a")).output == "<EMAIL_2>"
    assert mask(replace(EXAMPLE, task="b")).output == "a@example.com"


def test_workers_receive_it() -> None:
    mask = mask_for("language_model")
    assert pickle.loads(pickle.dumps(mask))(EXAMPLE) == mask(EXAMPLE)


@pytest.mark.parametrize("name", ["span", "token_classification"])
def test_tasks_whose_targets_are_places_refuse_it(name: str) -> None:
    config = Config(task=task(name), data=DataConfig(train=[SourceConfig("x.jsonl")], mask=MAIL))
    with pytest.raises(ValueError, match=f"data.mask cannot be used with task.type {name}: its targets are places"):
        example_mask(config)
    several = MultitaskConfig([SubtaskConfig("a", task(name))])
    with pytest.raises(ValueError, match="multitask"):
        example_mask(replace(config, task=several))
    assert example_mask(replace(config, data=DataConfig())) is None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"instruction": f"Write to u{n}@example.com", "output": f"sent to u{n}@example.com"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(file: Path, folder: Path, config: MaskConfig | None, **settings: object) -> Mixture | StreamSource:
    mask = None if config is None else mask_for("language_model", config)
    source = SourceConfig(str(file), **settings)  # type: ignore[arg-type]
    found = open_sources([source], storage=Storage(str(folder)), mask=mask, on_bad_example="skip")
    assert isinstance(found, Mixture | StreamSource)
    return found


def test_a_source_keeps_masked_examples_only_under_a_key_of_its_own(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def stores() -> set[str]:
        return {path.name for path in folder.iterdir()}

    plain = opened(file, folder, None)
    before = stores()
    masked = opened(file, folder, MAIL)
    own = stores() - before
    assert isinstance(plain, Mixture) and isinstance(masked, Mixture)
    assert plain[0].output == "sent to u0@example.com" and masked[0].output == "sent to <EMAIL_1>"
    assert plain.fingerprint != masked.fingerprint
    assert len(own) == 1
    kept = b"".join(path.read_bytes() for path in (folder / own.pop()).rglob("*") if path.is_file())
    assert b"<EMAIL_1>" in kept and b"@example.com" not in kept
    there = stores()
    opened(file, folder, None)
    opened(file, folder, MaskConfig(["phone", "email"], sorted(MAIL.regions)))  # the same in another order
    assert stores() == there
    opened(file, folder, MaskConfig(["email"]))
    assert len(stores()) == len(there) + 1


def test_streams_are_masked_and_bad_rows_do_not_show_their_values(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + '{"instruction": "u9@example.com", "output": {"a": "u9@example.com"}}\n')
    stream = opened(file, tmp_path / "store", MAIL, streaming=True)
    assert {example.output for example in stream} == {"sent to <EMAIL_1>"}  # type: ignore[union-attr]
    source = opened(file, tmp_path / "store", MAIL)
    for found in (stream, source):
        (row,) = found.skipped
        assert row.field == "output" and "data.mask" in row.detail and "u9" not in row.detail
    assert "u9" in opened(file, tmp_path / "store", None).skipped[0].detail


def test_a_run_reads_masked_examples(file: Path) -> None:
    data = DataConfig(train=[SourceConfig(str(file))], mask=MAIL, store="memory")
    examples = RunData(Config(task=task("language_model"), data=data)).examples("train")
    assert [example.instruction for example in examples.sources[0]] == ["Write to <EMAIL_1>"] * 3  # type: ignore[attr-defined]
