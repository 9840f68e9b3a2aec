"""Beam search over items that a language model names by codes, one token for each level (TIGER: Rajput et al., 2023).

Codes are walked along their trie on the device, so every answer is an item, no item is found twice, and items that are
not allowed (the ones seen, say) end no path: a prefix without an allowed item behind it takes no beam. With at least as
many beams as items, the scores are the exact log-likelihoods of all allowed items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.backbones.decoder import DecoderCache
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.distributed.launch import fetch, place
from instructrec_jax.distributed.mesh import replicated
from instructrec_jax.inference.decoding import NOT_NUMBERS, Decoder, Network, Parameters
from instructrec_jax.inference.generation_config import GenerationConfig

PROMPTS = 16  # prompts of a batch


@dataclass(frozen=True)
class CodeTrie:
    """The codes of items as a tree, level by level.

    Attributes:
      codes: int32 [items, levels], distinct rows.
      first_tokens: the token of code 0 of each level; the level's other codes follow it.
      sizes: codes of each level.
    """

    codes: np.ndarray
    first_tokens: tuple[int, ...]
    sizes: tuple[int, ...]

    @cached_property
    def nodes(self) -> list[np.ndarray]:
        """int32 [items] for each level: the node of an item's first codes. Those of the last level are the items."""
        found, before = [], np.zeros(len(self.codes), np.int64)
        for level, size in enumerate(self.sizes[:-1]):
            prefix = before * size + self.codes[:, level]
            before = np.unique(prefix, return_inverse=True)[1].astype(np.int64)
            found.append(before.astype(np.int32))
        return [*found, np.arange(len(self.codes), dtype=np.int32)]

    @cached_property
    def children(self) -> list[np.ndarray]:
        """int32 [nodes, codes] for each level: the node behind each code, −1 where there is none."""
        found, above = [], np.zeros(len(self.codes), np.int32)
        for level, (size, own) in enumerate(zip(self.sizes, self.nodes, strict=True)):
            table = np.full((int(above.max()) + 1, size), -1, np.int32)
            table[above, self.codes[:, level]] = own
            found.append(table)
            above = own
        return found

    @cached_property
    def parents(self) -> list[np.ndarray]:
        """int32 [nodes] for each level: the node above."""
        found, above = [], np.zeros(len(self.codes), np.int32)
        for own in self.nodes:
            parent = np.zeros(int(own.max()) + 1, np.int32)
            parent[own] = above
            found.append(parent)
            above = own
        return found


@dataclass(frozen=True)
class Found:
    """Items of each prompt, best first.

    Attributes:
      items: int32 [prompts, beams], −1 where fewer are allowed.
      scores: float32 [prompts, beams], log-probabilities of their codes given the prompt (nats); −inf there.
    """

    items: np.ndarray
    scores: np.ndarray


class CodeSearch:
    """Finds items with a `Decoder`, whose rows are [prompts, beams] flattened.

    Args:
      trie: of the items.
    """

    def __init__(self, decoder: Decoder[Network], trie: CodeTrie):
        self.decoder, self.trie = decoder, trie
        shared = replicated(decoder.mesh)
        self._tables = [[place(x, shared) for x in part] for part in (trie.children, trie.parents)]
        self._search = jax.jit(self._search_on_device, static_argnames="beams")

    def find(
        self,
        params: Parameters,
        prompts: Sequence[np.ndarray],
        beams: int,
        excluded: Sequence[np.ndarray],
        images: Sequence[RowImages] | None = None,
    ) -> Found:
        """The best items for prompts (int32 [tokens] each).

        Args:
          beams: prefixes that are kept at each level.
          excluded: int [n] for each prompt, numbers of the items that are not allowed.

        Raises:
          ValueError: a prompt is empty or too long.
          FloatingPointError: the network's logits are NaN.
        """
        levels, most = len(self.trie.sizes), min(beams, len(self.trie.codes))
        config = GenerationConfig(max_new_tokens=levels, batch_size=PROMPTS)
        self.decoder.check(prompts, [f"prompt {number + 1}" for number in range(len(prompts))], config)
        items = np.full((len(prompts), most), -1, np.int32)
        scores = np.full((len(prompts), most), -np.inf, np.float32)
        for numbers, found, values in self._batches(params, prompts, config, most, excluded, images):
            items[numbers, : found.shape[1]] = np.where(np.isneginf(values), -1, found)
            scores[numbers, : found.shape[1]] = values
        return Found(items, scores)

    def _batches(
        self,
        params: Parameters,
        prompts: Sequence[np.ndarray],
        config: GenerationConfig,
        beams: int,
        excluded: Sequence[np.ndarray],
        images: Sequence[RowImages] | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(numbers of prompts, their items, the scores) of each batch."""
        for numbers, arrays in self.decoder.batches(prompts, config, images):
            allowed = np.ones((len(arrays["done"]), len(self.trie.codes)), bool)
            for row, number in enumerate(numbers.tolist()):
                allowed[row, excluded[number]] = False
            laid = place(allowed, self.decoder.sharding(allowed.shape, ("batch", None)))
            found, values, broken = self._search(params, arrays, laid, *self._tables, beams=beams)
            if fetch(broken)[: len(numbers)].any():
                raise FloatingPointError(NOT_NUMBERS)
            yield numbers, fetch(found)[: len(numbers)], fetch(values)[: len(numbers)]

    def _search_on_device(
        self,
        params: Parameters,
        prompts: dict[str, jax.Array],
        allowed: jax.Array,
        children: list[jax.Array],
        parents: list[jax.Array],
        beams: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Items int32 [prompts, beams], scores float32 [prompts, beams], and whether logits are NaN, bool [prompts]."""
        model, rows, levels = self.decoder.model(params), len(allowed), len(children)
        state, logits = self.decoder.read(model, prompts, levels)
        cache, position = state.cache, state.arrays["position"]
        reachable = _reachable(allowed, parents)
        nodes, scores = jnp.zeros((rows, 1), jnp.int32), jnp.zeros((rows, 1))
        broken = jnp.zeros(rows, bool)
        for level, table in enumerate(children):
            broken |= jnp.isnan(logits).reshape(rows, -1).any(-1)
            first, size = self.trie.first_tokens[level], self.trie.sizes[level]
            own = jax.nn.log_softmax(logits.astype(jnp.float32))[:, first : first + size].reshape(rows, -1, size)
            behind = table[nodes]  # [rows, beams, codes]
            open_ = (behind >= 0) & jax.vmap(lambda ok, at: ok[at])(reachable[level], behind)
            totals = jnp.where(open_, scores[..., None] + own, -jnp.inf).reshape(rows, -1)
            scores, index = jax.lax.top_k(totals, min(beams, totals.shape[1]))
            nodes = jnp.take_along_axis(behind.reshape(rows, -1), index, axis=1)
            if level < levels - 1:
                cache = _follow(cache, index // size, nodes.shape[1], own.shape[1])
                tokens = (first + index % size).astype(jnp.int32).reshape(-1)
                places = jnp.repeat(position + level, nodes.shape[1])
                cache, logits = self.decoder.extend(model, cache, tokens, places)
        return nodes, scores, broken


def _reachable(allowed: jax.Array, parents: Sequence[jax.Array]) -> list[jax.Array]:
    """bool [prompts, nodes] for each level: whether an allowed item (bool [prompts, items]) lies behind a node."""
    found = [allowed]
    for above, own in zip(reversed(parents[:-1]), reversed(parents[1:]), strict=True):
        found.append(jnp.zeros((len(allowed), len(above)), bool).at[:, own].max(found[-1]))
    return found[::-1]


def _follow(cache: DecoderCache, chosen: jax.Array, beams: int, before: int) -> DecoderCache:
    """The cache for `beams` rows a prompt, each a copy of one of its `before` rows.

    Args:
      chosen: int32 [prompts, beams], the row of each.
    """
    rows = (jnp.arange(len(chosen))[:, None] * before + chosen).reshape(-1)
    grows = beams != before  # else what is equal for all rows of a prompt stays where it is

    def take(path: tuple[object, ...], x: jax.Array) -> jax.Array:
        names = [str(getattr(key, "key", "")) for key in path]
        if names[0] == "layers":
            return x[:, rows] if grows or not names[-1].startswith("encoded") else x
        return x[rows] if grows and x.ndim else x

    return jax.tree_util.tree_map_with_path(take, cache)
