"""The scores that tokens are chosen by, against transformers' logits processors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from instructrec_jax.inference import sampling
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules

VOCAB = 50


def scores(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, VOCAB)).astype(np.float32) * 3
    if kind == "ties":
        return np.round(values)
    if kind == "extreme":
        values[0, 3] = 1e4  # one token has all the probability
        values[1] = -1e4
        values[2, 10:] = -np.inf  # suppressed before
        values[3] = 0.0
        values[4, ::2] *= 1e3
    return values


def compare(ours: jax.Array, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(jax.nn.softmax(ours), torch.softmax(expected, -1).numpy(), atol=1e-6, rtol=0)
    np.testing.assert_array_equal(np.isneginf(ours), torch.isneginf(expected).numpy())


@pytest.fixture
def stable_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers leaves to chance which of equal tokens top-p keeps; here it is decided as ours."""
    monkeypatch.setattr(torch, "sort", partial(torch.sort, stable=True))


KINDS = ["random", "ties", "extreme"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 7, 49, 500])
def test_top_k(kind: str, k: int) -> None:
    x = scores(kind)
    compare(sampling.keep_top_k(jnp.array(x), k), theirs.TopKLogitsWarper(k)(None, torch.tensor(x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p(kind: str, p: float, stable_sort: None) -> None:
    x = scores(kind)
    compare(sampling.keep_top_p(jnp.array(x), p), theirs.TopPLogitsWarper(p)(None, torch.tensor(x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 1.0])
def test_min_p(kind: str, p: float) -> None:
    x = scores(kind)
    compare(sampling.keep_min_p(jnp.array(x), p), theirs.MinPLogitsWarper(p)(None, torch.tensor(x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty(kind: str, penalty: float) -> None:
    x = scores(kind)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (6, 9))
    padding = np.arange(6)  # the first 0, 1, ... tokens are padding
    valid = np.arange(9) >= padding[:, None]
    seen = sampling.seen_tokens(jnp.array(tokens), jnp.array(valid), VOCAB)
    processor = theirs.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=torch.tensor(padding))
    expected = processor(torch.tensor(tokens), torch.tensor(x))
    ours = sampling.penalize_repetition(jnp.array(x), seen, penalty)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_together_in_order(kind: str, stable_sort: None) -> None:
    x = scores(kind)
    config = GenerationConfig(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05)
    expected = torch.tensor(x)
    for processor in (
        theirs.TemperatureLogitsWarper(0.7),
        theirs.TopKLogitsWarper(20),
        theirs.TopPLogitsWarper(0.8),
        theirs.MinPLogitsWarper(0.05),
    ):
        expected = processor(None, expected)
    compare(sampling.warp(jnp.array(x), config.structure(), config.scalars()), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_forced_and_suppressed_tokens(count: int) -> None:
    """In the order of `transformers.generate`: an answer of at most five tokens after a start token."""
    x = scores("random")
    rules = TokenRules(
        eos=(2,), forced_first=(7,), forced_last=(2, 3), suppressed=(4, int(x[0].argmax())), suppressed_first=(9, 5)
    )
    tokens = torch.zeros(6, 1 + count, dtype=torch.long)
    expected = torch.tensor(x)
    for processor in (
        theirs.ForcedBOSTokenLogitsProcessor(7),
        theirs.ForcedEOSTokenLogitsProcessor(6, [2, 3]),
        theirs.SuppressTokensLogitsProcessor(list(rules.suppressed)),
        theirs.SuppressTokensAtBeginLogitsProcessor([9, 5], begin_index=2),
    ):
        expected = processor(tokens, expected)
    state = {"count": jnp.int32(count), "limit": jnp.int32(5)}
    ours = sampling.adjust(jnp.array(x), state, rules)
    np.testing.assert_array_equal(ours, expected.numpy())


def test_draws_follow_the_distribution_and_depend_on_seed_prompt_and_step_alone() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    numbers = jnp.arange(4000)
    many = sampling.draw(jnp.tile(logits, (4000, 1)), jnp.uint32(1), numbers, jnp.int32(3))
    np.testing.assert_allclose(np.bincount(many, minlength=4) / 4000, jnp.exp(logits), atol=0.025)
    some = sampling.draw(jnp.tile(logits, (2, 1)), jnp.uint32(1), jnp.array([3999, 17]), jnp.int32(3))
    assert some.tolist() == [many[3999], many[17]]
    for seed, step in ((2, 3), (1, 4)):
        other = sampling.draw(jnp.tile(logits, (4000, 1)), jnp.uint32(seed), numbers, jnp.int32(step))
        agree = float((other == many).mean())
        assert abs(agree - (0.5**2 + 0.3**2 + 0.15**2 + 0.05**2)) < 0.03  # as independent draws do


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_with_its_own_settings_draws_as_alone(kind: str) -> None:
    """`choose` against `warp` and `draw`, or the largest score."""
    x, rules = jnp.array(scores(kind)), TokenRules()
    ways = [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.8},
        {"temperature": 2.0, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.1, "top_k": 500},
    ]
    configs = [GenerationConfig(**way) for way in ways]
    arrays = {name: jnp.array([c.scalars()[name] for c in configs]) for name in ways[4] | {"repetition_penalty": 1.0}}
    arrays |= {"active": jnp.ones(6, bool), "top_k": jnp.array([c.top_k or 0 for c in configs])}
    arrays |= {"seen": jnp.zeros(x.shape, bool), "seed": jnp.arange(6, dtype=jnp.uint32), "numbers": jnp.arange(6)}
    arrays |= {"count": 10 * jnp.arange(6), "limit": jnp.full(6, 99)}
    found = sampling.choose(x, arrays, rules)
    for row, config in enumerate(configs):
        alone = x[row : row + 1]
        if config.temperature > 0:
            scalars = {name: arrays[name][row] for name in config.scalars() if name in arrays}
            alone = sampling.warp(alone, config, scalars)
            expected = sampling.draw(alone, arrays["seed"][row], arrays["numbers"][row : row + 1], arrays["count"][row])
        else:
            expected = jnp.argmax(alone, axis=-1)
        assert found[row] == expected[0], ways[row]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_p": 0.5}, "top_p.*temperature"),
        ({"beams": 0}, "beams"),
        ({"beams": 2, "temperature": 1.0}, "temperature"),
        ({"beams": 2, "stop": ("x",)}, "stop"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"stop": ("",)}, "stop"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": "3"}, "max_new_tokens"),
        ({"max_new_tokens": None}, "max_new_tokens"),
        ({"temperature": "1"}, "temperature"),
        ({"stop": (3,)}, "stop"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**settings)


def test_one_stop_text_is_one_text() -> None:
    assert GenerationConfig(stop="END") == GenerationConfig(stop=["END"]) == GenerationConfig(stop=("END",))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 1.5, 7.0])
def test_guidance_equals_transformers(scale: float) -> None:
    """Rows alternate here; there those without a prompt come behind all others."""
    values = scores("random")
    found = sampling.guided(jnp.asarray(values), scale)
    process = theirs.ClassifierFreeGuidanceLogitsProcessor(2.0)
    process.guidance_scale = scale  # it refuses 1, which is no guidance
    expected = process(torch.zeros((3, 1)), torch.tensor(np.concatenate([values[::2], values[1::2]])))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    if scale == 1:
        np.testing.assert_allclose(found, values[::2], atol=1e-6)  # a float32 step of the largest
