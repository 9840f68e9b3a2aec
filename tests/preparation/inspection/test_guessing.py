"""The task and the fields of a table, from small tables in memory. (Files are inspected in test_inspection.py.)"""

from collections import Counter
from typing import Any

import pytest

from instructrec_jax.preparation.inspection.columns import profile
from instructrec_jax.preparation.inspection.guessing import answer_place, guess, with_answers
from instructrec_jax.preparation.inspection.table import Guess, Setting, Table


def of(count: int = 40, kind: str = "encoder", target: str | None = None, **columns: Any) -> Guess:
    """The guess for a table; a column is a function of the row's number, or a value."""
    rows = [{name: make(n) if callable(make) else make for name, make in columns.items()} for n in range(count)]
    profiled = profile([("data.csv", row) for row in rows])
    found = guess(Table(profiled.columns, count, rows, kind, target, ["data.csv"]))
    return with_answers(found, Counter(answer_place(row, found) for row in rows)) if found.type == "span" else found


def text(n: int) -> str:
    return f"a film {n} of old"


def fields(found: Guess) -> dict[str, object]:
    return {name: setting.value for name, setting in found.fields.items()}


@pytest.mark.parametrize(
    ("label", "task", "more"),
    [
        (lambda n: "ab"[n % 2], "classification", {}),
        (lambda n: n % 2 == 0, "classification", {"label_names": {0: "false", 1: "true"}}),
        (lambda n: n % 3, "classification", {"output_type": "text"}),
        (lambda n: str(n % 3), "classification", {}),
        (lambda n: n % 21, "regression", {}),  # too many different numbers for classes
        (lambda n: n / 4, "regression", {}),
        (lambda n: str(n / 4), "regression", {"output_type": "number"}),
        (lambda n: ["a;b", "b", "a"][n % 3], "multilabel", {"output_type": "list", "separator": ";"}),
        (lambda n: ["ab"[n % 2]] * (n % 3), "multilabel", {}),
    ],
)
def test_a_text_and_a_label(label: Any, task: str, more: dict[str, Any]) -> None:
    found = of(text=text, label=label)
    assert found.type == task and (found.inputs, found.target) == (("text",), "label")
    assert fields(found) == {"instruction": "text", "output": "label"} | more


def test_numbers_of_a_usual_name_are_a_quantity() -> None:
    assert of(text=text, stars=lambda n: n % 3).type == "regression"
    assert of(text=text, label=lambda n: n % 3).type == "classification"


def test_twenty_numbers_are_classes_and_twenty_one_are_not() -> None:
    assert of(text=text, label=lambda n: n % 20).type == "classification"
    assert of(text=text, label=lambda n: n % 21).type == "regression"


def test_pairs() -> None:
    found = of(premise=text, hypothesis=lambda n: f"film {n}", label=lambda n: "ab"[n % 2])
    assert found.type == "classification" and found.inputs == ("premise", "hypothesis")
    assert of(sentence1=text, sentence2=text, score=lambda n: n / 7).type == "regression"
    matching = of(anchor=text, positive=lambda n: f"film {n}")
    assert matching.type == "similarity" and fields(matching) == {"instruction": "anchor", "output": "positive"}
    assert matching.task["negatives"].value == 3  # of 40 texts
    with pytest.raises(ValueError, match="'positive'"):
        of(10, anchor=text, positive=lambda n: f"film {n}")


def test_tags_are_as_many_as_words() -> None:
    found = of(tokens=lambda n: ["a", "film"], ner_tags=lambda n: ["O", "OX"[n % 2]])
    assert found.type == "token_classification" and fields(found) == {"input": "tokens", "output": "ner_tags"}
    in_text = of(sentence=lambda n: f"a film {n}", tags="O O X")
    assert in_text.fields["separator"].value == " "
    with pytest.raises(ValueError, match="--target"):
        of(tokens=lambda n: ["a", "b"], ner_tags=lambda n: ["O", "X"], pos_tags=lambda n: ["N", "V"])
    chosen = of(tokens=lambda n: ["a", "b"], ner_tags=lambda n: ["O", "X"], pos_tags=lambda n: ["N", "V"],
                target="pos_tags")  # fmt: skip
    assert chosen.target == "pos_tags" and chosen.fields["ignore"].value == ["ner_tags"]


def test_questions_whose_answers_stand_in_the_text_are_spans() -> None:
    def made(answer: Any, kind: str = "encoder") -> Guess:
        return of(kind=kind, question=lambda n: f"what is {n}", context=lambda n: f"film {n} is old", answers=answer)

    squad = made(lambda n: {"text": ["old"], "answer_start": [3]} if n else {"text": [], "answer_start": []})
    assert squad.type == "span" and fields(squad)["output"] == "answers.text" and fields(squad)["origin"] == "answers"
    assert squad.task["no_answer"].value is True and squad.blank_targets
    assert "no_answer" not in made("old").task and "on_missing_answer" not in made("old").task
    assert made(lambda n: "old" if n else "new").task["on_missing_answer"].value == "skip"
    with pytest.raises(ValueError, match="--backbone"):
        made("unheard of")  # an encoder writes nothing
    assert made("unheard of", kind="decoder").type == "question_answering"


def test_choices() -> None:
    row: dict[str, Any] = {"question": text, "options": lambda n: ["x", "y", "z"]}
    for answer, more in (
        (lambda n: "ABC"[n % 3], {"output_type": "candidate"}),
        (lambda n: n % 3, {"output_type": "candidate"}),
        (lambda n: "xyz"[n % 3], {}),
    ):
        found = of(**row, answer=answer)
        assert found.type == "similarity" and found.inputs == ("question", "options")
        assert fields(found) == {"instruction": "question", "candidates": "options", "output": "answer"} | more
    assert of(**row, answer=lambda n: n % 3, kind="decoder").type == "choice"
    with pytest.raises(ValueError, match="'answer'"):
        of(**row, answer=lambda n: n % 3 + 1)  # counted from 1
    named = of(question=text, choices=lambda n: {"text": ["x", "y"], "label": ["1", "2"]}, answerKey="2")
    assert fields(named)["candidates"] == "choices.text"


def test_conversations_need_a_network_that_writes() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert fields(of(kind="decoder", chat=lambda n: talk)) == {"messages": "chat"}
    with pytest.raises(ValueError, match="'chat'.*--backbone"):
        of(chat=lambda n: talk)


def test_of_two_texts_the_last_is_written() -> None:
    found = of(kind="encoder_decoder", story=text, ending=lambda n: f"they went home {n}")
    assert found.type == "language_model" and (found.inputs, found.target) == (("story",), "ending")


def test_the_instruction_and_its_input_are_read_together() -> None:
    found = of(kind="decoder", instruction=text, input=lambda n: f"film {n}", output=text)
    assert found.inputs == ("instruction", "input")
    assert fields(found) == {"instruction": "instruction", "input": "input", "output": "output"}


def test_columns_that_nothing_reads_are_ignored_and_defaults_are_off() -> None:
    found = of(text=text, label=lambda n: "ab"[n % 2], history=text, url=lambda n: f"u{n}", id=lambda n: n, empty=None)
    assert fields(found)["history"] is None and found.fields["ignore"].value == ["url"]
    for name in ("input", "system", "candidates", "task", "origin"):
        assert fields(of(text=text, label=lambda n: "ab"[n % 2], **{name: text}))[name] is None


def test_the_users_target_is_taken() -> None:
    columns: dict[str, Any] = {"text": text, "label": lambda n: "ab"[n % 2], "topic": lambda n: "xyz"[n % 3]}
    with pytest.raises(ValueError, match="label, topic.*--target"):
        of(**columns)
    assert of(**columns, target="topic").target == "topic"
    with pytest.raises(ValueError, match="--target 'tpic'.*text, label, topic"):
        of(**columns, target="tpic")


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"text": text}, "--target"),
        ({"text": text, "label": "same"}, "'label'"),
        ({"text": text, "label": lambda n: {"x": n}}, "'label'.*object"),
        ({"text": text, "label": lambda n: f"label {n}"}, "'label'.*40"),
        ({"label": lambda n: "ab"[n % 2], "n": lambda n: n}, "'label'"),
        ({"text{0}": text, "label": lambda n: "ab"[n % 2]}, r"'text\{0\}'"),
        ({"=text": text, "label": lambda n: "ab"[n % 2]}, "'=text'"),
        ({"user_id": 1, "item_id": 2}, "prepare table.*data.csv"),
        ({"text|label": "a|b"}, r"'text\|label'"),
    ],
)
def test_what_cannot_be_guessed_is_named(columns: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        of(**columns)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="rows"):
        guess(Table({}, 0))


def test_every_guess_has_its_reason() -> None:
    found = of(text=text, label=lambda n: "ab"[n % 2], extra=text)
    assert all(isinstance(s, Setting) and s.why for s in (*found.task.values(), *found.fields.values()))
