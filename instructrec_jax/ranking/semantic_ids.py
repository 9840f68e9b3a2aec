"""Semantic ids: items named by codes, of which similar items share the first ones (Rajput et al., 2023, "TIGER").

    FOLDER/codes.jsonl            {"item": id, "codes": [one for each level]}, in the catalogue's order
    FOLDER/codebooks.safetensors  a, b ...: float32 [codes, size] of each level; their sum is nearly the item's vector,
                                  or what a projection makes of it (projection.0.kernel, projection.0.bias, ...);
                                  last: int32 [1], the number of codes of the last level
    FOLDER/encoder.json           {"encoder": the network or run whose vectors were divided}

Codes come from a quantizer (`ranking.quantizers`): a level divides what the levels before leave of the vectors. One
more level counts the items that all others leave together, so each item has codes of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from instructrec_jax.files import read_jsonl, replacing, write_jsonl
from instructrec_jax.ranking.quantizers import Projection, Quantizer, QuantizerName, distances, fit_fsq, fit_kmeans

FOLDER = "semantic_ids"  # of the codes, in the folder of a network whose vocabulary has them
CODES, CODEBOOKS, ENCODER = "codes.jsonl", "codebooks.safetensors", "encoder.json"
SPARE = 4  # codes of the last level beyond those in use, for new items
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class _Row(TypedDict):
    item: str
    codes: list[int]


@dataclass(frozen=True)
class SemanticIds:
    """The codes of a catalogue's items.

    Attributes:
      items: their ids.
      codes: int32 [items, levels], distinct rows; the last level counts items that the others leave together.
      quantizer: which the codes of all levels but the last come from.
      most: codes of the last level.
    """

    items: Sequence[str]
    codes: np.ndarray
    quantizer: Quantizer
    most: int

    @property
    def codebooks(self) -> Sequence[np.ndarray]:
        """float32 [codes, size] for each level but the last."""
        return self.quantizer.codebooks

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of codes of each level."""
        return (*map(len, self.codebooks), self.most)

    @property
    def tokens(self) -> list[str]:
        """The token of each code, level by level: <a_0>, <a_1> ... <b_0> ..."""
        return [f"<{letter}_{code}>" for letter, size in zip(LETTERS, self.sizes, strict=False) for code in range(size)]

    def text(self, number: int) -> str:
        """The tokens of an item, given its number."""
        return "".join(f"<{letter}_{code}>" for letter, code in zip(LETTERS, self.codes[number], strict=False))

    def with_new(self, items: Sequence[str], vectors: np.ndarray) -> "SemanticIds":
        """The same ones, and codes of new items, without any training.

        Args:
          vectors: float [new items, size], as those of `fit`.

        Raises:
          ValueError: all codes near a new item are taken, or vectors of another size, or that are not finite.
        """
        _check_finite(vectors)
        if vectors.shape[1] != self.quantizer.size:
            raise ValueError(
                f"the vectors of new items have {vectors.shape[1]} numbers, but the codes were made of "
                f"{self.quantizer.size}: the encoder is another one now."
            )
        taken = {tuple(row) for row in self.codes.tolist()}
        firsts, before = self.quantizer.codes(np.asarray(vectors, np.float64))
        order = np.argsort(distances(before, self.codebooks[-1]), 1, kind="stable").tolist()
        found = []
        for item, own, nearest in zip(items, firsts[:, :-1].tolist(), order, strict=True):
            free = ((*own, last, count) for last in nearest for count in range(self.most))
            codes = next((codes for codes in free if codes not in taken), None)
            if codes is None:
                raise ValueError(f"no codes are left for the new item {item!r}: make new ones of the whole catalogue.")
            taken.add(codes)
            found.append(codes)
        codes_of_new = np.array(found, np.int32).reshape(-1, self.codes.shape[1])
        return SemanticIds([*self.items, *items], np.concatenate([self.codes, codes_of_new]), self.quantizer, self.most)

    def report(self) -> list[dict[str, object]]:
        """For each level: its codes, the share of them in use, and the entropy of their use in bits.

        Of the last level without those that no item has: they are for new items.
        """
        rows: list[dict[str, object]] = []
        for level, size in enumerate((*self.sizes[:-1], int(self.codes[:, -1].max()) + 1)):
            counts = np.bincount(self.codes[:, level], minlength=size)
            share = counts[counts > 0] / counts.sum()
            used, entropy = float((counts > 0).mean()), float(-(share * np.log2(share)).sum())
            rows.append({"level": LETTERS[level], "codes": size, "used": used, "entropy": entropy})
        return rows

    @property
    def collisions(self) -> int:
        """Items that share the codes of all levels but the last with an item before them."""
        return len(self.codes) - len(np.unique(self.codes[:, :-1], axis=0))

    def save(self, folder: Path) -> None:
        """Writes both files; the folder is created."""
        rows = ({"item": item, "codes": own} for item, own in zip(self.items, self.codes.tolist(), strict=True))
        write_jsonl(folder / CODES, rows)
        books = {letter: np.ascontiguousarray(book) for letter, book in zip(LETTERS, self.codebooks, strict=False)}
        with replacing(folder / CODEBOOKS) as file:
            file.write(save({**books, **self.quantizer.projection.arrays(), "last": np.array([self.most], np.int32)}))

    @staticmethod
    def load(folder: Path) -> "SemanticIds":
        """Raises ValueError for missing or damaged files."""
        path = folder / CODEBOOKS
        try:
            books = load_file(path)
            most = int(books.pop("last")[0])
            projection = Projection.of(books)
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: {error}. Make the codes anew: `prepare ids`.") from error
        quantizer = Quantizer(projection, [books[letter] for letter in sorted(books) if letter in LETTERS])
        rows = read_jsonl(folder / CODES, _Row)
        found = [row["codes"] for row in rows]
        sizes = (*map(len, quantizer.codebooks), most)
        for line, own in enumerate(found, 1):
            if len(own) != len(sizes) or not all(0 <= code < size for code, size in zip(own, sizes, strict=True)):
                raise ValueError(f"{folder / CODES}, line {line}: the codes {own} do not fit the levels {sizes}.")
        if len({tuple(own) for own in found}) < len(found):
            raise ValueError(f"{folder / CODES}: two items have the same codes. Make the codes anew: `prepare ids`.")
        return SemanticIds([row["item"] for row in rows], np.array(found, np.int32), quantizer, most)


def fit(
    items: Sequence[str],
    vectors: np.ndarray,
    *,
    levels: int,
    codes: int,
    seed: int,
    quantizer: QuantizerName = "kmeans",
) -> SemanticIds:
    """The codes of items by a quantizer.

    Args:
      items: ids.
      vectors: float [items, size].
      levels: levels of the quantizer; one more distinguishes items that these leave together.
      codes: codes of each level.

    Raises:
      ValueError: numbers that fit no catalogue, or vectors that are not finite.
    """
    from instructrec_jax.ranking.rqvae import fit_rqvae

    if not 1 <= levels < len(LETTERS):
        raise ValueError(f"levels should be from 1 to {len(LETTERS) - 1}, but is {levels}.")
    distinct = len(np.unique(vectors, axis=0))
    if not 2 <= codes <= distinct:
        raise ValueError(f"codes should be from 2 to {distinct:,}, the number of different vectors, but is {codes:,}.")
    _check_finite(vectors)
    fitted = {"kmeans": fit_kmeans, "fsq": fit_fsq, "rqvae": fit_rqvae}[quantizer](
        vectors, levels=levels, codes=codes, seed=seed
    )
    found, _ = fitted.codes(vectors)
    prefixes = np.unique(found, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(prefixes, kind="stable")
    starts = np.searchsorted(prefixes[order], prefixes[order])
    count = np.empty(len(order), np.int64)
    count[order] = np.arange(len(order)) - starts
    together = np.concatenate([found, count[:, None]], 1).astype(np.int32)
    return SemanticIds(list(items), together, fitted, int(count.max()) + 1 + SPARE)


def _check_finite(vectors: np.ndarray) -> None:
    if not np.isfinite(vectors).all():
        raise ValueError("some vectors are not finite: the network's weights contain NaN or infinity.")
