"""Rows of one cache; what whole answers are is in service/test_engine.py."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tiny_networks

from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.slots import Rows, Slots

TEXT = np.arange(6, 29, dtype=np.int32)  # two chunks of 8, and some more


def opened(network: Callable[..., tiny_networks.Network]) -> Slots:
    decoder, params = network("llama", 3).decoder()
    return Slots(decoder, params, slots=2, capacity=30, chunk=8)


def row_bits(slots: Slots, row: int) -> list[np.ndarray]:
    return [np.asarray(x[:, row, : len(TEXT) - 1]) for x in jax.tree.leaves(slots.held.layers)]


def test_a_copied_chunk_has_the_bits_of_a_computed_one(network: Callable[..., Any]) -> None:
    slots, rows = opened(network), Rows(2)
    assert (slots.capacity, slots.counts, slots.reads, slots.lengths) == (32, (1, 2), (32,), (32,))
    assert slots.sizes == (2, 4, 8)  # a short rest of a prompt does not cost a whole chunk
    config, last = GenerationConfig(max_new_tokens=3, temperature=1.2, seed=4), len(TEXT) - 1
    blocks = [slots.prefill(0, TEXT[at : min(at + 8, last)], at) for at in range(0, last, 8)]
    assert all(bool(whole) for _, whole in blocks)
    rows.set(0, config, last=int(TEXT[-1]), place=last, numbers=0, active=True)
    alone = slots.step(rows.first(2), 32)  # while row 1 waits

    for number, (block, _) in enumerate(blocks[:2]):
        slots.insert(1, block, 8 * number)
    slots.prefill(1, TEXT[16:last], 16)
    for mine, other in zip(row_bits(slots, 0), row_bits(slots, 1), strict=True):
        np.testing.assert_array_equal(mine, other)
    rows.set(1, config, last=int(TEXT[-1]), place=last, numbers=0, active=True)
    both = slots.step(rows.first(2), 32)
    assert both.tokens[0] == both.tokens[1] == alone.tokens[0]
    assert both.log_probs[0] == both.log_probs[1] == alone.log_probs[0]


def test_a_prompt_read_as_a_whole_is_that_of_chunks(network: Callable[..., Any]) -> None:
    """Of a causal network; what attends in both directions is in service/test_engine.py."""
    slots, last = opened(network), len(TEXT) - 1
    for at in range(0, last, 8):
        slots.prefill(0, TEXT[at : min(at + 8, last)], at)
    assert bool(slots.prefill_whole(1, TEXT))
    for mine, other in zip(row_bits(slots, 0), row_bits(slots, 1), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_an_image_is_read_into_its_place(network: Callable[..., Any]) -> None:
    decoder, params = network("llava", 3).decoder()
    slots = Slots(decoder, params, slots=2, capacity=30, chunk=8)
    assert slots.sees and slots.together == "nothing" and slots.image_shape == (12, 12, 3)
    pixels = np.random.default_rng(0).normal(size=slots.image_shape).astype(np.float32)
    seen = np.asarray(slots.see(slots.unseen, pixels, 1).vectors)
    assert seen.shape == (1, 32, 32) and not seen[:, :9].any() and not seen[:, 18:].any()
    assert seen[:, 9:18].any(-1).all()
    slots.remember(0, np.array([5, 10**6]))  # the token of an image may lie beyond the vocabulary
    assert np.flatnonzero(np.asarray(slots.held.seen[0])).tolist() == [5]


def test_a_row_that_waits_is_not_written(network: Callable[..., Any]) -> None:
    slots, rows = opened(network), Rows(2)
    slots.prefill(1, TEXT[:8], 0)
    before = [np.asarray(x[:, 1]) for x in jax.tree.leaves(slots.held.layers)]
    rows.set(0, GenerationConfig(), last=7, place=0, numbers=0, active=True)
    rows.arrays["place"][1] = 3
    slots.step(rows.first(2), 32)
    for old, new in zip(before, jax.tree.leaves(slots.held.layers), strict=True):
        np.testing.assert_array_equal(old, new[:, 1])
    slots.clear(1)
    assert all(not np.asarray(x[:, 1]).any() for x in jax.tree.leaves(slots.held.layers))


def test_a_step_reads_at_most_twice_the_slots_in_use(network: Callable[..., Any]) -> None:
    decoder, params = network("llama", 3).decoder()
    slots = Slots(decoder, params, slots=16, capacity=2048, chunk=128)
    assert slots.counts == (1, 4, 16) and slots.sizes == (32, 64, 128)
    assert slots.lengths == (256, 512, 1024, 2048) and slots.reads == (256, 1024, 2048)
    assert [slots.length_for(tokens) for tokens in (1, 256, 257, 2048)] == [256, 256, 512, 2048]
