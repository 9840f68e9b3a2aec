"""Greedy search, sampling and shapes; greedy token for token against transformers.generate."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_networks
from tiny_networks import ENCODER_DECODERS, Network, prompts

from instructrec_jax.inference.decoding import Decoder
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules

KINDS = ["llama", "gpt2", "t5", "bart"]
SEEDS = (0, 3)
Make = Callable[..., Network]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers_with_ragged_prompts(network: Make, kind: str) -> None:
    lengths = set()
    for seed in SEEDS:
        net, asked = network(kind, seed), prompts(9, seed)
        found = net.answers(asked, max_new_tokens=20)
        assert found == net.expected(asked, max_new_tokens=20)
        lengths |= {len(answer.tokens) for answer in found}
    assert len(lengths) > 2, "no answer ended before the others: the test shows little"


@pytest.mark.parametrize("kind", ["llava", "paligemma", "gemma3"])
def test_greedy_equals_transformers_with_images_in_prompts(network: Make, kind: str) -> None:
    """None, one or two in a prompt, in batches of four that are not full."""
    net = network(kind, 3)
    vectors = 9  # 3 x 3 patches
    asked, images = tiny_networks.with_images(prompts(6, 3), [1, 0, 2, 1, 0, 1], vectors)
    found = net.answers(asked, images=images, max_new_tokens=10)
    assert found == net.expected_of_images(asked, images, max_new_tokens=10)
    others = [replace(each, pixels=each.pixels[..., ::-1]) for each in images]
    changed = net.answers(asked, images=others, max_new_tokens=10)
    assert changed != found and [changed[i] for i in (1, 4)] == [found[i] for i in (1, 4)]
    assert net.answers(asked, images=images, max_new_tokens=10, mesh=(2, 1, 1)) == found


def test_repetition_penalty_equals_transformers(network: Make) -> None:
    net, asked = network("llama", 3), prompts(4, 3)
    found = net.answers(asked, max_new_tokens=16, repetition_penalty=1.8)
    assert found == net.expected(asked, max_new_tokens=16, repetition_penalty=1.8)
    assert found != net.answers(asked, max_new_tokens=16)


def test_forced_and_suppressed_tokens_equal_transformers(network: Make) -> None:
    net, asked = network("bart", 3), prompts(5, 3)
    rules = {"forced_first": (7,), "forced_last": (2,), "suppressed": (11, 25), "suppressed_first": (2, 5, 9)}
    changed = replace(net, rules=replace(net.rules, **rules), _params={})
    expected = net.expected(
        asked,
        max_new_tokens=10,
        forced_bos_token_id=7,
        forced_eos_token_id=2,
        suppress_tokens=[11, 25],
        begin_suppress_tokens=[2, 5, 9],
    )
    assert changed.answers(asked, max_new_tokens=10) == expected


def logits_of(net: Network, prompt: np.ndarray, answer: list[int]) -> np.ndarray:
    """float64 [tokens, vocab], by one pass of the network in transformers."""
    torch = tiny_networks.torch
    with torch.no_grad():
        if net.kind in ENCODER_DECODERS:
            decoder_input = torch.tensor([[tiny_networks.START, *answer[:-1]]])
            logits = net.theirs(torch.tensor(prompt[None]), decoder_input_ids=decoder_input).logits[0]
        else:
            logits = net.theirs(torch.tensor([[*prompt.tolist(), *answer[:-1]]])).logits[0, len(prompt) - 1 :]
    return np.array(logits.numpy(), np.float64)


def log_p(logits: np.ndarray, answer: list[int]) -> np.ndarray:
    """float64 [tokens], of the tokens of an answer."""
    top = logits.max(-1, keepdims=True)
    values = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return np.array(values[np.arange(len(answer)), answer])


def teacher_forced(net: Network, prompt: np.ndarray, answer: list[int]) -> np.ndarray:
    """float64 [tokens]: log p of each token of an answer, by one pass of the network in transformers."""
    return log_p(logits_of(net, prompt, answer), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_teacher_forcing(network: Make, kind: str) -> None:
    """The network's own, of every token with the end token: no penalty, temperature or beam score is in them."""
    net, asked = network(kind, 3), prompts(6, 3)
    ways: list[dict[str, Any]] = [{}, {"beams": 3}, {"repetition_penalty": 1.8}, {"temperature": 1.3, "seed": 5}]
    finishes = set()
    for way in ways:
        for prompt, answer in zip(asked, net.answers(asked, max_new_tokens=12, **way), strict=True):
            finishes.add(answer.finish)
            expected = teacher_forced(net, prompt, answer.tokens)
            np.testing.assert_allclose(answer.log_probs, expected, atol=2e-4, err_msg=str(way))
    assert finishes == {"eos", "length"}


SAMPLED: dict[str, Any] = dict(max_new_tokens=12, temperature=1.3, seed=5)


def test_draws_do_not_depend_on_batch_order_or_padding(network: Make) -> None:
    net, asked = network("llama", 3), prompts(7, 1)
    alone = net.answers(asked, batch_size=1, **SAMPLED)
    assert alone == net.answers(asked, **SAMPLED)
    longer = [np.arange(4, 39).astype(np.int32), *asked]  # a longer bucket, and batches that are not full
    assert net.answers(longer, **SAMPLED)[1:] != alone  # other numbers, other draws
    longer = [*longer[1:], longer[0]]
    assert net.answers(longer, **SAMPLED)[:7] == alone
    assert net.answers(asked, **(SAMPLED | {"seed": 6})) != alone
    assert len({tuple(a.tokens) for a in net.answers([asked[0]] * 6, **SAMPLED)}) > 1  # each prompt has its own draws


def test_top_p_and_min_p_reach_the_draws(network: Make) -> None:
    net, asked = network("llama", 3), prompts(4, 1)
    loose, greedy = SAMPLED | {"top_k": 39, "top_p": 0.99, "min_p": 1e-4}, net.answers(asked, max_new_tokens=12)
    assert net.answers(asked, **loose) != greedy
    assert net.answers(asked, **loose | {"top_p": 1e-6}) == greedy
    assert net.answers(asked, **loose | {"min_p": 1.0}) == greedy
    assert net.answers(asked, **loose | {"temperature": 1e-4}) == greedy


BEAMS = {"max_new_tokens": 12, "beams": 3}


@pytest.mark.parametrize(
    ("kind", "mesh", "settings", "codes"),
    [
        ("llama", (8, 1, 1), SAMPLED, False),
        ("llama", (2, 2, 2), BEAMS, False),
        ("llama", (2, 2, 2), BEAMS, True),
        ("t5", (2, 2, 2), SAMPLED, False),
        pytest.param("t5", (2, 2, 2), SAMPLED, True, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_answer_as_one(
    network: Make, kind: str, mesh: tuple[int, int, int], settings: dict[str, Any], codes: bool
) -> None:
    """Also with keys and values in int8."""
    net, asked = network(kind, 3, codes), prompts(11, 2)
    assert net.answers(asked, mesh=mesh, batch_size=8, **settings) == net.answers(asked, **settings)


def test_one_prompt_on_eight_devices(network: Make) -> None:
    net, asked = network("llama"), prompts(1)
    assert net.answers(asked, mesh=(8, 1, 1), max_new_tokens=5) == net.expected(asked, max_new_tokens=5)


def test_nan_is_an_error(network: Make) -> None:
    """Not a token like any other: here from the sixth token on."""
    decoder, params = network("gpt2").decoder()
    table = params["backbone"]["position_embeddings"]["table"]
    damaged = params["backbone"] | {"position_embeddings": {"table": table.at[8].set(np.nan)}}
    for new, prompt in ((5, 4), (6, 4), (1, 9)):
        config = GenerationConfig(max_new_tokens=new, batch_size=4)
        answers = decoder.answer(params | {"backbone": damaged}, [np.full(prompt, 7, np.int32)] * 4, config)
        if new == 5:
            list(answers)
            continue
        with pytest.raises(FloatingPointError, match="NaN"):
            list(answers)


def compiles(decoder: Decoder, config: GenerationConfig) -> tuple[int, int]:
    programs: Any = decoder.programs(config)
    return programs.prefill._cache_size(), programs.decode._cache_size()


@pytest.mark.parametrize(("mesh", "beams"), [((1, 1, 1), 1), ((2, 2, 2), 2)])
def test_one_compile_a_shape(network: Make, mesh: tuple[int, int, int], beams: int) -> None:
    """Prompts of any length in two buckets, answers of any length, answered whole, in steps of 1 and of 5."""
    net = replace(
        network("llama"), rules=TokenRules(eos=(2,), suppressed=(beams,)), _params={}
    )  # nobody else's Decoder
    decoder, params = net.decoder(mesh)
    asked = [*prompts(9), *(np.full(n, 7, np.int32) for n in (33, 40, 50, 35, 36))]
    config = GenerationConfig(max_new_tokens=12, batch_size=4, beams=beams)
    answers = [dict(decoder.answer(params, asked, config, every=every)) for every in (None, 1, 5)]
    assert answers[0] == answers[1] == answers[2]
    list(decoder.answer(params, asked, replace(config, max_new_tokens=9, seed=3)))
    assert compiles(decoder, config) == (2, 2)


def test_rows_end_when_they_are_stopped(network: Make) -> None:
    """A stopped answer keeps its tokens up to that check; the others continue unaffected."""
    net, asked = network("llama", 3), prompts(4, 3)
    whole = net.answers(asked, max_new_tokens=12)
    decoder, params = net.decoder()
    stops = decoder.answer(
        params,
        asked,
        GenerationConfig(max_new_tokens=12, batch_size=4),
        every=3,
        stops=lambda number, tokens: number == 0 and len(tokens) > 2,
    )
    stopped = dict(stops)
    assert len(whole[0].tokens) > 4
    assert (stopped[0].tokens, stopped[0].finish) == (whole[0].tokens[:4], "stop")
    assert [stopped[n] for n in range(1, 4)] == whole[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_do_not_fit_are_named(network: Make, kind: str) -> None:
    decoder, _ = network(kind).decoder()
    config = GenerationConfig(max_new_tokens=30)
    decoder.check([np.ones(34, np.int32)], ["a"], config)
    with pytest.raises(ValueError, match="^b .*tokens"):
        decoder.check([np.ones(3, np.int32), np.ones(0, np.int32)], ["a", "b"], config)
    if kind == "t5":  # no longest text
        return
    size = 65 if kind in ENCODER_DECODERS else 35
    with pytest.raises(ValueError, match=f"^b .*{size}.*max_new_tokens.* 30.* 64"):
        decoder.check([np.ones(3, np.int32), np.ones(size, np.int32)], ["a", "b"], config)


def test_the_last_position_of_the_network_is_used(network: Make) -> None:
    net = network("gpt2", 3)
    asked = [np.arange(4, 36).astype(np.int32), *prompts(3)]
    assert net.answers(asked, max_new_tokens=32) == net.expected(asked, max_new_tokens=32)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_guided_answers_are_those_of_two_passes(network: Make, kind: str) -> None:
    """One with the prompt, one with a blank prompt of the same length; ragged prompts, batches that are not full."""
    net, asked, blank, scale = network(kind, 3), prompts(5, 3), 4, 2.5
    guided = replace(net, rules=replace(net.rules, blank=blank, suppressed=(11, 25)), _params={})
    found = guided.answers(asked, max_new_tokens=8, guidance_scale=scale, batch_size=3)
    for prompt, answer in zip(asked, found, strict=True):
        tokens = answer.tokens
        with_prompt, without = (logits_of(net, p, tokens) for p in (prompt, np.full_like(prompt, blank)))
        scores = without + scale * (with_prompt - without)
        scores[:, [11, 25]] = -np.inf
        assert scores.argmax(-1).tolist() == tokens
        np.testing.assert_allclose(answer.log_probs, log_p(with_prompt, tokens), atol=2e-4)  # without guidance
    assert [a.tokens for a in found] != [a.tokens for a in guided.answers(asked, max_new_tokens=8)]
    assert found == guided.answers(asked, max_new_tokens=8, guidance_scale=scale, batch_size=1)
    assert found == guided.answers(asked, max_new_tokens=8, guidance_scale=scale, mesh=(2, 1, 1), batch_size=4)
    with pytest.raises(ValueError, match="guidance_scale is 2.5, but the network never learned without prompts"):
        net.decoder()[0].check(asked, list("abcde"), GenerationConfig(max_new_tokens=8, guidance_scale=scale))
