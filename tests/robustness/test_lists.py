"""The lists of both languages are whole, and the language of texts."""

import pytest

from instructrec_jax.evaluation.prompt_variants import OLD
from instructrec_jax.metrics.language import CJK
from instructrec_jax.robustness.lists import LANGUAGES, language_of, lists_of


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_word_is_in_two_lists(language: str) -> None:
    lists = lists_of(language)
    for groups in (lists.names, lists.places):
        words = [word for each in groups.values() for word in each]
        assert len(groups) >= 3 and len(set(words)) == len(words)
    assert all(OLD in wording for wording in lists.wordings)
    assert {"first_name", "city", "country"} == {n for n in ("first_name", "city", "country", "x") if lists.slot(n)}
    assert all(CJK.search(name) for name in lists.slot("first_name")) == (language == "zh")


def test_the_language_is_that_of_a_fifth_of_the_letters() -> None:
    assert language_of(["这部电影 by Nolan 很好看"]) == "zh"
    assert language_of(["a long English text about the sign 好"]) == "en"
    assert language_of([]) == "en" and language_of(["123 !"]) == "en"
