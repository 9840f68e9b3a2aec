"""Likelihoods of many answers to a prompt, against PyTorch reading each text alone, without a cache."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_networks import ENCODER_DECODERS, START, VOCAB, Network

from instructrec_jax.data.batch import Text
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.predictor import make_predict
from instructrec_jax.inference import likelihood
from instructrec_jax.inference.likelihood import (
    branch_log_probs,
    encode_once,
    log_likelihoods,
    normalized,
    share_prefix,
)
from instructrec_jax.tasks.prediction import Predict

KINDS = ["llama", "gpt2", "t5", "bart"]
Make = Callable[..., Network]


def predictor(net: Network, mesh: tuple[int, int, int] = (1, 1, 1)) -> Predict:
    decoder, params = net.decoder(mesh)

    @jax.jit
    def step(params: Any, batch: Any) -> Any:
        return branch_log_probs(nnx.merge(decoder.graphdef, params), batch, batch.own)

    on = make_mesh(MeshConfig(*mesh), jax.devices()[: int(np.prod(mesh))])
    return make_predict(step, params, mesh=on, buckets=(32, 64), per_token=True)


def drawn(count: int, seed: int = 0, most: int = 9) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Prompts of 1 to 20 tokens, with 1 to `most` answers of 1 to 7 tokens each, of which some begin alike."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> np.ndarray:
        return rng.integers(4, VOCAB, rng.integers(1, longest + 1)).astype(np.int32)

    made = []
    for _ in range(count):
        start = tokens(2)
        answers = [
            np.append(start, tokens(5)) if rng.random() < 0.5 else tokens(7) for _ in range(rng.integers(1, most))
        ]
        made.append((tokens(20), [a.astype(np.int32) for a in answers]))
    return made


def requests(net: Network, asked: list[tuple[np.ndarray, list[np.ndarray]]]) -> list[likelihood.Request]:
    if net.kind in ENCODER_DECODERS:
        return [encode_once(Text(p), [(a, np.ones(len(a), bool)) for a in answers], START) for p, answers in asked]

    def whole(prompt: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([prompt, answer]), np.arange(len(prompt) + len(answer)) >= len(prompt)

    return [share_prefix([whole(p, a) for a in answers]) for p, answers in asked]


def expected(net: Network, prompt: np.ndarray, answer: np.ndarray) -> list[float]:
    labels = torch.tensor(answer, dtype=torch.long)
    with torch.no_grad():
        if net.kind in ENCODER_DECODERS:
            read = torch.tensor([[START, *answer[:-1]]])
            logits = net.theirs(input_ids=torch.tensor(prompt[None]).long(), decoder_input_ids=read).logits[0]
        else:
            whole = torch.tensor(np.concatenate([prompt, answer])[None]).long()
            logits = net.theirs(input_ids=whole).logits[0, len(prompt) - 1 : -1]
    each = torch.log_softmax(logits, -1)[torch.arange(len(answer)), labels]
    return [float(each.sum()), len(answer)]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_every_text_alone(network: Make, kind: str) -> None:
    """Several requests share a row, and all answers of a request the prompt; none of them sees another."""
    net, asked = network(kind, 3), drawn(12)
    found = log_likelihoods(predictor(net), requests(net, asked))
    for (prompt, answers), values in zip(asked, found, strict=True):
        np.testing.assert_allclose(values, [expected(net, prompt, a) for a in answers], atol=1e-4)


def test_prompts_that_are_read_in_both_directions_are_refused(network: Make) -> None:
    net = network("paligemma", 3)
    with pytest.raises(ValueError, match="both directions.*generate answers"):
        log_likelihoods(predictor(net), requests(net, drawn(2)))


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_more_answers_than_a_row_takes(network: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = network(kind, 3), drawn(5, 1)
    whole = log_likelihoods(predictor(net), requests(net, asked))
    monkeypatch.setattr(likelihood, "MOST_TOKENS", 9)
    for values, again in zip(whole, log_likelihoods(predictor(net), requests(net, asked)), strict=True):
        np.testing.assert_allclose(values, again, atol=1e-4)
    assert likelihood._groups([4, 5, 1, 20, 3]) == [[0, 1], [2], [3], [4]]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_eight_devices_score_as_one(network: Make, kind: str) -> None:
    net, asked = network(kind, 3), drawn(6, 2)
    whole = log_likelihoods(predictor(net), requests(net, asked))
    for values, again in zip(whole, log_likelihoods(predictor(net, (2, 2, 2)), requests(net, asked)), strict=True):
        np.testing.assert_allclose(values, again, atol=1e-4)


def test_the_prompt_is_read_once(network: Make) -> None:
    """Of a decoder's request the prompt's tokens but the last are laid out once, whatever the number of answers."""
    prompt, answers = np.arange(4, 24, dtype=np.int32), [np.array([30, n], np.int32) for n in range(4, 12)]
    (request,) = requests(network("gpt2"), [(prompt, answers)])
    # 30 is common to all answers, but it counts, and is predicted at the last token of the prompt
    assert request.prefix.tokens.tolist() == prompt[:-1].tolist()
    assert [b.tokens.tolist() for b in request.branches] == [[23, 30]] * 8
    assert [b.labels.tolist() for b in request.branches] == [[30, n] for n in range(4, 12)]
    assert {b.place for b in request.branches} == {19}


def test_a_token_across_the_border_is_no_part_of_the_prefix() -> None:
    """Where a tokenizer joins the end of a prompt with the beginning of one answer, texts differ before the answer."""
    counts = np.array([False, False, False, True, True])
    request = share_prefix([(np.array([5, 6, 7, 8, 9]), counts), (np.array([5, 6, 10, 9, 9]), counts)])
    assert request.prefix.tokens.tolist() == [5, 6]
    assert [b.tokens.tolist() for b in request.branches] == [[7, 8], [10, 9]]
    assert [b.labels.tolist() for b in request.branches] == [[8, 9], [9, 9]]
    assert [b.counts.tolist() for b in request.branches] == [[True, True]] * 2
    one = (np.array([5, 6, 7]), np.array([False, True, True]))
    two = (np.array([5, 6]), np.array([False, True]))
    assert [len(b.tokens) for b in share_prefix([one, two]).branches] == [2, 1]
    for counts in ([True, True, True], [False] * 3):
        with pytest.raises(ValueError, match="token"):
            share_prefix([one, (one[0], np.array(counts))])


def test_normalization() -> None:
    found = np.array([[-6.0, 4], [-6.0, 1]])
    assert normalized(found, 1.0).tolist() == [-1.5, -6]
    assert normalized(found, 0.0).tolist() == [-6, -6]
    assert normalized(found, 0.5).tolist() == [-3, -6]


def test_nothing_asked(network: Make) -> None:
    assert log_likelihoods(predictor(network("gpt2")), []) == []
