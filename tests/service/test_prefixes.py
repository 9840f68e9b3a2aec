import jax.numpy as jnp
import numpy as np

from instructrec_jax.service.prefixes import Prefixes, prefix_keys


def block(number: int) -> dict[str, dict[str, jnp.ndarray]]:
    return {"block0": {"key": jnp.full(25, number, jnp.float32)}}  # 100 bytes


def test_keys_are_of_all_tokens_through_whole_chunks() -> None:
    tokens = np.arange(11)
    keys = prefix_keys(tokens, 4)
    assert len(keys) == 2 and keys == prefix_keys(tokens[:8], 4) != prefix_keys(tokens[4:], 4)
    other = tokens.copy()
    other[0] = 7
    assert prefix_keys(other, 4)[1] != keys[1]


def test_the_least_recently_used_chunk_is_dropped_and_later_ones_first() -> None:
    prefixes = Prefixes(300)
    for n, key in enumerate([b"a1", b"a2", b"b1"]):
        prefixes.add(key, block(n))
    assert len(prefixes.find([b"a1", b"a2", b"a3"])) == 2
    prefixes.add(b"c1", block(3))
    assert prefixes.find([b"b1"]) == []
    prefixes.add(b"d1", block(4))
    assert len(prefixes.find([b"a1", b"a2"])) == 1
    assert prefixes.size == 300


def test_no_chunk_is_kept_without_room() -> None:
    prefixes = Prefixes(99)
    prefixes.add(b"a", block(0))
    assert prefixes.find([b"a"]) == [] and prefixes.size == 0
