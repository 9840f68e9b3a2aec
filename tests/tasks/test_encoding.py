"""What a task cannot use is named with its file and line, or skipped and listed; whatever the task."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import BadExample, Example, Message
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.tasks import ChoiceConfig, LanguageModelConfig, TokenClassificationConfig
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.encoding import check_usable, encode_usable

GOOD = Example(instruction="a", output="b")
UNANSWERED = Example(instruction="", messages=(Message("user", "q"), Message("assistant", "a"), Message("user", "r")))


def placed(examples: list[Example]) -> list[Example]:
    return [replace(e, where=f"chats.jsonl, line {number}") for number, e in enumerate(examples, 1)]


def language_model(**settings: Any) -> Any:
    context = TaskContext(byte_tokenizer(), 200, kind="decoder")
    return LanguageModelConfig(template="chatml", **settings).build(context)


@pytest.mark.parametrize("bad", [[3], [0], [7], [1, 2, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_bad_examples_are_named_or_skipped(bad: list[int]) -> None:
    examples = placed([UNANSWERED if number in bad else GOOD for number in range(8)])
    with pytest.raises(BadExample, match=f"^chats.jsonl, line {bad[0] + 1}: .*on_bad_example"):
        encode_usable(language_model(), examples, "error")
    task = language_model()
    encoded, skipped = encode_usable(task, examples, "skip")
    assert [e.example for e in encoded] == [e for number, e in enumerate(examples) if number not in bad]
    assert [row.where for row in skipped] == [examples[number].where for number in bad]
    assert not task.context.counts


def test_what_is_counted_is_counted_once() -> None:
    examples = placed([Example(instruction="<s>", output="b"), UNANSWERED, GOOD])
    task = language_model()
    encode_usable(task, examples, "skip")
    assert list(task.context.counts.values()) == [1]


def test_nothing_is_left() -> None:
    encoded, skipped = encode_usable(language_model(), placed([UNANSWERED] * 3), "skip")
    assert not encoded and len(skipped) == 3


def test_examples_from_no_file_keep_the_errors_of_the_task() -> None:
    with pytest.raises(ValueError, match="example 1"):
        encode_usable(language_model(), [GOOD, UNANSWERED], "skip")


def test_long_texts_and_weights_are_found_too() -> None:
    long, unlearnt = replace(GOOD, output="b" * 300), Message("assistant", "bad", learn=False)
    weighted = Example(instruction="", messages=(Message("user", "q"), unlearnt))
    for bad, setting in ((long, "data.max_length"), (weighted, "weight 0")):
        with pytest.raises(BadExample, match=f"line 2: .*{setting}"):
            encode_usable(language_model(), placed([GOOD, bad]), "error")
    both = replace(weighted, messages=(*weighted.messages, Message("user", "r"), Message("assistant", "good")))
    with pytest.raises(BadExample, match="task.train_on"):
        check_usable(language_model(train_on="all"), both)
    check_usable(language_model(), both)


def test_tasks_that_draw_from_all_examples() -> None:
    """Single examples have no others to draw from, and still the bad ones are found."""
    config = ChoiceConfig(negatives=2, template="chatml")
    good = [Example(instruction="q", output=word) for word in "abcdef"]
    bad = Example(instruction="q", messages=(Message("tool", "x"),), output="a", candidates=("b",))
    examples = placed([*good[:3], bad, *good[3:], bad])
    task = config.build(TaskContext(byte_tokenizer(), 200, kind="decoder"))
    encoded, skipped = encode_usable(task, examples, "skip")
    assert len(encoded) == 6 and [row.where for row in skipped] == [examples[3].where, examples[7].where]
    with pytest.raises(ValueError, match="task.negatives"):
        encode_usable(task, placed(good[:2]), "skip")


def test_tags_and_conversations_of_token_classification() -> None:
    context = TaskContext(byte_tokenizer(), 200)
    task = TokenClassificationConfig(labels=["O", "P"]).build(context)
    words = Example(instruction="tag", input="New York is", output=("P", "O"), words=("New York", "is"))
    plain = replace(words, input="so York is", output=("O", "P", "O"), words=())
    short = replace(words, words=())
    encoded, skipped = encode_usable(task, placed([words, short, plain]), "skip")
    assert [e.target.first.sum() for e in encoded] == [2, 3]
    assert encoded[0].target.labels[encoded[0].target.first > 0].tolist() == [1, 0]
    assert [row.where for row in skipped] == ["chats.jsonl, line 2"]
    with pytest.raises(BadExample, match="fields.ignore"):
        encode_usable(task, placed([plain, replace(plain, system="Be brief.")]), "error")
    with pytest.raises(BadExample, match="line 1"):
        encode_usable(task, placed([replace(words, input="a ", output=("P", "O"), words=("a", ""))]), "error")


def test_a_run_skips_and_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(e.to_record()) + "\n" for e in (GOOD, UNANSWERED, GOOD)))
    source = [SourceConfig(path=str(path))]
    config = Config(task=LanguageModelConfig(), data=DataConfig(train=source, test=source, batch_size=2))
    with pytest.raises(BadExample, match="chats.jsonl, line 2"):
        RunData(config).training(language_model(), 1)
    opened = RunData(replace(config, data=replace(config.data, on_bad_example="skip")))
    assert len(opened.training(language_model(), 1).encoded) == 2 == len(opened.cases(language_model(), "test"))
    assert [row.where for row in opened.skipped] == [f"{path}, line 2"]
    nothing = [SourceConfig(path=str(tmp_path / "bad.jsonl"))]
    (tmp_path / "bad.jsonl").write_text(json.dumps(UNANSWERED.to_record()) + "\n")
    with pytest.raises(ValueError, match="bad.jsonl, line 1"):
        data = DataConfig(train=nothing, batch_size=2, on_bad_example="skip")
        RunData(Config(task=LanguageModelConfig(), data=data)).training(language_model(), 1)


def test_a_stream_checks_each_example(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [GOOD.to_record(), UNANSWERED.to_record()]
    data = datasets.Dataset.from_list([{"messages": None, "instruction": None, "output": None} | row for row in rows])
    task = language_model()
    for on_bad_example in ("skip", "error"):
        stream = StreamSource(data.to_iterable_dataset(), FieldMapper(FieldsConfig()), "mine", on_bad_example)
        stream.use(lambda example: True, partial(check_usable, task))
        if on_bad_example == "error":
            with pytest.raises(ValueError, match="mine, row 1"):
                list(stream)
        else:
            assert len(list(stream)) == 1 == len(stream.skipped)
