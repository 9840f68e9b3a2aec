"""Likelihoods of given answers, with a network that knows how likely each token is, whatever stands before it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.data.batch import Text, split_tokens
from instructrec_jax.data.example import Example
from instructrec_jax.tasks import ChoiceConfig
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask

TOKENIZER = byte_tokenizer()
LOG_P = -np.random.default_rng(0).random(len(TOKENIZER))  # of each token


def task(**context: Any) -> LikelihoodTask:
    settings: dict[str, Any] = {"max_length": 200, "kind": "decoder", "decoder_start_token_id": 1}
    return ChoiceConfig(template="plain").build(TaskContext(TOKENIZER, **(settings | context)))


class Network:
    """Counts the tokens that it reads before the answers."""

    def __init__(self) -> None:
        self.prefixes: list[str] = []
        self.sizes: list[int] = []

    def __call__(self, texts: Sequence[Text], own: Any = None) -> list[np.ndarray]:
        self.prefixes += [TOKENIZER.decode(text.tokens) for text in texts]
        lengths = np.array([len(text.target) for text in texts])  # type: ignore[arg-type]
        self.sizes += [len(text.tokens) for text in texts]
        return split_tokens(LOG_P[own.labels] * own.counts, lengths)


def expected(answer: str, end: bool) -> tuple[float, int]:
    ids = TOKENIZER(answer, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id] * end
    return float(LOG_P[ids].sum()), len(ids)


ASKED = Example(instruction="which film?")
ANSWERS = ["war", "space crime", "漢", "war and space", "the"]


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("end", [True, False])
def test_the_sum_over_an_answers_tokens(kind: str, end: bool) -> None:
    network: Any = Network()
    own = task(kind=kind)
    cases = [[(ASKED, ANSWERS)], [], [(ASKED, ANSWERS[:2]), (Example(instruction="and?", input="x"), ["old"])]]
    found = own.log_likelihoods(network, cases, end=end)
    assert [[len(values) for values in each] for each in found] == [[5], [], [2, 1]]
    for values, (_, answers) in zip([v for each in found for v in each], [q for c in cases for q in c], strict=True):
        np.testing.assert_allclose(values, [expected(answer, end) for answer in answers], rtol=1e-6)


def test_a_decoder_reads_the_common_prompt_of_a_case_once() -> None:
    network: Any = Network()
    task().log_likelihoods(network, [[(ASKED, ANSWERS)]], end=True)
    assert network.prefixes == ["which film?"]  # without the newline, which predicts the first token
    task(kind="encoder_decoder").log_likelihoods(network, [[(ASKED, ANSWERS), (ASKED, ["x"])]], end=True)
    assert network.prefixes[1:] == ["which film?"] * 2


def test_a_token_of_prompt_and_answer_is_not_scored_and_counted() -> None:
    own = task()
    network: Any = Network()
    ((values,),) = own.log_likelihoods(network, [[(ASKED, ["\n\nwar", "war"])]], end=True)
    # of the three newlines the first two are one token, which begins in the prompt
    np.testing.assert_allclose(values, [expected("\nwar", True), expected("war", True)], rtol=1e-6)
    assert list(own.context.counts.values()) == [1]


def test_nothing_asked() -> None:
    network: Any = Network()
    assert task().log_likelihoods(network, [], end=True) == [] and network.prefixes == []


LONG = Example(instruction="very " * 30 + "good")


@pytest.mark.parametrize("truncate", ["error", "right", "drop"])
def test_a_long_prompt_names_the_settings(truncate: Any) -> None:
    own = task(max_length=40, truncate=truncate)
    own.check_question(ASKED, ["war"])
    with pytest.raises(ValueError, match=r"data.max_length.*data.truncate"):
        own.check_question(LONG, ["war"])


def test_a_long_prompt_loses_its_beginning_in_all_texts_of_a_case() -> None:
    own = task(max_length=40, truncate="left")
    network: Any = Network()
    ((values,),) = own.log_likelihoods(network, [[(LONG, ["war", "space crime"])]], end=True)
    np.testing.assert_allclose(values, [expected("war", True), expected("space crime", True)], rtol=1e-6)
    (prefix,), (size,) = network.prefixes, network.sizes
    assert LONG.instruction.endswith(prefix)
    # the longest text fills data.max_length; the newline before the answer is read with it
    assert size + 1 + expected("space crime", True)[1] == 40
    assert list(own.context.counts.values()) == [1]
    with pytest.raises(ValueError, match="data.max_length"):
        own.check_question(ASKED, ["war " * 40])  # not even the whole prompt makes room


def test_a_source_cannot_be_dropped() -> None:
    own = task(kind="encoder_decoder", max_length=10, truncate="drop")
    with pytest.raises(ValueError, match="'x7'.*data.max_length"):
        own.check_question(Example(instruction="very long " * 9, id="x7"), ["war"])
