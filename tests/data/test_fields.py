"""Records to examples, and examples to records and back."""

import json
import math

import pytest

from instructrec_jax.data.example import BadExample, Example, Message
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.labels import label_form
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources


def convert(row, labels=None, class_names=None, task="", **fields):
    return FieldMapper(FieldsConfig(**fields), labels=labels, class_names=class_names, task=task)(row)


def bad(row, **settings):
    with pytest.raises(BadExample) as caught:
        convert(row, **settings)
    return caught.value


def test_alpaca_columns_and_others_ignored():
    row = {"instruction": "Add.", "input": "1+1", "output": "2", "text": "### ...", "n": None}
    assert convert(row) == Example(instruction="Add.", input="1+1", output="2")
    for blank in ("", " ", None):
        assert convert({**row, "input": blank}).input is None
    del row["input"]
    assert convert(row).input is None


def test_columns_templates_fixed_texts():
    row = {
        "sentence": "很好 🙂",
        "stars": 4,
        "translation": {"de": "gut", "en": ["good", "fine"]},
        "a.b": "dot",
    }
    example = convert(
        row,
        instruction="=Rate {it}!",
        input="{sentence} ({stars}/5) {{really}} {translation.en.1} {a.b}",
        output="translation.de",
    )
    assert example == Example(instruction="Rate {it}!", input="很好 🙂 (4/5) {really} fine dot", output="gut")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"instruction": "{"}, "fields.instruction.*template"),
        ({"instruction": "{}"}, "fields.instruction"),
        ({"instruction": "{a!r}"}, "fields.instruction"),
        ({"instruction": "{a:>3}"}, "fields.instruction"),
        ({"instruction": ""}, "fields.instruction"),
        ({"output": "= "}, "fields.output"),
        ({"messages": "{a}"}, "fields.messages"),
        ({"instruction": None, "input": None, "messages": None, "image": None, "audio": None}, "messages"),
        ({"label_names": {0: "a"}, "output_type": "number"}, "label_names"),
    ],
)
def test_settings_without_sense_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        FieldMapper(FieldsConfig(**fields))


def test_missing_columns_name_what_is_there():
    error = bad({"instruction": "a", "outptu": "b"})
    assert (error.field, error.reason) == ("output", "missing column")
    assert "outptu" in error.detail and "fields.output" in error.detail
    assert bad({"instruction": "a", "output": "b"}, input="context").field == "input"
    assert "'y'" in bad({"x": "a", "output": "b"}, instruction="Do {x} {y}").detail
    assert '"=Do it well."' in bad({"output": "b"}, instruction="Do it well.").detail
    assert bad({"output": "b"}).field == "instruction"
    assert convert({"instruction": "a"}, output=None).output is None


@pytest.mark.parametrize("value", [None, "", "  "])
def test_empty_columns_are_bad(value):
    assert bad({"instruction": value, "output": "b"}).field == "instruction"
    assert bad({"instruction": "a", "output": value}).field == "output"
    assert bad({"x": value, "output": "b"}, instruction="Do {x}").field == "instruction (column x)"


def test_wrong_types_come_with_a_remedy():
    assert '"{n}"' in bad({"n": 3, "output": "b"}, instruction="n").detail
    assert bad({"instruction": "a", "output": {"text": "b"}}).field == "output"
    assert bad({"instruction": "a", "output": "b", "history": 3}).field == "history"
    assert bad({"instruction": "a", "output": "b", "history": ["1", None]}).field == "history[1]"
    assert bad({"instruction": "a", "output": "b", "history": [["1"]]}).field == "history[0]"
    assert "separator" in bad({"instruction": "a", "output": "b", "candidates": "1|2"}).detail
    assert bad({"instruction": "a", "output": "b", "origin": "x"}).field == "origin"
    assert bad({"instruction": "a", "output": "b", "input": float("nan")}).field == "input"
    assert bad({"x": [1], "output": "b"}, instruction="Do {x}").reason == "wrong type"
    assert bad({"x": float("nan"), "output": "b"}, instruction="Do {x}").reason == "not a finite number"


def test_kinds_of_output():
    def output(value, **settings):
        return convert({"instruction": "a", "output": value}, **settings).output

    assert output("4") == "4" and output(4) == 4 and output(4.5) == 4.5
    assert output(318, output_type="text") == "318"
    assert [output(v, output_type="number") for v in ("4", " 4.5 ", 4, "1e3")] == [4, 4.5, 4, 1000.0]
    assert isinstance(output("4", output_type="number"), int)
    assert output("a|b c", output_type="list", separator="|") == ("a", "b c")
    assert output(["a", "b"]) == ("a", "b") and output([318, 4]) == ("318", "4") and output([]) == ()
    for value, kind in [("many", "number"), ("nan", "number"), ("1_0", "number"), (True, "number")]:
        assert bad({"instruction": "a", "output": value}, output_type=kind).field == "output"
    assert "label_names" in bad({"instruction": "a", "output": True}).detail
    assert "separator" in bad({"instruction": "a", "output": "a b"}, output_type="list").detail
    assert bad({"instruction": "a", "output": ["a"]}, output_type="text").field == "output"
    assert bad({"instruction": "a", "output": math.nan}).reason == "not a finite number"
    assert bad({"instruction": "a", "output": ["a", math.nan]}).field == "output[1]"


def test_names_of_labels():
    names = {0: "negative", 1: "positive"}

    def output(value, **settings):
        return convert({"instruction": "a", "output": value}, label_names=names, **settings).output

    assert [output(v) for v in (0, "1", 1.0, True, "positive")] == [
        "negative", "positive", "positive", "positive", "positive",
    ]  # fmt: skip
    assert output([1, 0, 1]) == ("positive", "negative", "positive")
    assert output("1|0", output_type="list", separator="|") == ("positive", "negative")
    for value in (2, "neutral", 0.5, math.nan, "2"):
        error = bad({"instruction": "a", "output": value}, label_names=names)
        assert error.reason == "unknown label" and "0: negative" in error.detail
    assert "withheld" in bad({"instruction": "a", "output": -1}, label_names=names).detail


@pytest.mark.parametrize("form", [str, "{}.0".format, float, lambda number: f" {number}", lambda number: number])
def test_numbers_of_labels_in_every_spelling(form):
    names = {-1: "bad", 0: "so-so", 1: "good"}
    row = {"instruction": "a"}
    for number, name in names.items():
        given = {**row, "output": form(number)}
        assert convert(given, label_names=names).output == name
        assert convert({**row, "output": [form(number)]}, label_names=names).output == (name,)
        for labels in (["-1", "0", "1"], ["-1.0", "0.0", "1.0"]):
            assert label_form(convert(given, labels=labels).output) == str(number)
            assert convert(given, labels=labels).output in labels


@pytest.mark.parametrize("value", [True, "True", "true", "TRUE", " true"])
def test_truth_values_as_labels(value):
    row = {"instruction": "a", "output": value}
    assert convert(row, label_names={0: "no", 1: "yes"}).output == "yes"
    assert convert(row, labels=["true", "false"]).output == "true"
    assert convert(row, labels=["True", "False"], output_type="text").output == "True"
    assert bad(row, labels=["yes", "no"]).field == "output"


def test_labels_that_look_alike_are_not_taken_for_each_other():
    row = {"instruction": "a"}
    assert convert({**row, "output": "1.0"}, labels=["1", "1.0"]).output == "1.0"
    assert bad({**row, "output": 1.5}, labels=["1", "2"]).reason == "unknown label"
    assert bad({**row, "output": "007"}, labels=["7"]).reason == "unknown label"
    assert bad({**row, "output": 1.0}, labels=["1", "1.0"]).field == "output"  # which of them?
    assert convert({**row, "output": 7}).output == 7  # a number where there are no labels


def test_class_columns_of_data_sets():
    classes = {"label": ["neg", "pos"], "tags": ["O", "B"]}
    row = {"text": "x", "label": 1, "tags": [0, 1]}
    assert convert(row, instruction="text", output="label", class_names=classes).output == "pos"
    assert convert(row, instruction="text", output="tags", class_names=classes).output == ("O", "B")
    assert convert(row, instruction="Is it {label}?", output=None, class_names=classes).instruction == "Is it pos?"
    renamed = convert(row, instruction="text", output="label", class_names=classes, label_names={1: "good"})
    assert renamed.output == "good"


def test_known_labels():
    labels = ["comedy", "horror"]
    row = {"instruction": "a"}
    assert convert({**row, "output": "horror"}, labels=labels).output == "horror"
    assert convert({**row, "output": ["horror", "comedy"]}, labels=labels).output == ("horror", "comedy")
    error = bad({**row, "output": "horor"}, labels=labels)
    assert error.reason == "unknown label" and 'Did you mean "horror"?' in error.detail
    assert bad({**row, "output": ["comedy", "x"]}, labels=labels).field == "output[1]"
    assert "label_names" in bad({**row, "output": 1}, labels=labels).detail


def test_conversations():
    expected = Example(instruction="", messages=(Message("user", "hi"), Message("assistant", "hello")))
    openai = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    share = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert convert(openai) == expected
    assert convert(share, messages="conversations") == expected
    # `datasets` fills absent columns with nulls.
    assert convert({**openai, "instruction": None, "output": None, "input": None, "history": None}) == expected
    assert convert({"messages": None, "instruction": "a", "output": "b"}).messages == ()
    for turns, field in [
        (None, "messages"),
        ("hi", "messages"),
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"from": "human", "value": None}], "messages[0].content"),
        ([{"from": "human", "value": [{"type": "image", "image": "x"}]}], "messages[0].content[0]"),
        ([{"from": "alien", "value": "x"}], "messages[0].role"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}], "messages[0]"),
    ]:
        assert bad({"conversations": turns}, messages="conversations").field == field


def test_recommendation_columns():
    row = {"instruction": "a", "output": 3, "candidates": [3, 4], "history": "1|2", "id": 17, "task": "next"}
    example = convert(row, output_type="text", separator="|")
    assert example == Example(
        instruction="a", output="3", candidates=("3", "4"), history=("1", "2"), id="17", task="next"
    )
    assert convert(row, task="own", separator="|").task == "own"
    assert convert({**row, "history": ""}, separator="|").history == ()
    error = bad({**row, "id": "a\x00"}, separator="|")
    assert error.field == "id" and "fields.id to null" in error.detail


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, ""),
        ("", ""),
        (" ", ""),
        (math.nan, ""),
        (3.0, "3"),
        (3, "3"),
        (1.5, "1.5"),
        ("a 1", "a 1"),
        (True, "true"),
    ]
    + [({"$oid": "5f"}, '{"$oid": "5f"}'), ([1, 2], "[1, 2]")],
)
def test_an_id_only_names_the_record(value, name):
    assert convert({"instruction": "a", "output": "b", "id": value}).id == name


def test_ids_of_items_in_columns_with_gaps():
    assert convert({"instruction": "a", "output": "b", "history": [3.0, "x", 4]}).history == ("3", "x", "4")
    assert "fields.task to null" in bad({"instruction": "a", "output": "b", "task": 3}).detail


def test_shapes_of_well_known_data_sets():
    squad = FieldMapper(FieldsConfig(instruction="question", input="context", output="answers.text", origin="answers"))
    row = {"question": "who", "context": "by Ada", "answers": {"text": ["Ada", "by Ada"], "answer_start": [3, 0]}}
    asked = squad(row)
    assert asked.output == ("Ada", "by Ada") and asked.origin == {"text": "Ada", "answer_start": "3"}
    assert squad(row | {"answers": {"text": [], "answer_start": []}}).output == ()
    names = {0: "O", 1: "B-PER"}
    conll = FieldMapper(FieldsConfig(instruction="=Names?", input="tokens", output="ner_tags", label_names=names))
    tagged = conll({"tokens": ["by", "Ada"], "ner_tags": [0, 1]})
    assert (tagged.input, tagged.output) == ("by Ada", ("O", "B-PER"))


@pytest.mark.parametrize(("said", "meant"), [("B", "b"), ("a", "a"), (1, "b"), ("2", "c"), (" C ", "c")])
def test_an_answer_by_its_number_or_letter(said, meant):
    mapper = FieldMapper(FieldsConfig(candidates="options", output="answer", output_type="candidate"))
    assert mapper({"instruction": "x", "options": ["a", "b", "c"], "answer": said}).output == meant


@pytest.mark.parametrize("said", ["D", 3, -1, "", None, True, "ab", "é", 1.5, ["A"]])
def test_an_answer_that_is_no_candidate(said):
    mapper = FieldMapper(FieldsConfig(candidates="options", output="answer", output_type="candidate"))
    with pytest.raises(BadExample, match="3 candidates") as caught:
        mapper({"instruction": "x", "options": ["a", "b", "c"], "answer": said})
    assert caught.value.field == "output"


ARC = FieldsConfig(instruction="question", candidates="choices.text", output="answerKey", output_type="candidate")


@pytest.mark.parametrize(
    ("labels", "said", "meant"),
    [
        ("ABCD", "B", "w"),
        ("1234", "3", "x"),
        ("1234", 3, "x"),
        ("1234", "1", "v"),
        ("0123", "1", "w"),
        ("ABCD", " D ", "y"),
    ],
)
def test_the_labels_beside_the_candidates_decide(labels, said, meant):
    row = {"question": "q", "choices": {"text": list("vwxy"), "label": list(labels)}, "answerKey": said}
    assert FieldMapper(ARC)(row).output == meant
    assert {"choices", "choices.label"} <= FieldMapper(ARC).columns()


@pytest.mark.parametrize(("labels", "said"), [("1234", "0"), ("ABCD", "2"), ("AABC", "A"), ("ABC", "A"), (None, "E")])
def test_an_answer_that_the_labels_do_not_know(labels, said):
    row = {"question": "q", "choices": {"text": list("vwxy"), "label": labels and list(labels)}, "answerKey": said}
    with pytest.raises(BadExample) as caught:
        FieldMapper(ARC)(row)
    assert caught.value.reason == "unknown label"


def test_letters_and_numbers_in_one_source_are_refused(tmp_path):
    def opened(*answers):
        path = tmp_path / "a.jsonl"
        lines = [json.dumps({"question": "q", "options": ["a", "b", "c"], "answer": answer}) for answer in answers]
        path.write_text("\n".join(lines))
        fields = FieldsConfig(instruction="question", candidates="options", output="answer", output_type="candidate")
        return open_sources([SourceConfig(path=str(path), fields=fields)], on_bad_example="skip")

    with pytest.raises(ValueError, match=r"a\.jsonl.* 2 .* 1 .*choices.label"):
        opened("A", "B", "2")
    assert [opened("A", "B", "c")[n].output for n in range(3)] == ["a", "b", "c"]
    assert [opened("0", 1, "2")[n].output for n in range(3)] == ["a", "b", "c"]


def test_a_text_of_origin_is_named_after_its_column():
    mapped = FieldMapper(FieldsConfig(origin="template"))
    assert mapped({"instruction": "a", "output": "b", "template": "t3"}).origin == {"template": "t3"}
    assert mapped({"instruction": "a", "output": "b", "template": {"x": "y"}}).origin == {"x": "y"}


def test_nested_instances_are_read_by_dotted_paths():
    fields = FieldsConfig(input="instances.0.input", output="instances.0.output")
    row = {"instruction": "a", "instances": [{"input": "", "output": "b"}]}
    assert FieldMapper(fields)(row) == Example(instruction="a", output="b")


def test_kept_columns_lie_in_the_origin_under_names_of_their_own():
    fields = FieldsConfig(keep=["gender", "user", "meta.age", "origin"], ignore=["gender"])
    row = {
        "instruction": "a",
        "output": "b",
        "gender": "  女 ",
        "user": 7.0,
        "meta": {"age": True},
        "origin": {"user": "u"},
    }
    mapper = FieldMapper(fields)
    found = mapper(row).origin
    assert found == {"user": "u", "column gender": "女", "column user": "7", "column meta.age": "true",
                     "column origin": '{"user": "u"}'}  # fmt: skip
    assert mapper.unread(row) == [] and mapper.columns() >= {"gender", "user", "meta", "meta.age"}
    for blank in (None, "", " ", float("nan")):
        assert mapper({"instruction": "a", "output": "b", "gender": blank}).origin == {}
    with pytest.raises(BadExample, match="column gender.*NUL"):
        mapper({"instruction": "a", "output": "b", "gender": "a\x00"})
