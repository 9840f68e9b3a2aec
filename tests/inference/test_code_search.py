"""Beam search over items' codes, against the likelihoods that PyTorch gives to all of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_networks import ENCODER_DECODERS, START, Network, prompts

from instructrec_jax.inference.code_search import CodeSearch, CodeTrie

Make = Callable[..., Network]
FIRST, SIZES = (10, 14, 20), (4, 6, 3)  # tokens 10 to 22
RNG = np.random.default_rng(5)
EVERY = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), -1).reshape(-1, 3)
ITEMS = EVERY[RNG.permutation(len(EVERY))[:19]].astype(np.int32)
TRIE = CodeTrie(ITEMS, FIRST, SIZES)
NONE = np.empty(0, np.int64)


def exact(net: Network, asked: list[np.ndarray]) -> np.ndarray:
    """float64 [prompts, items]: log-likelihoods of the codes, by a forward pass for each item."""
    tokens = torch.tensor(ITEMS + np.array(FIRST))
    found = []
    for prompt in asked:
        with torch.no_grad():
            source = torch.tensor(prompt, dtype=torch.long)[None].expand(len(ITEMS), -1)
            if net.kind in ENCODER_DECODERS:
                inputs = torch.cat([torch.full((len(ITEMS), 1), START), tokens[:, :-1]], 1)
                logits = net.theirs(input_ids=source, decoder_input_ids=inputs).logits
            else:
                logits = net.theirs(torch.cat([source, tokens[:, :-1]], 1)).logits[:, len(prompt) - 1 :]
        each = logits.double().log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        found.append(each.sum(1).numpy())
    return np.stack(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_with_all_beams_the_scores_are_the_likelihoods_of_all_items(network: Make, kind: str) -> None:
    net, asked = network(kind), prompts(5)
    decoder, params = net.decoder()
    excluded = [NONE, np.array([3]), np.array([0, 1, 2]), NONE, np.arange(1, len(ITEMS))]
    found = CodeSearch(decoder, TRIE).find(params, asked, len(ITEMS) + 7, excluded)
    assert found.items.shape == (5, len(ITEMS))
    for items, scores, own, out in zip(found.items, found.scores, exact(net, asked), excluded, strict=True):
        order = [number for number in np.argsort(-own, kind="stable") if number not in out]
        assert items[: len(order)].tolist() == order and (items[len(order) :] == -1).all()
        np.testing.assert_allclose(scores[: len(order)], own[order], atol=1e-4)
        assert np.isneginf(scores[len(order) :]).all()


def by_hand(own: np.ndarray, beams: int, out: np.ndarray, partial: Callable[[int], np.ndarray]) -> list[int]:
    """Beam search on the host. partial: level -> float64 [items], log-probability of an item's codes up to it."""
    allowed = [number for number in range(len(ITEMS)) if number not in out]
    for level in range(len(SIZES)):
        scores = partial(level)
        best = {tuple(ITEMS[number, : level + 1].tolist()): scores[number] for number in allowed}
        kept = sorted(best, key=lambda prefix: -best[prefix])[:beams]
        allowed = [number for number in allowed if tuple(ITEMS[number, : level + 1].tolist()) in kept]
    return sorted(allowed, key=lambda number: -own[number])


def test_few_beams_go_to_allowed_items_alone(network: Make) -> None:
    """A prefix whose items are all excluded takes no beam, so as many items are found as there are beams."""
    net, asked = network("llama"), prompts(4, 2)
    decoder, params = net.decoder()
    search = CodeSearch(decoder, TRIE)
    own = exact(net, asked)
    best = ITEMS[own.argmax(1), 0]  # the first code of the best item: none of its items is allowed
    excluded = [np.flatnonzero(ITEMS[:, 0] == code) for code in best]
    found = search.find(params, asked, 3, excluded)
    for row, (items, out) in enumerate(zip(found.items, excluded, strict=True)):
        assert (items >= 0).all() and not set(items.tolist()) & set(out.tolist())
        assert items.tolist() == by_hand(own[row], 3, out, lambda level, row=row: prefixes(net, asked[row], level))


def prefixes(net: Network, prompt: np.ndarray, level: int) -> np.ndarray:
    tokens = torch.tensor(ITEMS + np.array(FIRST))[:, : level + 1]
    with torch.no_grad():
        source = torch.tensor(prompt, dtype=torch.long)[None].expand(len(ITEMS), -1)
        logits = net.theirs(torch.cat([source, tokens[:, :-1]], 1)).logits[:, len(prompt) - 1 :]
    return logits.double().log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1).numpy()


def test_devices_and_batches_change_nothing(network: Make) -> None:
    net, asked = network("t5"), prompts(19, 1)  # two batches, of several lengths
    out = [np.array([number % len(ITEMS)]) for number in range(19)]
    one = CodeSearch(net.decoder()[0], TRIE).find(net.decoder()[1], asked, 6, out)
    decoder, params = net.decoder((4, 1, 2))
    many = CodeSearch(decoder, TRIE).find(params, asked, 6, out)
    assert one.items.tolist() == many.items.tolist()
    np.testing.assert_allclose(one.scores, many.scores, atol=1e-4)
    alone = CodeSearch(net.decoder()[0], TRIE).find(net.decoder()[1], asked[7:8], 6, out[7:8])
    assert alone.items[0].tolist() == one.items[7].tolist()


def test_a_trie_of_one_level(network: Make) -> None:
    net, asked = network("llama"), prompts(2)
    decoder, params = net.decoder()
    trie = CodeTrie(np.array([[2], [0]], np.int32), (10,), (4,))
    found = CodeSearch(decoder, trie).find(params, asked, 9, [NONE, np.array([1])])
    assert sorted(found.items[0].tolist()) == [0, 1] and found.items[1].tolist() == [0, -1]


def test_a_prompt_without_tokens_is_an_error(network: Make) -> None:
    decoder, params = network("llama").decoder()
    with pytest.raises(ValueError, match="prompt 2 has no tokens"):
        CodeSearch(decoder, TRIE).find(params, [np.array([1]), np.array([], np.int32)], 3, [NONE, NONE])
