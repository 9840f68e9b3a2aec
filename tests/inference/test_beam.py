"""Beam search, token for token against transformers.generate."""

from collections.abc import Callable

import pytest
from tiny_networks import Network, prompts

Make = Callable[..., Network]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_beams_equal_transformers(network: Make, kind: str) -> None:
    lengths, differs, beams = set(), False, 3 if kind in ("llama", "t5") else 5
    for seed, length_penalty in ((0, 1.0), (3, 1.0), (3, 0.0), (0, -1.5), (3, 2.5)):
        net, asked = network(kind, seed), prompts(8, seed)
        settings = {"max_new_tokens": 12, "length_penalty": length_penalty}
        found = net.answers(asked, beams=beams, **settings)
        assert found == net.expected(asked, num_beams=beams, early_stopping=False, **settings)
        lengths |= {len(answer.tokens) for answer in found}
        differs |= found != net.expected(asked, max_new_tokens=12)
    assert len(lengths) > 2 and differs, "the answers are those of greedy search: the test shows little"


def test_beams_with_a_repetition_penalty_equal_transformers(network: Make) -> None:
    net, asked = network("bart", 3), prompts(4, 4)
    settings = {"max_new_tokens": 10, "repetition_penalty": 1.6}
    found = net.answers(asked, beams=3, **settings)
    assert found == net.expected(asked, num_beams=3, early_stopping=False, **settings)


def test_an_answer_of_one_token(network: Make) -> None:
    net, asked = network("llama"), prompts(4)
    assert net.answers(asked, max_new_tokens=1, beams=3) == net.expected(asked, max_new_tokens=1, num_beams=3)
