"""Reads a GGUF file of llama.cpp as a HuggingFace folder, which is written once into the cache folder.

Everything behind `find_folder` reads that folder. Quantized weights are written in float32, and those in 16 bits as
they are, so no value is rounded. A folder's name is a fingerprint of its file, so another content is another folder;
each can be deleted, and is written again when it is needed.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.backbones.llama_cpp.names import (
    READABLE,
    ROPE_FACTORS,
    SIZES,
    Architecture,
    heads_of,
    needed_integer,
    score_divisor,
    to_halves,
)
from instructrec_jax.backbones.llama_cpp.tokens import KEY, TURN_ENDS, read_tokenizer
from instructrec_jax.backbones.rope import read_rope
from instructrec_jax.backbones.tensor_names import FILE_DTYPES
from instructrec_jax.backbones.tensor_writing import write_shards
from instructrec_jax.extras import require
from instructrec_jax.files import cache_folder, sync_folder, write_json
from instructrec_jax.hf_types import PretrainedConfig
from instructrec_jax.remote import alone

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

MAGIC = b"GGUF"
VERSION = "1"  # of what is written here: another one, another folder
ROOM = "gguf"  # in the cache folder
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of all published networks with this scaling
POOLING = {1: "mean", 2: "cls", 3: "lasttoken"}
DAMAGED = (ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError, MemoryError)  # gguf has no own


def gguf_folder(file: Path) -> Path:
    """The HuggingFace folder of a GGUF file, written into the cache unless it is there.

    Raises ValueError for another file or a truncated one, an unknown architecture or quantization, missing metadata,
    and tensors that the network does not have.
    """
    require("gguf", f"{file} (a file of llama.cpp)")
    folder = cache_folder() / ROOM / _fingerprint(file) / file.stem
    if folder.is_dir():
        return folder
    with alone(folder.parent):
        if not folder.is_dir():  # another process may have just written it
            new = folder.with_name(".partial")
            shutil.rmtree(new, ignore_errors=True)
            write_folder(file, new)
            os.replace(new, folder)
            sync_folder(folder.parent)
    return folder


def write_folder(file: Path, folder: Path) -> None:
    """Writes a GGUF file as a HuggingFace folder. Raises as `gguf_folder`."""
    reader = _open(file)
    fields = Fields(str(file), {name: _plain(each.contents()) for name, each in reader.fields.items()})
    architecture = _architecture(fields)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{file} has no tensor token_embd.weight: it is damaged, or a part of a model.")
    rows = int(tensors["token_embd.weight"].shape[-1])
    tokenizer = read_tokenizer(fields, rows, gemma=architecture.name.startswith("gemma"))
    config = _config(fields, architecture, tensors, rows)
    written = _tensors(file, architecture, tensors, config)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if architecture.is_decoder:
        _write_generation(folder, config, fields)
    elif pooling := POOLING.get(fields.integer(f"{architecture.name}.pooling_type", 0) or 0):
        _write_pooling(folder, pooling, config)
    write_shards(folder, written)


def _fingerprint(file: Path) -> str:
    """Of size, time of change, and samples of up to 1 MiB: a whole file may have a hundred gigabytes."""
    status = file.stat()
    digest = hashlib.sha256(f"{VERSION} {status.st_size} {status.st_mtime_ns}".encode())
    with file.open("rb") as opened:
        for start in sorted({status.st_size * part // 64 for part in range(64)}):
            opened.seek(start)
            digest.update(opened.read(1 << 14))
    return digest.hexdigest()[:32]


def _open(file: Path) -> "GGUFReader":
    from gguf import GGUFReader

    with file.open("rb") as opened:
        begins = opened.read(4)
    if begins != MAGIC:
        raise ValueError(f"{file} is not a GGUF file: it begins with {begins!r}, not {MAGIC!r}. Download it again.")
    try:
        return GGUFReader(file)
    except DAMAGED as error:
        problem = " ".join(str(error).split())[:200]
        if "GGMLQuantizationType" in problem:
            remedy = "Update the package gguf, or quantize the model otherwise (Q8_0, Q4_K_M)"
            raise ValueError(f"{file} has an unknown quantization ({problem}). {remedy}.") from error
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {problem}): it is truncated or damaged. Download it again."
        ) from error


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _architecture(fields: Fields) -> Architecture:
    name = fields.text("general.architecture")
    if name is None:
        fields.refuse("general.architecture", "the name of a network")
    if name not in READABLE:
        fields.refuse("general.architecture", f"one of {', '.join(sorted(READABLE))}: others are not implemented")
    if (fields.integer("split.count", 0) or 0) > 1:
        fields.refuse("split.count", "1: join the parts with `llama-gguf-split --merge`")
    return READABLE[name]


# ---------------------------------------------------------------- config.json


def _config(
    fields: Fields, architecture: Architecture, tensors: Mapping[str, "ReaderTensor"], rows: int
) -> PretrainedConfig:
    from transformers import AutoConfig

    prefix = f"{architecture.name}."
    values: dict[str, object] = {own: needed_integer(fields, prefix + theirs) for theirs, own in SIZES.items()} | {
        "vocab_size": rows,
        "architectures": [architecture.cls],
    }
    for theirs, own in architecture.numbers.items():
        number = fields.number(prefix + theirs, 0.0)
        if number is None and own not in ("attn_logit_softcapping", "final_logit_softcapping"):
            fields.refuse(prefix + theirs, "a number")
        values[own] = None if number is None else _shortest(number)
    for theirs, own in {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}.items():
        values[own] = fields.integer(f"{KEY}{theirs}_token_id", 0)
    if architecture.is_decoder:
        values |= _decoder_values(fields, architecture, tensors)
    else:
        values["type_vocab_size"] = (
            int(tensors["token_types.weight"].shape[-1]) if "token_types.weight" in tensors else 1
        )
        values |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": values["pad_token_id"] or 0}
    config = AutoConfig.for_model(architecture.model_type, **values)
    if ROPE_FACTORS in tensors:
        _fit_rope(fields, config, tensors[ROPE_FACTORS])
    return config


def _decoder_values(
    fields: Fields, architecture: Architecture, tensors: Mapping[str, "ReaderTensor"]
) -> dict[str, object]:
    prefix = f"{architecture.name}."
    heads, width = (
        needed_integer(fields, f"{prefix}attention.head_count"),
        needed_integer(fields, f"{prefix}embedding_length"),
    )
    layers = needed_integer(fields, f"{prefix}block_count")
    length = fields.integer(f"{prefix}attention.key_length", 1) or fields.integer(f"{prefix}rope.dimension_count", 1)
    head_dim = length or width // heads
    if (fields.integer(f"{prefix}rope.dimension_count", 1) or head_dim) != head_dim:
        fields.refuse(
            f"{prefix}rope.dimension_count", f"{head_dim}, the width of a head: partial rotation is not implemented"
        )
    if (fields.integer(f"{prefix}attention.value_length", 1) or head_dim) != head_dim:
        fields.refuse(f"{prefix}attention.value_length", f"{head_dim}, the width of the keys")
    rope = _rope(fields, prefix)
    values: dict[str, object] = {
        "num_key_value_heads": fields.integer(f"{prefix}attention.head_count_kv", 1) or heads,
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": rope,
    }
    if architecture.name != "qwen2" or head_dim * heads != width:  # transformers' Qwen2Config does not have it
        values["head_dim"] = head_dim
    if architecture.name in ("llama", "qwen3"):
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if architecture.name == "llama":
        values["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    if architecture.windows:
        every = (
            fields.integer(f"{prefix}attention.sliding_window_pattern", 1)
            or {"gemma2": 2, "gemma3": 6}[architecture.name]
        )
        values["sliding_window"] = needed_integer(fields, f"{prefix}attention.sliding_window")
        values["layer_types"] = [
            "full_attention" if (number + 1) % every == 0 else "sliding_attention" for number in range(layers)
        ]
        values["query_pre_attn_scalar"] = score_divisor(architecture, layers, width, heads, head_dim)
    if architecture.name == "gemma3":
        local = fields.number(f"{prefix}rope.freq_base_swa", 1.0) or 10000.0
        short = {"rope_type": "default", "rope_theta": local}
        values["rope_parameters"] = {"full_attention": rope, "sliding_attention": short}
    return values


def _rope(fields: Fields, prefix: str) -> dict[str, object]:
    """`rope_parameters` of config.json. Raises ValueError for a scaling that is not implemented."""
    rope: dict[str, object] = {"rope_theta": fields.number(f"{prefix}rope.freq_base", 1.0) or 10000.0}
    kind = fields.text(f"{prefix}rope.scaling.type") or "none"
    if kind not in ("none", "linear", "yarn"):
        fields.refuse(f"{prefix}rope.scaling.type", "none, linear or yarn")
    known = {"type", "factor", "original_context_length", "finetuned"}
    for name in fields.values:
        if name.startswith(f"{prefix}rope.scaling.") and name.rpartition(".")[2] not in known and kind != "none":
            fields.refuse(name, "absent: this setting of the scaling is not implemented")
    factor = fields.number(f"{prefix}rope.scaling.factor", 0.0)
    if kind == "none":
        return {"rope_type": "default"} | rope
    if not factor:
        fields.refuse(f"{prefix}rope.scaling.factor", "a number above 0")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} | rope
    length = needed_integer(fields, f"{prefix}rope.scaling.original_context_length")
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length} | rope


def _fit_rope(fields: Fields, config: PretrainedConfig, tensor: "ReaderTensor") -> None:
    """Sets the Llama 3 scaling whose factors are those of the file's tensor. Raises ValueError if none has them."""
    import gguf

    factors = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32).ravel()
    base = np.array(read_rope(config).frequencies, np.float32)
    length = fields.integer(f"{fields.text('general.architecture')}.rope.scaling.original_context_length", 1) or 8192
    theta = config.rope_parameters["rope_theta"]
    scaled = {"rope_type": "llama3", "rope_theta": theta, "factor": _shortest(float(factors.max()))}
    config.rope_parameters = scaled | LLAMA3 | {"original_max_position_embeddings": length}
    found = base / np.array(read_rope(config).frequencies, np.float32)
    if found.shape != factors.shape or not np.allclose(found, factors, rtol=1e-3):
        raise ValueError(
            f"{fields.where}: the tensor {ROPE_FACTORS} has other factors than Llama 3's scaling with factor "
            f"{factors.max():g} and original length {length:,}: this scaling is not implemented."
        )


def _shortest(number: float) -> float:
    """1e-05 of the float32 9.99999974e-06, which is the same float32."""
    return float(str(np.float32(number)))


# ---------------------------------------------------------------- other files


def _write_generation(folder: Path, config: PretrainedConfig, fields: Fields) -> None:
    from transformers import GenerationConfig

    tokens, types = fields.texts(f"{KEY}tokens") or [], fields.values.get(f"{KEY}token_type")
    turn = [fields.integer(f"{KEY}eot_token_id", 0), *(tokens.index(each) for each in TURN_ENDS if each in tokens)]
    ends = list(dict.fromkeys(n for n in [config.eos_token_id, *(turn if types else [])] if n is not None))
    settings = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(eos_token_id=ends if len(ends) > 1 else next(iter(ends), None), **settings).save_pretrained(folder)


def _write_pooling(folder: Path, pooling: str, config: PretrainedConfig) -> None:
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    mode = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, mode[pooling]: True}
    )


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the folder; see `tensor_writing.FileTensor`."""

    name: str
    kind: str
    stored: "ReaderTensor"
    heads: int | None  # whose rotary pairs become halves
    offset: float  # to be subtracted
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in reversed(self.stored.shape)))

    def fetch(self) -> np.ndarray:
        import gguf

        values = np.asarray(gguf.dequantize(self.stored.data, self.stored.tensor_type), np.float32).reshape(self.shape)
        values = values if self.heads is None else to_halves(values, self.heads)
        return (values - np.float32(self.offset) if self.offset else values).astype(FILE_DTYPES[self.kind])


def _tensors(
    file: Path, architecture: Architecture, tensors: Mapping[str, "ReaderTensor"], config: PretrainedConfig
) -> list[_Tensor]:
    import gguf

    found = []
    for name, tensor in tensors.items():
        if name == ROPE_FACTORS:
            continue
        own = architecture.to_hf(name)
        if own is None:
            raise ValueError(
                f"{file} has a tensor {name}, which a {architecture.name} network does not have here: it is of a "
                f"variant "
                "(such as a mixture of experts) that is not implemented."
            )
        try:
            gguf.dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{file}: tensor {name} has the quantization {tensor.tensor_type.name}, which the package gguf cannot "
                "dequantize: quantize the model otherwise (Q8_0, Q4_K_M)."
            ) from error
        heads = None
        if architecture.rotary_neighbors:
            heads = heads_of(name, config.num_attention_heads, config.num_key_value_heads)
        offset = architecture.norm_offset if "norm" in name else 0.0
        kind = tensor.tensor_type.name if tensor.tensor_type.name in ("F16", "BF16") and not offset else "F32"
        found.append(_Tensor(own, kind, tensor, heads, offset))
    return found
