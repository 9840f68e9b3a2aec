"""Safetensors files, and the conversion of their tensors to parameters: names, layouts, slices."""

import hashlib
import json
import mmap
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from instructrec_jax.backbones.family import Rule
from instructrec_jax.backbones.json_fields import read_fields
from instructrec_jax.backbones.layers import Axes, Stack

Network = TypeVar("Network", bound=nnx.Module)
FILE_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def has_tensors(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


@dataclass(frozen=True)
class _Stored:
    """The location of a tensor: `size` bytes, row-major, at `offset` bytes from the start of `file`."""

    file: BinaryIO
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    def layers(self) -> "list[_Stored]":
        """The parts of a tensor whose first axis is that of the layers."""
        count, *shape = self.shape or (1,)
        size = self.size // max(1, count)
        return [replace(self, offset=self.offset + i * size, size=size, shape=tuple(shape)) for i in range(count)]


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialized host array, to be copied to a device.

    Freeing it returns its memory to the system, while malloc would keep much of it. It does not start at a multiple of
    64 bytes, because JAX on CPU would adopt such an array instead of copying it and could not reuse its memory when the
    parameter is donated.
    """
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, buffer=mmap.mmap(-1, 16 + size), offset=16)


def weight_files(folder: Path) -> list[str]:
    """Names of a folder's safetensors files: the single one, otherwise those of the index.

    Raises ValueError if there are none, and for an invalid index.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if index.is_file():
        places = read_fields(index).object("weight_map")
        if places is None or not places.values:
            raise ValueError(f"{index}: weight_map is missing or empty: download the file again.")
        for tensor in places.values:
            name = places.text(tensor)
            if name is None or Path(name).name != name or not name.endswith(".safetensors"):
                places.refuse(tensor, "the name of a safetensors file in the same folder")
        return sorted({str(name) for name in places.values.values()})
    pickles = [f.name for f in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))]
    remedy = (
        f" It has {', '.join(sorted(pickles))}, but pickles are never opened, because they can run code. Convert it "
        "once, on an isolated machine, with transformers and torch: "
        "`AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)` writes safetensors."
        if pickles
        else ""
    )
    raise ValueError(f"{folder} has no model.safetensors (nor model.safetensors.index.json).{remedy}")


def verify_checksums(folder: Path) -> None:
    """Compares each safetensors file with its SHA-256 on the HuggingFace hub.

    In the hub's cache it is the file's name (`blobs/<sha256>`, to which the snapshot links); after a download into a
    folder it is the second line of `.cache/huggingface/download/<file>.metadata`.

    Raises ValueError for a file that differs or has no known SHA-256.
    """
    for name in weight_files(folder):
        expected = _known_sha256(folder, name)
        if expected is None:
            raise ValueError(
                f"backbone.verify is true, but the SHA-256 of {folder / name} is unknown, because huggingface_hub did "
                "not download it: set backbone.verify to false, or backbone.path to the hub id."
            )
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"{folder / name} is damaged: its SHA-256 is {found}, but the hub's is {expected}. Delete it and "
                "download it again."
            )


def _known_sha256(folder: Path, name: str) -> str | None:
    blob = (folder / name).resolve()
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    known = [blob.name] if blob.parent.name == "blobs" else []
    if note.is_file():
        known += note.read_text(encoding="utf-8", errors="replace").splitlines()[1:2]
    return next((text.strip() for text in known if re.fullmatch(r"[0-9a-f]{64}", text.strip())), None)


class TensorFiles:
    """The safetensors files of a folder, read slice by slice. A context manager.

    Files are read rather than memory-mapped, because mapped pages would stay in memory along with the parameters.

    Args:
        name_here: the name that this object gives to a tensor of a name in a file (`Family.name_here`).
        stacked: see `Family`: such a tensor is given layer by layer.
    """

    def __init__(self, folder: Path, name_here: Callable[[str], str] = str, stacked: tuple[str, ...] = ()):
        self.folder = folder
        files = weight_files(folder)
        self._stack = ExitStack()
        self._stored: dict[str, _Stored] = {}
        for name in files:
            try:
                with safe_open(folder / name, framework="np"):
                    pass  # the library checks the header
                file = self._stack.enter_context(open(folder / name, "rb"))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise ValueError(f"cannot open {folder / name}: {error}. Is the download complete?") from error
            stored = {name_here(stored_name): tensor for stored_name, tensor in _header(file).items()}
            stored = _by_layer(stored, stacked)
            twice = sorted(set(stored) & set(self._stored))
            if twice:
                other = self._stored[twice[0]].file.name
                self._stack.close()
                raise ValueError(
                    f"{folder}: tensor {twice[0]} is in both {Path(other).name} and {name}: download the checkpoint "
                    "again, or delete the stale file."
                )
            self._stored.update(stored)

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> Mapping[str, object]:
        return self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        return self._stored[name].dtype

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor, or a rectangular slice of it, in the file's dtype; reads nothing else into memory.

        Raises ValueError for a tensor of a dtype other than `FILE_DTYPES`.
        """
        stored = self._stored[name]
        if stored.dtype not in FILE_DTYPES:
            raise ValueError(
                f"{self.folder}: tensor {name} has dtype {stored.dtype}, but only {', '.join(FILE_DTYPES)} weights can "
                "be loaded (no quantized or 64-bit weights)."
            )
        whole = (slice(None),) * (len(stored.shape) - len(index))
        bounds = [s.indices(size)[:2] for s, size in zip((*index, *whole), stored.shape, strict=True)]
        out = empty(tuple(stop - start for start, stop in bounds), FILE_DTYPES[stored.dtype])
        _read_into(out, stored.file, stored.offset, stored.shape, bounds)
        return out

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same shape and values; reads them in parts, up to the first difference."""
        shape = self.shape(name)
        if shape != self.shape(other):
            return False
        step = max(1, (1 << 20) // int(np.prod(shape[1:], dtype=int)))
        parts = (slice(start, start + step) for start in range(0, shape[0], step))
        return all(np.array_equal(self.read(name, (part,)), self.read(other, (part,))) for part in parts)


def _header(file: BinaryIO) -> dict[str, _Stored]:
    """The tensors of a safetensors file: 8 bytes with the length of a JSON header, the header, then the tensors."""
    size = int.from_bytes(file.read(8), "little")
    tensors = json.loads(file.read(size))
    return {
        name: _Stored(file, 8 + size + start, end - start, entry["dtype"], tuple(entry["shape"]))
        for name, entry in tensors.items()
        if name != "__metadata__"
        for start, end in [entry["data_offsets"]]
    }


def _by_layer(stored: Mapping[str, _Stored], stacked: tuple[str, ...]) -> dict[str, _Stored]:
    """The tensors with those of all layers, whose names begin with one of `stacked`, in one for each layer."""
    found: dict[str, _Stored] = {}
    for name, tensor in stored.items():
        start = next((each for each in stacked if name.startswith(each)), None)
        if start is None:
            found[name] = tensor
        else:
            found |= {f"{start}{i}.{name[len(start) :]}": layer for i, layer in enumerate(tensor.layers())}
    return found


READ_BYTES = 1 << 20  # size of a read from a tensor of which only some columns are needed


def _read_into(
    out: np.ndarray, file: BinaryIO, offset: int, shape: tuple[int, ...], bounds: list[tuple[int, int]]
) -> None:
    """Fills `out` with the rectangle `bounds` of the array of `shape` that starts at `offset`."""
    if out.size == 0:
        return
    if all(bound == (0, size) for bound, size in zip(bounds[1:], shape[1:], strict=True)):  # contiguous in the file
        row = out.itemsize * int(np.prod(shape[1:], dtype=int))
        file.seek(offset + (bounds[0][0] * row if bounds else 0))
        flat = out.reshape(-1).view(np.uint8)
        if file.readinto(flat) != flat.size:  # type: ignore[attr-defined]
            raise ValueError(f"{file.name} is shorter than its header declares: download it again.")
        return
    (start, stop), row = bounds[0], out.itemsize * int(np.prod(shape[1:], dtype=int))
    if row > READ_BYTES:
        for i in range(start, stop):
            _read_into(out[i - start], file, offset + i * row, shape[1:], bounds[1:])
        return
    columns = tuple(slice(*bound) for bound in bounds[1:])
    step = READ_BYTES // row
    for first in range(start, stop, step):
        last = min(first + step, stop)
        block = np.empty((last - first, *shape[1:]), out.dtype)
        _read_into(block, file, offset, shape, [(first, last), *((0, size) for size in shape[1:])])
        out[first - start : last - start] = block[:, *columns]


@dataclass(frozen=True)
class Site:
    """One parameter: its dotted path, the path with "{layer}" for the block, its layers, shape and axes."""

    path: str
    rule_path: str
    layers: tuple[int, ...] | None
    shape: tuple[int, ...]
    axes: Axes


def abstract_module(build: Callable[[jax.Array], Network]) -> Network:
    """The module with shapes for values; allocates nothing."""
    return nnx.merge(*jax.eval_shape(lambda key: nnx.split(build(key)), jax.random.key(0)))


def sites_of(module: nnx.Module) -> list[Site]:
    """All parameters of a module."""
    sites = []
    for keys, variable in nnx.to_flat_state(nnx.state(module)):
        owner: object = module
        rule_keys, layers = list(keys), None
        for depth, key in enumerate(keys):
            if isinstance(owner, Stack):
                block = next(b for b in owner.blocks if b.name == key)
                layers, rule_keys[depth] = tuple(block.layers), "{layer}"
            owner = getattr(owner, str(key))
        axes = variable.get_metadata()["axes"]
        axes = axes if layers is None else ("layers", *axes)
        path = ".".join(map(str, keys))
        sites.append(Site(path, ".".join(map(str, rule_keys)), layers, tuple(variable.shape), axes))
    return sites


def find_name(name: str, old_names: Iterable[str], prefix: str, names: Mapping[str, object]) -> str | None:
    """A tensor's name in the file; older names take precedence."""
    return next((prefix + n for n in (*old_names, name) if prefix + n in names), None)


def rule_names(rule: Rule, layer: int | None) -> tuple[str, tuple[str, ...]]:
    if layer is None:
        return rule.name, rule.old_names
    number = str(layer)
    return rule.name.replace("{layer}", number), tuple(n.replace("{layer}", number) for n in rule.old_names)


def file_shape(transform: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape in the file, from our shape of one layer."""
    if transform == "transpose":
        return (int(np.prod(shape[1:])), shape[0])
    if transform in ("row", "token"):
        return (1, *shape) if transform == "row" else (1, 1, *shape)
    if transform == "convolution":
        return (shape[-1], shape[-2], *shape[:-2])
    return (*shape[:-2], shape[-2] * shape[-1]) if transform == "split" else shape


def read_slice(
    files: TensorFiles, name: str, transform: str, shape: tuple[int, ...], index: tuple[slice, ...]
) -> np.ndarray:
    """The slice `index` of our array of `shape`, in fp32, from the file's tensor; reads nothing else.

    Raises ValueError for a value that is NaN or infinite.
    """
    out = _read_transformed(files, name, transform, shape, index)
    # minimum and maximum reveal NaN and infinity without an array of booleans
    if out.size and not (np.isfinite(out.min()) and np.isfinite(out.max())):
        raise ValueError(
            f"{files.folder}: tensor {name} contains NaN or infinity: the file is damaged, or its training diverged. "
            "Use another copy or an earlier checkpoint."
        )
    return out


def _read_transformed(
    files: TensorFiles, name: str, transform: str, shape: tuple[int, ...], index: tuple[slice, ...]
) -> np.ndarray:
    if transform == "none":
        return files.read(name, index).astype(np.float32, copy=False)
    if transform in ("row", "token"):
        ahead = (0,) if transform == "row" else (0, 0)
        whole = files.read(name, (*(slice(None) for _ in ahead), *index))
        return whole[ahead].astype(np.float32, copy=False)
    if transform == "convolution":
        *places, channels, out = index
        return (
            files.read(name, (out, channels, *places)).T.transpose(_reversed(len(places))).astype(np.float32, order="C")
        )
    if transform == "transpose" and len(shape) == 2:
        return files.read(name, (index[1], index[0])).T.astype(np.float32, order="C")
    # [..., parts, out] here; in the file [..., parts * out] or [parts * out, in]
    *outer, part_index, out_index = index
    start, stop, _ = out_index.indices(shape[-1])
    slices = [slice(p * shape[-1] + start, p * shape[-1] + stop) for p in range(*part_index.indices(shape[-2]))]
    if transform == "split":
        parts = [files.read(name, (*outer, one)) for one in slices]
    else:
        parts = [files.read(name, (one, *outer)).T for one in slices]
    return np.stack(parts, axis=-2).astype(np.float32, copy=False)


def _reversed(places: int) -> tuple[int, ...]:
    """The axes of a convolution's kernel with its places (height and width, or one) in reversed order."""
    return (*range(places)[::-1], places, places + 1)


def to_file(transform: str, value: np.ndarray) -> np.ndarray:
    """One layer's parameter in the file's layout."""
    if transform == "transpose":
        return value.reshape(value.shape[0], -1).T
    if transform in ("row", "token"):
        return value[None] if transform == "row" else value[None, None]
    if transform == "convolution":
        return value.transpose(_reversed(value.ndim - 2)).T
    return value.reshape(*value.shape[:-2], -1) if transform == "split" else value
