"""RQ-VAE: its loss and gradients against PyTorch's, and what training makes of vectors."""

from typing import Any

import numpy as np
import pytest

from instructrec_jax.ranking.rqvae import fit_rqvae, loss

RNG = np.random.default_rng(0)


def test_loss_and_gradients_are_those_of_the_formula() -> None:
    """PyTorch, with detach where the formula has sg; gradients pass the choice of codes straight through."""
    import jax
    import torch

    sizes, rows = (6, 5, 3), RNG.normal(size=(7, 6))
    encoder = [(RNG.normal(size=(a, b)), RNG.normal(size=b)) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    decoder = [(RNG.normal(size=(b, a)), RNG.normal(size=a)) for a, b in zip(sizes[-2::-1], sizes[:0:-1], strict=True)]
    params = {"encoder": encoder, "decoder": decoder, "books": [RNG.normal(size=(4, 3)) for _ in range(2)]}
    ours = jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.float32), params)
    theirs = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), params)

    def run(layers: list[Any], x: torch.Tensor) -> torch.Tensor:
        (first, one), (second, two) = layers
        return torch.relu(x @ first + one) @ second + two

    x = torch.tensor(rows)
    latent = run(theirs["encoder"], x)
    rest, chosen, total = latent, torch.zeros_like(latent), torch.zeros(())
    for book in theirs["books"]:
        own = book[torch.cdist(rest.detach(), book.detach()).argmin(1)]
        total = total + ((rest.detach() - own) ** 2).sum(1).mean() + 0.25 * ((rest - own.detach()) ** 2).sum(1).mean()
        chosen, rest = chosen + own, rest - own.detach()
    total = total + ((run(theirs["decoder"], latent + (chosen - latent).detach()) - x) ** 2).mean()
    total.backward()
    value, gradients = jax.value_and_grad(loss)(ours, jax.numpy.asarray(rows, jax.numpy.float32))
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    for mine, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other.grad, atol=1e-4 * max(1.0, float(other.grad.abs().max())))


def test_training_finds_what_vectors_are_made_of() -> None:
    """Vectors on a curved surface of two numbers, of any scale and place: codes tell more of them than at the start."""
    hidden = RNG.uniform(-2, 2, size=(400, 2))
    wide = np.concatenate([np.sin(hidden), np.cos(hidden), hidden**2], 1) @ RNG.normal(size=(6, 12))
    vectors = 1e-2 * wide + 3

    def left(steps: int, levels: int = 2) -> float:
        """Variance of the vectors within codes, over all of it."""
        codes, _ = fit_rqvae(vectors, levels=levels, codes=8, seed=0, steps=steps).codes(vectors)
        groups = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
        means = np.stack([vectors[groups == group].mean(0) for group in range(groups.max() + 1)])
        return float(np.square(vectors - means[groups]).sum() / np.square(vectors - vectors.mean(0)).sum())

    trained = left(1000)
    assert trained < 0.5 * left(0)
    assert left(1000, levels=1) > 2 * trained


def test_the_encoder_that_is_kept_scales_vectors_itself() -> None:
    vectors = RNG.normal(size=(60, 8))
    own = fit_rqvae(vectors, levels=1, codes=4, seed=0, steps=20)
    moved = fit_rqvae(100 * vectors + 7, levels=1, codes=4, seed=0, steps=20)
    np.testing.assert_allclose(own.projection(vectors), moved.projection(100 * vectors + 7), atol=1e-3)
    assert (own.codes(vectors)[0] == moved.codes(100 * vectors + 7)[0]).mean() > 0.95


def test_every_level_uses_its_codes() -> None:
    vectors = RNG.normal(size=(40, 24))[RNG.integers(40, size=600)] + 0.1 * RNG.normal(size=(600, 24))
    codes, _ = fit_rqvae(vectors, levels=3, codes=32, seed=0, steps=400).codes(vectors)
    assert min(len(np.unique(level)) for level in codes.T) / 32 >= 0.95
