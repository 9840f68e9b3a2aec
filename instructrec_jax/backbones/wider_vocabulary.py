"""A copy of a HuggingFace folder whose vocabulary has more tokens, with new rows in the tables of words."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instructrec_jax.backbones.folder import find_family, read_config
from instructrec_jax.backbones.tensor_names import TensorFiles, has_tensors
from instructrec_jax.backbones.tensor_writing import write_shards
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.files import read_json, write_json

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.msgpack", "*.h5", "*.gguf")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the old folder, with `more` entries along `axis` (None: as it is)."""

    files: TensorFiles
    name: str
    axis: int | None
    more: int
    seed: int

    @property
    def kind(self) -> str:
        return self.files.dtype(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.files.shape(self.name))
        if self.axis is not None:
            shape[self.axis] += self.more
        return tuple(shape)

    def fetch(self) -> np.ndarray:
        old = self.files.read(self.name)
        if self.axis is None:
            return old
        rows = np.moveaxis(old, self.axis, 0).astype(np.float32)
        noise = np.random.default_rng(self.seed).normal(size=(self.more, *rows.shape[1:]))
        deviation = rows.std(0) if rows[0].size > 1 else np.zeros(rows.shape[1:], np.float32)
        new = rows.mean(0) + deviation * noise
        return np.concatenate([old, np.moveaxis(new.astype(old.dtype), 0, self.axis)], self.axis)


def widen(folder: Path, tokens: Sequence[str], out: Path, seed: int) -> None:
    """Writes the folder to `out`, an empty folder, with more tokens at the end of its vocabulary.

    The row of a new token is drawn from a normal distribution with the mean and the standard deviation of each feature
    of the old rows (Hewitt, 2021, without covariances); its bias is the mean of the old ones. A folder without weights
    stays one.

    Args:
      tokens: which the tokenizer does not have.

    Raises:
      ValueError: for a network with another kind of vocabulary, and tokens that the tokenizer has.
    """
    config = read_config(folder)
    declared = read_json(folder / "config.json", dict)
    if find_family(config.model_type).kind == "encoder" or "vocab_size" not in declared:
        raise ValueError(
            f"{folder} holds a {config.model_type}: tokens are added to decoders and encoder–decoders of texts that "
            "have vocab_size in config.json."
        )
    tokenizer = open_tokenizer(folder, config)
    from transformers import AddedToken

    if known := [token for token in tokens if token in tokenizer.get_vocab()]:
        raise ValueError(f"the tokenizer of {folder} has the token {known[0]} already: start from another network.")
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    old, last = int(config.vocab_size), max(tokenizer.get_vocab().values())
    more = max(0, last + 1 - old)
    for file in sorted(folder.iterdir()):
        if file.is_file() and not any(file.match(pattern) for pattern in WEIGHTS):
            shutil.copyfile(file, out / file.name)
    tokenizer.save_pretrained(out)
    write_json(out / "config.json", {**declared, "vocab_size": old + more})
    if not has_tensors(folder):
        return
    with TensorFiles(folder) as files:
        tensors = [
            _Tensor(files, name, _axis(files.shape(name), old, name), more, seed + number)
            for number, name in enumerate(files.names)
        ]
        if not any(tensor.axis is not None for tensor in tensors):
            raise ValueError(f"{folder}: no tensor has vocab_size ({old:,}) rows, so its table of words is unknown.")
        write_shards(out, tensors)


def _axis(shape: tuple[int, ...], vocabulary: int, name: str) -> int | None:
    """Which axis of a tensor lies along the vocabulary; None: none does. Raises ValueError where it is not clear."""
    axes = [axis for axis, size in enumerate(shape) if size == vocabulary]
    if len(axes) > 1:
        raise ValueError(f"tensor {name} has {vocabulary:,} entries along two axes: its vocabulary cannot be told.")
    return axes[0] if axes else None
