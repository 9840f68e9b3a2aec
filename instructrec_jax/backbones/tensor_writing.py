"""Safetensors files, written one tensor at a time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from instructrec_jax.backbones.tensor_names import FILE_DTYPES
from instructrec_jax.files import replacing, write_json

# Names of dtypes in safetensors files, beside those that are read as parameters.
WRITTEN_DTYPES = FILE_DTYPES | {"I8": np.dtype(np.int8), "I32": np.dtype(np.int32), "I64": np.dtype(np.int64)}


class FileTensor(Protocol):
    """A tensor to write: `kind` is one of `WRITTEN_DTYPES`; `fetch()` gives the values when their turn comes."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def fetch(self) -> np.ndarray: ...


def size_of(tensor: FileTensor) -> int:
    """Its bytes in the file."""
    return WRITTEN_DTYPES[tensor.kind].itemsize * int(np.prod(tensor.shape, dtype=int))


def write_shards(folder: Path, tensors: Sequence[FileTensor], max_shard_bytes: int = 2_000_000_000) -> None:
    """Writes model.safetensors, or several files with an index, in place of those in the folder."""
    shards: list[list[FileTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + size_of(tensor) > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += size_of(tensor)
    count = len(shards)
    files = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    files = files if count > 1 else ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        _write_file(folder / file, shard)
    index = folder / "model.safetensors.index.json"
    for old in {*folder.glob("model*.safetensors"), index} - {folder / file for file in files}:
        old.unlink(missing_ok=True)  # otherwise it would be read as a part of this model
    if count > 1:
        total = sum(map(size_of, tensors))
        place = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": place})


def _write_file(path: Path, tensors: Sequence[FileTensor]) -> None:
    """Writes a safetensors file: the length of a JSON header in 8 bytes, the header, then the tensors.

    Why our own: `safetensors.numpy.save_file` needs all tensors in memory and copies them there.
    """
    tensors = sorted(tensors, key=lambda t: -WRITTEN_DTYPES[t.kind].itemsize)  # so that every tensor is aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + size_of(tensor)
        header[tensor.name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.fetch()).reshape(-1).view(np.uint8).data)
