"""Examples of pairs, and documents of a passage with a chain of pairs."""

import pytest
from synthesis_texts import RIVER, TOWN

from instructrec_jax.data.example import Example
from instructrec_jax.synthesis.documents import LAYOUTS, chain, document, gets_pairs, pair_example
from instructrec_jax.synthesis.grounding import Pair
from instructrec_jax.synthesis.passages import Passage

PAIRS = [Pair(rule, f"{rule} {number}?", f"answer {number}") for rule in ("a", "b") for number in range(3)]
PASSAGE = Passage(TOWN, 1, source="file.jsonl, line 7")


def test_a_pair_is_an_example_about_its_passage() -> None:
    example = pair_example(PAIRS[0], PASSAGE)
    assert (example.instruction, example.input, example.output) == ("a 0?", TOWN, "answer 0")
    assert example.origin == {"made_from": "file.jsonl, line 7, passage 2", "rule": "a"}
    assert pair_example(Pair("order", "i", "a", alone=True), PASSAGE).input is None
    assert Example.from_record(example.to_record()) == example


@pytest.mark.parametrize(("passage", "words"), [(PASSAGE, ("Q: ", "Question: ")), (Passage(RIVER), ("问：", "问题："))])
def test_a_document_is_the_passage_and_its_pairs(passage: Passage, words: tuple[str, str]) -> None:
    texts = [document(passage, PAIRS[:2], seed).messages[0].content for seed in range(30)]
    assert all(text.startswith(passage.text + "\n\n") for text in texts)
    assert {next((word for word in words if f"\n{word}" in text), "") for text in texts} == {*words, ""}
    assert passage.language is not None and len(set(texts)) == len(LAYOUTS[passage.language])
    for text in texts:
        asked, answered = text.index("a 0?"), text.index("answer 0")
        assert asked < answered < text.index("a 1?") < text.index("answer 1")
    bare = document(passage, [], 0)
    assert bare.messages[0].content == passage.text and "rule" not in bare.origin
    assert Example.from_record(bare.to_record()) == bare


def test_chains_take_every_rule_before_a_second_of_one() -> None:
    for seed in range(20):
        assert {pair.rule for pair in chain(PAIRS, 2, PASSAGE, seed)} == {"a", "b"}
        whole = chain(PAIRS, 9, PASSAGE, seed)
        assert sorted(pair.instruction for pair in whole) == sorted(pair.instruction for pair in PAIRS)
        assert chain(PAIRS, 4, PASSAGE, seed) == whole[:4]
    assert len({tuple(p.rule for p in chain(PAIRS, 2, PASSAGE, seed)) for seed in range(20)}) == 2


def test_a_share_of_the_passages_gets_pairs() -> None:
    some = [Passage(f"text {number}") for number in range(2000)]
    assert 0.25 < sum(gets_pairs(each, 0.3, 1) for each in some) / 2000 < 0.35
    assert all(gets_pairs(each, 1.0, 1) for each in some)
    assert [gets_pairs(each, 0.3, 1) for each in some] == [gets_pairs(each, 0.3, 1) for each in some]
    fewer = [each for each in some if gets_pairs(each, 0.1, 1)]
    assert all(gets_pairs(each, 0.3, 1) for each in fewer)  # a larger share adds to a smaller one
