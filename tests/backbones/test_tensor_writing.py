"""Safetensors files are those of the library, whatever their dtypes, in one file or several."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from instructrec_jax.backbones.tensor_writing import WRITTEN_DTYPES, size_of, write_shards
from instructrec_jax.files import read_json


@dataclass(frozen=True)
class One:
    name: str
    kind: str
    shape: tuple[int, ...]

    def fetch(self) -> np.ndarray:
        return np.arange(np.prod(self.shape)).reshape(self.shape).astype(WRITTEN_DTYPES[self.kind])


@pytest.mark.parametrize("most", [64, 10_000])
def test_the_library_reads_them(tmp_path: Path, most: int) -> None:
    (tmp_path / "model-00001-of-00099.safetensors").write_bytes(b"of another model")
    tensors = [One(kind.lower(), kind, (3, 5)) for kind in WRITTEN_DTYPES] + [One("scalar", "F32", ())]
    write_shards(tmp_path, tensors, most)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (most == 64) == (tmp_path / "model.safetensors.index.json").is_file()
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert set(found) == {tensor.name for tensor in tensors}
    for tensor in tensors:
        assert found[tensor.name].dtype == tensor.fetch().dtype and np.array_equal(found[tensor.name], tensor.fetch())
    assert found["bf16"].dtype == ml_dtypes.bfloat16
    if most == 64:
        index = read_json(tmp_path / "model.safetensors.index.json", dict)
        assert index["metadata"]["total_size"] == sum(map(size_of, tensors))
        assert set(index["weight_map"].values()) == {file.name for file in files}
