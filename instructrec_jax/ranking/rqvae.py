"""RQ-VAE: an autoencoder whose latent vector is a sum of a code of each level (Lee et al., 2022; Rajput et al., 2023).

    z = E(x);  r₁ = z;  code cₗ of level l is the nearest to rₗ;  rₗ₊₁ = rₗ − e(cₗ);  x̂ = D(Σ e(cₗ))
    L = |x − x̂|² + Σₗ |sg(rₗ) − e(cₗ)|² + ¼ |rₗ − sg(e(cₗ))|²

Gradients pass the choice of codes straight through. The autoencoder learns without codes first (L = |x − x̂|² with
x̂ = D(z)); codebooks start with residual k-means of its latent vectors. TIGER's start with k-means, too, but at once.
Codes that no item has are moved to where items are, now and then and at the end, or most of the last level would be so.
"""

from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instructrec_jax.ranking.quantizers import Projection, Quantizer, residual_kmeans

WIDTHS = (256, 128, 32)  # outputs of the encoder's layers; the decoder mirrors them
COMMITMENT = 0.25
STEPS, BATCH, RATE = 2000, 1024, 1e-3  # of Adam
WITHOUT_CODES = 0.25  # share of the steps
REVIVE_EVERY = 100  # steps

Layers = list[tuple[jax.Array, jax.Array]]


class Params(TypedDict):
    """What is trained: kernel and bias of each layer, and float32 [codes, latent] of each level."""

    encoder: Layers
    decoder: Layers
    books: list[jax.Array]


def fit_rqvae(vectors: np.ndarray, *, levels: int, codes: int, seed: int, steps: int = STEPS) -> Quantizer:
    """Trains it on item vectors, float [items, size], and returns its encoder and codebooks.

    Vectors are centered and scaled to a mean square of 1 a feature; the encoder that is returned does this itself. The
    same seed gives the same bytes on the same machine.
    """
    vectors = np.asarray(vectors, np.float64)
    middle = vectors.mean(0)
    scale = np.sqrt(np.square(vectors - middle).mean())
    x = jnp.asarray((vectors - middle) / scale, jnp.float32)
    sizes = (x.shape[1], *(min(width, x.shape[1]) for width in WIDTHS))
    rng = np.random.default_rng(seed)
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(params: Params, state: optax.OptState, rows: jax.Array) -> tuple[Params, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(params, x[rows]), state)
        return optax.apply_updates(params, updates), state

    def trained(params: Params, steps: int) -> Params:
        state, batch = optimizer.init(params), min(BATCH, len(x))
        for number in range(steps):
            params, state = step(params, state, jnp.asarray(rng.choice(len(x), batch, replace=False)))
            if (number + 1) % REVIVE_EVERY == 0:
                params = revived(params, x, rng)
        return params

    first = int(steps * WITHOUT_CODES)
    params: Params = trained({"encoder": _layers(sizes, rng), "decoder": _layers(sizes[::-1], rng), "books": []}, first)
    latent = np.asarray(_run(params["encoder"], x))
    books = residual_kmeans(latent, levels=levels, codes=codes, seed=seed)
    params = trained({**params, "books": [jnp.asarray(book) for book in books]}, steps - first)
    params = revived(params, x, rng)
    layers = [(np.asarray(kernel), np.asarray(bias)) for kernel, bias in params["encoder"]]
    kernel, bias = layers[0]
    layers[0] = ((kernel / scale).astype(np.float32), (bias - (middle / scale) @ kernel).astype(np.float32))
    return Quantizer(Projection(layers), [np.asarray(book) for book in params["books"]])


def loss(params: Params, x: jax.Array) -> jax.Array:
    """The loss above for x, float32 [n, size], as a mean over vectors (of |x − x̂|² over features, too).

    Without codebooks, |x − D(E(x))|².
    """
    rest = latent = _run(params["encoder"], x)
    total, chosen = jnp.zeros(()), jnp.zeros_like(latent)
    for book in params["books"]:
        own = book[_nearest(jax.lax.stop_gradient(rest), jax.lax.stop_gradient(book))]
        total += _square(jax.lax.stop_gradient(rest) - own) + COMMITMENT * _square(rest - jax.lax.stop_gradient(own))
        chosen += own
        rest = rest - jax.lax.stop_gradient(own)
    through = latent + jax.lax.stop_gradient(chosen - latent) if params["books"] else latent
    return total + jnp.square(_run(params["decoder"], through) - x).mean()


def revived(params: Params, x: jax.Array, rng: np.random.Generator) -> Params:
    """Moves codes that are the nearest to no vector of x onto random vectors, or what the levels before leave of them.

    These are the random restarts of Jukebox (Dhariwal et al., 2020). A moved code may take the last vector of another
    one, which is moved then: up to ten times.
    """
    rest, books = _run(params["encoder"], x), []
    for book in params["books"]:
        for _ in range(10):
            unused = np.setdiff1d(np.arange(len(book)), np.asarray(_nearest(rest, book)))
            if not len(unused):
                break
            book = book.at[unused].set(rest[rng.choice(len(rest), len(unused), replace=len(unused) > len(rest))])
        books.append(book)
        rest = rest - book[_nearest(rest, book)]
    return {**params, "books": books}


def _nearest(vectors: jax.Array, book: jax.Array) -> jax.Array:
    return (jnp.square(book).sum(1) - 2 * vectors @ book.T).argmin(1)


def _square(x: jax.Array) -> jax.Array:
    return jnp.square(x).sum(-1).mean()


def _run(layers: Layers, x: jax.Array) -> jax.Array:
    """Linear layers with ReLU between them."""
    for number, (kernel, bias) in enumerate(layers):
        x = (jax.nn.relu(x) if number else x) @ kernel + bias
    return x


def _layers(sizes: tuple[int, ...], rng: np.random.Generator) -> Layers:
    """Normal kernels of variance 2 / inputs (He et al., 2015) and biases of zero."""
    return [
        (jnp.asarray(rng.normal(size=(a, b)) * np.sqrt(2 / a), jnp.float32), jnp.zeros(b, jnp.float32))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
