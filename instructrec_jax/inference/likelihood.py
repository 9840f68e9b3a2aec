"""Likelihoods of given answers to a prompt. The language model reads the prompt once for all of them.

A decoder reads the shared prefix of a request's texts into its KV cache. A second call reads the remainders, all
answers in one row: each is a branch (`backbones.attention.BRANCH`) that attends to the cache and itself. An
encoder–decoder encodes the prompt once, and its decoder reads the answers as branches. Requests are packed into rows
and run through a `Predict` like other texts, so there are few compiled shapes and rows are split over the mesh.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.backbones.attention import BRANCH
from instructrec_jax.data.batch import Batch, PerToken, Text, end_to_end

MOST_TOKENS = 1024  # tokens of answers per row; more are scored in several rows, each of which reads the prompt


@dataclass(frozen=True)
class Branch:
    """One answer.

    Attributes:
      tokens: int32 [n], the network's input after the prefix.
      labels: int32 [n], the next token at each of these positions.
      counts: bool [n], whether that label's likelihood counts.
      place: position of the first of `tokens` in its text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    place: int


@dataclass(frozen=True)
class Request:
    """The text that is read once (decoder: the shared prefix; encoder–decoder: the source), and the answers."""

    prefix: Text
    branches: list[Branch]


def share_prefix(texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Request:
    """The request to a decoder for the likelihoods of some tokens of whole texts.

    The prefix is the longest common prefix of all texts that leaves out the token which predicts the first counted one.
    Texts are compared token by token, so a token across the boundary of prompt and answer stays as tokenized.

    Args:
      texts: (tokens int32 [length], whether each token counts, bool [length]), at least one.

    Raises:
      ValueError: a text has no counted token, or its first token counts, which no token predicts.
    """
    for _, counts in texts:
        if not counts.any() or counts[0]:
            raise ValueError("a text needs a counted token, and at least one token before the first counted one.")
    shared = min(int(np.argmax(counts)) - 1 for _, counts in texts)
    first = texts[0][0]
    for tokens, _ in texts[1:]:
        shared = min(shared, len(tokens))
        shared = int(np.argmin(np.append(tokens[:shared] == first[:shared], False)))
    branches = [
        Branch(tokens[shared:-1], tokens[shared + 1 :], counts[shared + 1 :], shared) for tokens, counts in texts
    ]
    return Request(Text(first[:shared]), branches)


def encode_once(source: Text, answers: Sequence[tuple[np.ndarray, np.ndarray]], start: int) -> Request:
    """The request to an encoder–decoder.

    Args:
      source: the encoder's input.
      answers: (tokens int32 [length] without the start token, whether each token counts).
      start: the decoder start token.
    """
    branches = [Branch(np.append(start, tokens[:-1]).astype(np.int32), tokens, counts, 0) for tokens, counts in answers]
    return Request(Text(source.tokens, source.types), branches)


# ---------------------------------------------------------------- on the device


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BranchTokens:
    """The answers of all texts, int32 [target tokens] each.

    Attributes:
      labels, counts: see `Branch`.
      branches: number of the token's answer in its text, from 1.
      places: positions.
    """

    labels: PerToken
    counts: PerToken
    branches: PerToken
    places: PerToken


class LanguageModel(Protocol):
    """A `tasks.base.Model` with a language-model head."""

    backbone: Any
    head: Any


def branch_log_probs(model: LanguageModel, batch: Batch, own: BranchTokens) -> jax.Array:
    """Log-probability of each label, float32 [rows, target length]; 0 for labels that do not count.

    Args:
      batch: prefixes, with the answers as their targets, as made by `log_likelihoods`.
      own: the batch's arrays.
    """
    assert batch.targets is not None
    backbone, targets, places = model.backbone, batch.targets.tokens, own.places
    tokens, prefix, positions = batch.texts.tokens, batch.texts.segment_ids * BRANCH, batch.texts.positions
    branches = batch.targets.segment_ids * BRANCH + own.branches
    if hasattr(backbone, "decode"):
        encoded = backbone.encode(tokens, prefix, positions)
        hidden = backbone.decode(targets, branches, places, encoded, prefix)
    else:
        if backbone.prompt_type:
            raise ValueError(
                "the network reads a prompt in both directions (PaliGemma), but likelihoods of answers read its last "
                "token with the answers: generate answers instead."
            )
        rows, length = prefix.shape
        cache = backbone.empty_cache(rows, length + targets.shape[1])
        images = {} if batch.images is None else {"images": batch.images}
        _, cache = backbone(tokens, prefix, positions, batch.token_types, cache=cache, **images)
        hidden, _ = backbone(targets, branches, places, jnp.zeros_like(targets), cache=cache)
    labels, counts = jnp.asarray(own.labels), jnp.asarray(own.counts, jnp.float32)
    return -model.head.token_losses(backbone, hidden, labels, counts)[0]


# ---------------------------------------------------------------- on the host


def log_likelihoods(
    predict: Callable[[list[Text], BranchTokens], list[np.ndarray]], requests: Sequence[Request]
) -> list[np.ndarray]:
    """For each request float64 [answers, 2]: Σ log p(token | preceding tokens) over counted tokens, and their number.

    Args:
      predict: `tasks.prediction.Predict` of a model whose predictions are `branch_log_probs`.
    """
    texts: list[Text] = []
    numbers: list[np.ndarray] = []  # of the answers of each text, from 1, per token
    laid: list[Branch] = []  # all answers, in the order of the texts
    owners: list[tuple[int, list[int]]] = []  # per text: number of the request, numbers of its answers
    for number, request in enumerate(requests):
        for group in _groups([len(branch.tokens) for branch in request.branches]):
            branches = [request.branches[index] for index in group]
            sizes = [len(branch.tokens) for branch in branches]
            texts.append(replace(request.prefix, target=np.concatenate([b.tokens for b in branches])))
            numbers.append(np.repeat(1 + np.arange(len(branches)), sizes))
            laid += branches
            owners.append((number, group))
    found = [np.zeros((len(request.branches), 2)) for request in requests]
    if not texts:
        return found
    own = BranchTokens(
        labels=end_to_end([b.labels for b in laid]),
        counts=end_to_end([b.counts for b in laid]),
        branches=end_to_end(numbers),
        places=end_to_end([b.place + np.arange(len(b.tokens)) for b in laid]),
    )
    for (number, group), values, branch in zip(owners, predict(texts, own), numbers, strict=True):
        found[number][group, 0] = np.bincount(branch - 1, values.astype(np.float64))
        found[number][group, 1] = [requests[number].branches[index].counts.sum() for index in group]
    return found


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Groups of answer numbers, in order, with at most `MOST_TOKENS` tokens (or one answer) per group."""
    groups: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes):
        if not groups or size > room:
            groups.append([])
            room = MOST_TOKENS
        groups[-1].append(number)
        room -= size
    return groups


def normalized(found: np.ndarray, alpha: float) -> np.ndarray:
    """Length-normalized log-likelihoods, Σ log p / tokens ** alpha (as beam search does; Wu et al., 2016).

    Args:
      found: float64 [..., 2] of `log_likelihoods`.
      alpha: 0: the log-likelihood itself; 1: the mean per token.
    """
    return found[..., 0] / found[..., 1] ** alpha
