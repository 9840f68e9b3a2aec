"""The sequence head against NumPy in float64, one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from instructrec_jax.adapters.next_item import NextItemHead, NextItemSpec

ITEMS, TEXT, WIDTH = 11, 6, 8


def make(text: bool = True, ids: bool = True, rate: float = 0.0) -> NextItemHead:
    spec = NextItemSpec(ITEMS, TEXT if text else 0, ids, WIDTH, num_layers=2, num_heads=2, max_length=7, dropout=rate)
    head = NextItemHead(spec, rngs=nnx.Rngs(3))
    noise = np.random.default_rng(0)  # biases and norms away from what they begin as
    graphdef, params = nnx.split(head)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), params))


def vectors(size: int, width: int = TEXT, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)


def numpy_queries(head: NextItemHead, first: np.ndarray, items: list[int], texts: np.ndarray) -> np.ndarray:
    """The head on one sequence, as its definition reads."""
    f = {"/".join(map(str, p)): np.asarray(v[...], np.float64) for p, v in nnx.to_flat_state(nnx.state(head))}

    def norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * scale + bias

    x = np.zeros((1 + len(items), WIDTH))
    if head.item_projection is not None:
        x[0] = first @ f["instruction_projection/kernel"]
        x[1:] += texts[items].astype(np.float64) @ f["item_projection/kernel"]
    if head.items is not None:
        x[1:] += np.sqrt(WIDTH) * f["items/table"][items]
    x = x + f["positions/table"][: len(x)]
    block = "layers/block0/"
    for layer in range(2):
        p = {name.removeprefix(block): value[layer] for name, value in f.items() if name.startswith(block)}
        y = norm(x, p["attention_norm/scale"], p["attention_norm/bias"])
        q, k, v = np.moveaxis(np.tensordot(y, p["qkv/kernel"], 1) + p["qkv/bias"], 1, 0)
        mixed = np.zeros_like(x)
        for part in (slice(0, 4), slice(4, 8)):
            scores = q[:, part] @ k[:, part].T / 2
            scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
        x = x + mixed @ p["attention_output/kernel"] + p["attention_output/bias"]
        y = norm(x, p["mlp_norm/scale"], p["mlp_norm/bias"]) @ p["mlp_in/kernel"] + p["mlp_in/bias"]
        y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
        x = x + y @ p["mlp_out/kernel"] + p["mlp_out/bias"]
    return norm(x, f["final_norm/scale"], f["final_norm/bias"])


@pytest.mark.parametrize(("text", "ids"), [(True, True), (True, False), (False, True)])
def test_packed_sequences_equal_numpy_one_by_one(text: bool, ids: bool) -> None:
    head = make(text, ids)
    texts, instructions = vectors(ITEMS), vectors(3, seed=2)
    if not text:
        texts, instructions = texts[:, :0], instructions[:0, :0]
    sequences = [(2, [4, 9, 0]), (0, []), (1, [10, 3]), (2, [1, 2, 3, 4, 5, 6])]
    tokens, segments, positions = (np.zeros((2, 8), np.int32) for _ in range(3))
    starts = [(0, 0), (0, 4), (0, 5), (1, 0)]
    for number, ((row, start), (instruction, items)) in enumerate(zip(starts, sequences, strict=True)):
        span = slice(start, start + 1 + len(items))
        tokens[row, span] = [instruction, *items]
        segments[row, span], positions[row, span] = number + 1, np.arange(1 + len(items))
    found = np.asarray(head(tokens, segments, positions, texts, instructions))
    for (row, start), (instruction, items) in zip(starts, sequences, strict=True):
        first = instructions[instruction].astype(np.float64) if text else np.zeros(0)
        expected = numpy_queries(head, first, items, texts)
        np.testing.assert_allclose(found[row, start : start + 1 + len(items)], expected, atol=2e-6)


def test_an_item_beyond_the_known_ones_is_its_text_alone() -> None:
    head = make()
    texts = vectors(ITEMS + 1)
    (vector, bias), (known, known_bias) = (head.item_vectors(texts, jnp.array([n])) for n in (ITEMS, 4))
    kernel = np.asarray(head.item_projection.kernel[...]) / np.sqrt(WIDTH)
    np.testing.assert_allclose(vector[0], texts[ITEMS] @ kernel, atol=1e-6)
    assert float(bias[0]) == 0
    np.testing.assert_allclose(known[0], texts[4] @ kernel + np.asarray(head.items.table[...])[4], atol=1e-6)
    assert float(known_bias[0]) == float(head.bias[...][4])
    every, every_bias = head.item_vectors(texts[:ITEMS])
    np.testing.assert_allclose(every[4], known[0], atol=1e-6)
    np.testing.assert_allclose(every_bias[4], known_bias[0])


@pytest.mark.parametrize("text", [True, False])
def test_a_picture_is_added_and_none_is_a_zero(text: bool) -> None:
    spec = NextItemSpec(ITEMS, TEXT if text else 0, True, WIDTH, 1, 2, 7, 0.0, picture_size=5)
    head = NextItemHead(spec, rngs=nnx.Rngs(3))
    texts = vectors(ITEMS) if text else np.zeros((ITEMS, 0), np.float32)
    pictures = vectors(ITEMS, 5, seed=4)
    pictures[3] = 0
    found, _ = head.item_vectors(texts, jnp.array([3, 4]), pictures)
    rest, _ = head.item_vectors(texts, jnp.array([3, 4]), np.zeros_like(pictures))
    kernel = np.asarray(head.picture_projection.kernel[...]) / np.sqrt(WIDTH)
    np.testing.assert_array_equal(found[0], rest[0])
    np.testing.assert_allclose(found[1], rest[1] + pictures[4] @ kernel, atol=1e-6)
    every, _ = head.item_vectors(texts, pictures=pictures)
    np.testing.assert_allclose(every[4], found[1], atol=1e-6)
    places = jnp.array([[0, 4]]), jnp.ones((1, 2), jnp.int32), jnp.array([[0, 1]])
    words = np.zeros((1, TEXT if text else 0), np.float32)
    queries = [head(*places, texts, words, item_pictures=each) for each in (pictures, np.zeros_like(pictures))]
    assert np.abs(queries[0][0, 1] - queries[1][0, 1]).max() > 1e-3  # it is read in a history, too


def test_a_sequence_longer_than_the_head_is_not_a_number() -> None:
    head = make(text=False)
    tokens = jnp.zeros((1, 8), jnp.int32)
    run = jax.jit(lambda t: head(t, jnp.ones_like(t), jnp.arange(8)[None], np.zeros((ITEMS, 0)), np.zeros((0, 0))))
    found = np.asarray(run(tokens))
    assert np.isnan(found[0, 7]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"text_size": 0, "ids": False}, "ids"), ({"num_heads": 3}, "hidden size 8.* 3")],
)
def test_specs_that_cannot_be(changes: dict[str, int], words: str) -> None:
    spec = {"num_items": 5, "text_size": 4, "ids": True, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ValueError, match=words):
        NextItemHead(NextItemSpec(**(spec | changes), max_length=4, dropout=0.0), rngs=nnx.Rngs(0))  # type: ignore[arg-type]
