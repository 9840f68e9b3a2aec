"""The usual names of columns, and the setting that is suggested where none of them fits."""

import pytest
import yaml

from instructrec_jax.data import column_names
from instructrec_jax.data.column_names import PAIRS, advice, is_usual


def test_names_are_in_lower_case_and_none_stands_twice_in_its_list() -> None:
    lists = [value for name, value in vars(column_names).items() if name.isupper() and name not in ("PAIRS", "_ALL")]
    assert lists
    for names in (*lists, [name for pair in PAIRS for name in pair]):
        assert len(set(names)) == len(names)
        assert all(name == name.strip().lower() and is_usual(name) for name in names)


def test_case_and_spaces_do_not_matter_but_the_word_does() -> None:
    assert is_usual("Review") and is_usual(" LABEL ") and is_usual("Sentence1")
    assert not is_usual("labelling") and not is_usual("") and not is_usual("column 3")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["story", "verdict"], {"instruction": "story", "output": "verdict"}),
        (["Label", "story"], {"instruction": "story", "output": "Label"}),  # a usual target, wherever it stands
        (["id", "Text", "verdict"], {"instruction": "Text", "output": "verdict"}),  # a usual text
        (["rating", "review", "date"], {"instruction": "review", "output": "rating"}),
        (["answer", "label"], {"instruction": "label", "output": "answer"}),
        (["a b", "c: d"], {"instruction": "a b", "output": "c: d"}),
        (["1", "2"], {"instruction": "1", "output": "2"}),
        (["评论", "标签"], {"instruction": "评论", "output": "标签"}),
    ],
)
def test_advice_is_a_setting_that_yaml_reads(columns: list[str], expected: dict[str, str]) -> None:
    said = advice(columns)
    assert yaml.safe_load(said[said.index("fields:") :]) == {"fields": expected}


def test_no_advice_for_a_single_column() -> None:
    assert advice([]) == advice(["text"]) == ""
