"""What turns item vectors into codes: a projection, and codebooks that divide its outputs level by level.

All three are of that form, so codes of new items need no training, whatever the quantizer:

    kmeans  no projection; residual k-means
    fsq     principal components, each pressed into 0 to 1; codebooks are grids over some of them (`fit_fsq`)
    rqvae   the encoder of an autoencoder and its codebooks (`ranking.rqvae`)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

QuantizerName = Literal["kmeans", "fsq", "rqvae"]


@dataclass(frozen=True)
class Projection:
    """What is applied to vectors before they are divided: linear layers with ReLU between them.

    Attributes:
      layers: float32 kernel [in, out] and bias [out] of each; none: vectors stay as they are.
      bounded: whether Φ, the normal distribution's function, presses the outputs into 0 to 1.
    """

    layers: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    bounded: bool = False

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Float [n, size] → float64 [n, outputs]."""
        x = np.asarray(vectors, np.float64)
        for number, (kernel, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if number else x) @ kernel.astype(np.float64) + bias
        if not self.bounded:
            return x
        from scipy.special import ndtr  # slow to load

        return np.asarray(ndtr(x))

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name, for a file."""
        found: dict[str, np.ndarray] = {}
        for number, (kernel, bias) in enumerate(self.layers):
            found[f"projection.{number}.kernel"] = np.ascontiguousarray(kernel, np.float32)
            found[f"projection.{number}.bias"] = np.ascontiguousarray(bias, np.float32)
        return found | ({"projection.bounded": np.ones(1, np.int32)} if self.bounded else {})

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> "Projection":
        """The inverse of `arrays`. Raises KeyError where one is missing."""
        count = sum(name.startswith("projection.") and name.endswith(".kernel") for name in arrays)
        layers = [(arrays[f"projection.{n}.kernel"], arrays[f"projection.{n}.bias"]) for n in range(count)]
        return Projection(layers, "projection.bounded" in arrays)


@dataclass(frozen=True)
class Quantizer:
    """A projection and float32 codebooks [codes, outputs] of each level, whose sum is nearly the projected vector."""

    projection: Projection
    codebooks: Sequence[np.ndarray]

    @property
    def size(self) -> int:
        """Numbers of a vector before the projection."""
        return self.projection.layers[0][0].shape[0] if self.projection.layers else self.codebooks[0].shape[1]

    def codes(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest code of each level to what the levels before leave.

        Args:
          vectors: float [n, size].

        Returns:
          int32 [n, levels], and what is left before the last level, float64 [n, outputs].
        """
        rest, before = self.projection(vectors), np.zeros((len(vectors), 0))
        found = np.zeros((len(vectors), len(self.codebooks)), np.int32)
        for level, book in enumerate(self.codebooks):
            found[:, level] = distances(rest, book).argmin(1)
            before = rest
            rest = rest - book[found[:, level]]
        return found, before


def distances(vectors: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Squared distances, up to a number for each vector: float64 [vectors, means]."""
    wide = means.astype(np.float64)
    return (wide**2).sum(1) - 2 * vectors @ wide.T


def residual_kmeans(vectors: np.ndarray, *, levels: int, codes: int, seed: int) -> list[np.ndarray]:
    """Codebooks, float32 [codes, size], each by k-means of what the ones before leave of the vectors."""
    from sklearn.cluster import KMeans

    rest, books = np.asarray(vectors, np.float64), []
    for level in range(levels):
        means = KMeans(codes, n_init=1, random_state=seed + level).fit(rest).cluster_centers_.astype(np.float32)
        rest = rest - means[distances(rest, means).argmin(1)]
        books.append(means)
    return books


def fit_kmeans(vectors: np.ndarray, *, levels: int, codes: int, seed: int) -> Quantizer:
    """Residual k-means of the vectors themselves (RQ-VAE without its autoencoder)."""
    return Quantizer(Projection(), residual_kmeans(vectors, levels=levels, codes=codes, seed=seed))


def fit_fsq(vectors: np.ndarray, *, levels: int, codes: int, seed: int) -> Quantizer:
    """Finite scalar quantization (Mentzer et al., 2023) of principal components; nothing is drawn.

    A level has some of the components, the first level the first ones: 64 codes are two numbers of 8 values each
    (`factors`). A number is a component over its standard deviation, pressed into 0 to 1 by Φ (the paper: tanh, for
    numbers that are learned), so that the values of a normal one are used alike; value k of n stands for (k + ½) / n.

    Raises:
      ValueError: the vectors do not have so many components.
    """
    counts = factors(codes)
    needed, centered = levels * len(counts), vectors - vectors.mean(0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(centered, full_matrices=False)
    present = int((lengths > 1e-6 * lengths[0]).sum())
    if present < needed:
        raise ValueError(
            f"{levels} levels of {codes:,} codes need {needed} principal components, but the vectors have {present}: "
            "ask for fewer levels, or another quantizer."
        )
    kernel = axes[:needed].T * (np.sqrt(len(vectors)) / lengths[:needed])
    kernel = kernel * np.sign(kernel[np.abs(kernel).argmax(0), np.arange(needed)])  # SVD leaves the sign open
    bias = -vectors.mean(0, dtype=np.float64) @ kernel
    grid = np.array(list(product(*(range(count) for count in counts))))
    values = (grid + 0.5) / counts
    books = []
    for level in range(levels):
        book = np.zeros((codes, needed), np.float32)
        book[:, level * len(counts) : (level + 1) * len(counts)] = values
        books.append(book)
    return Quantizer(Projection([(kernel.astype(np.float32), bias.astype(np.float32))], bounded=True), books)


def factors(codes: int) -> list[int]:
    """Whole numbers whose product is `codes`: at most 8 where it has such divisors."""
    found = []
    while codes > 1:
        small = [n for n in range(8, 1, -1) if codes % n == 0]
        found.append(small[0] if small else next(n for n in range(9, codes + 1) if codes % n == 0))
        codes //= found[-1]
    return found
