"""Writes a HuggingFace folder as a GGUF file of llama.cpp; `reading` is the way back."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instructrec_jax.backbones.decoder import LOCAL
from instructrec_jax.backbones.folder import read_config, read_pooling
from instructrec_jax.backbones.llama_cpp.names import (
    ARCHITECTURES,
    LARGEST_GEMMA,
    ROPE_FACTORS,
    SIZES,
    Architecture,
    heads_of,
    score_divisor,
    to_neighbors,
)
from instructrec_jax.backbones.llama_cpp.reading import POOLING
from instructrec_jax.backbones.llama_cpp.writing_tokens import chat_ends, write_tokens
from instructrec_jax.backbones.rope import read_rope
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.extras import require
from instructrec_jax.files import read_json
from instructrec_jax.hf_types import PretrainedConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Kind of weights -> llama.cpp's number of it for a whole file
KINDS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3}
BLOCK = 32  # weights of a row with one scale
ACTIVATIONS = {"bert": ("gelu",), "gemma2": ("gelu_pytorch_tanh",), "gemma3": ("gelu_pytorch_tanh",)}
NOT_WRITTEN = ("pooler.", "cls.", "embeddings.position_ids")  # of a BERT, whose file gives embeddings


def write_gguf(folder: Path, file: Path, kind: str) -> None:
    """Writes the network and the tokenizer of a HuggingFace folder as a GGUF file.

    Args:
        folder: of a language model, or a BERT whose pooled hidden states are embeddings.
        kind: one of `KINDS`. Vectors (norms, biases) and BERT's tables of positions and segments are float32; with 4
        bits
            the table of words has 8, as in llama.cpp's own files.

    Raises ValueError for a network or tokenizer that llama.cpp does not have, naming what differs, and for rows that a
    quantization does not divide.
    """
    require("gguf", "--format gguf")
    from gguf import GGUFWriter

    if kind not in KINDS:
        raise ValueError(f"--dtype is {kind!r}, but should be one of {', '.join(KINDS)} for gguf.")
    config = read_config(folder)
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"--format gguf writes {', '.join(ARCHITECTURES)}, but not {config.model_type}.")
    architecture = ARCHITECTURES[config.model_type]
    tokenizer = open_tokenizer(folder, config)
    generation = folder / "generation_config.json"
    ends = chat_ends(read_json(generation, dict)) if generation.is_file() else []
    with TensorFiles(folder) as files:
        tensors = _tensors(architecture, config, files, kind)
        writer = GGUFWriter(file, architecture.name)
        try:
            writer.add_type("model")
            writer.add_name(folder.name)
            writer.add_file_type(KINDS[kind])
            writer.add_quantization_version(2)
            _write_config(writer, architecture, config)
            _write_pooling(writer, architecture, folder)
            write_tokens(writer, tokenizer, config.vocab_size, ends)
            _write_tensors(writer, tensors)
        finally:
            writer.close()


# ---------------------------------------------------------------- metadata


def _refuse(what: str) -> None:
    raise ValueError(f"--format gguf: llama.cpp does not have {what} of this network.")


def _write_config(writer: "GGUFWriter", architecture: Architecture, config: PretrainedConfig) -> None:
    prefix = f"{architecture.name}."
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS.get(architecture.name, ("silu",)):
        _refuse(f"the activation {activation!r}")
    window = getattr(config, "sliding_window", None)
    for theirs, own in SIZES.items():
        size = getattr(config, own)
        if own == "max_position_embeddings" and window and not architecture.windows and _has_windows(config):
            size = min(size, window)  # llama.cpp attends to everything, which is the same within a window
        writer.add_uint32(prefix + theirs, size)
    for theirs, own in architecture.numbers.items():
        if getattr(config, own) is not None:
            writer.add_float32(prefix + theirs, getattr(config, own))
    writer.add_vocab_size(config.vocab_size)
    if not architecture.is_decoder:
        writer.add_causal_attention(False)
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    if architecture.name == "qwen3" and config.attention_bias:
        _refuse("the biases in the attention")
    if architecture.windows:
        _write_windows(writer, architecture, config, head_dim)
    _write_rope(writer, architecture, config)


def _has_windows(config: PretrainedConfig) -> bool:
    return config.model_type == "mistral" or LOCAL in (getattr(config, "layer_types", None) or ())


def _write_windows(writer: "GGUFWriter", architecture: Architecture, config: PretrainedConfig, head_dim: int) -> None:
    every = {"gemma2": 2, "gemma3": 6}[architecture.name]
    usual = ["full_attention" if (n + 1) % every == 0 else LOCAL for n in range(config.num_hidden_layers)]
    if list(config.layer_types) != usual:
        _refuse(f"layer_types other than one full_attention in {every} layers")
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    divisor = score_divisor(architecture, layers, config.hidden_size, heads, head_dim)
    if config.query_pre_attn_scalar != divisor:
        _refuse(
            f"query_pre_attn_scalar {config.query_pre_attn_scalar:g}: it uses {divisor:g} (unless there are "
            f"{LARGEST_GEMMA[architecture.name]} layers), and cannot be told otherwise, which is a property"
        )
    if architecture.name == "gemma3" and getattr(config, "final_logit_softcapping", None) is not None:
        _refuse("final_logit_softcapping")
    writer.add_sliding_window(config.sliding_window)


def _write_rope(writer: "GGUFWriter", architecture: Architecture, config: PretrainedConfig) -> None:
    config.standardize_rope_params()
    parameters = config.rope_parameters
    if architecture.name == "gemma3":
        short, parameters = parameters[LOCAL], parameters["full_attention"]
        if short["rope_type"] != "default":
            _refuse(f"rope_type {short['rope_type']} in sliding_attention layers")
        writer.add_rope_freq_base_swa(short["rope_theta"])
    writer.add_rope_freq_base(parameters["rope_theta"])
    kind = parameters["rope_type"]
    if kind in ("linear", "yarn"):
        extra = set(parameters) - {"rope_theta", "rope_type", "factor", "original_max_position_embeddings"}
        if extra := {name for name in extra if parameters[name] is not None}:
            _refuse(f"{', '.join(sorted(extra))} in rope_parameters")
        writer.add_string(f"{architecture.name}.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def _rope_factors(config: PretrainedConfig) -> np.ndarray | None:
    """Base frequency / frequency of Llama 3's scaling, float32 [head_dim / 2]; None for other networks."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "llama3":
        return None
    found = np.array(read_rope(config).frequencies, np.float32)
    exponents = np.arange(len(found), dtype=np.float32) / np.float32(len(found))
    return np.float32(1) / np.power(np.float32(parameters["rope_theta"]), exponents) / found


def _write_pooling(writer: "GGUFWriter", architecture: Architecture, folder: Path) -> None:
    pooling = read_pooling(folder)
    if pooling.projection is not None:
        _refuse("the projection of the vectors (a Dense module)")
    if architecture.is_decoder and not pooling.declared:
        return
    numbers = {mode: number for number, mode in POOLING.items()}
    if pooling.mode not in numbers:
        _refuse(f"the pooling {pooling.mode!r}")
    writer.add_uint32(f"{architecture.name}.pooling_type", numbers[pooling.mode])


# ---------------------------------------------------------------- tensors


class _Tensor:
    """A tensor of the file: its shape and bytes are known before its values are read."""

    def __init__(self, name: str, kind: str, shape: tuple[int, ...], fetch: "partial[np.ndarray]"):
        from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

        self.name, self.kind, self.shape, self._fetch = name, GGMLQuantizationType[kind], shape, fetch
        if kind.startswith("Q") and shape[-1] % BLOCK:
            raise ValueError(
                f"--dtype {kind}: the rows of {name} have {shape[-1]} values, which blocks of {BLOCK} do not "
                f"divide: use F16."
            )
        plain = {"F32": np.float32, "F16": np.float16}.get(kind)
        self.dtype = np.dtype(np.uint8 if plain is None else plain)
        self.stored = shape if plain is not None else quant_shape_to_byte_shape(shape, self.kind)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.stored, dtype=int)) * self.dtype.itemsize

    def fetch(self) -> np.ndarray:
        from gguf import quantize

        with np.errstate(over="ignore"):
            values = quantize(np.ascontiguousarray(self._fetch()), self.kind)
        if self.dtype == np.float16 and not np.isfinite(values).all():
            raise ValueError(f"--dtype F16: a value of {self.name} is beyond the range of float16: use BF16.")
        return values


def _tensors(architecture: Architecture, config: PretrainedConfig, files: TensorFiles, kind: str) -> list[_Tensor]:
    found = list(_each(architecture, config, files, kind))
    if architecture.is_decoder and not config.tie_word_embeddings and not any(t.name == "output.weight" for t in found):
        _refuse("a table of outputs (lm_head.weight)")
    if (factors := _rope_factors(config)) is not None:
        found.append(_Tensor(ROPE_FACTORS, "F32", factors.shape, partial(np.copy, factors)))
    return found


def _each(architecture: Architecture, config: PretrainedConfig, files: TensorFiles, kind: str) -> Iterator[_Tensor]:
    for stored in files.names:
        whole = stored.removeprefix("bert.")
        if architecture.is_decoder and not whole.startswith(("model.", "lm_head.", "score.", "classifier.")):
            whole = f"model.{whole}"  # a folder of the network without a head
        if not architecture.is_decoder and whole.startswith(NOT_WRITTEN):
            continue
        if whole == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = architecture.from_hf(whole)
        if name is None:
            raise ValueError(
                f"--format gguf: llama.cpp has no place for the tensor {stored} of this {config.model_type} network."
            )
        heads = None
        if architecture.rotary_neighbors:
            heads = heads_of(name, config.num_attention_heads, config.num_key_value_heads)
        shape = files.shape(stored)
        own = _kind(architecture, name, shape, kind)
        offset = architecture.norm_offset if "norm" in name else 0.0
        yield _Tensor(name, own, shape, partial(_read, files, stored, heads, offset))


def _kind(architecture: Architecture, name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1 or name in ("position_embd.weight", "token_types.weight"):
        return "F32"
    if kind.startswith("Q") and not architecture.is_decoder and name.endswith("attn_v.weight"):
        return "F16"  # a thirtieth of MiniLM, whose values bring half of the error of its vectors
    return "Q8_0" if kind.startswith("Q4") and name in ("token_embd.weight", "output.weight") else kind


def _read(files: TensorFiles, name: str, heads: int | None, offset: float) -> np.ndarray:
    values = files.read(name).astype(np.float32)
    values = values if heads is None else to_neighbors(values, heads)
    return values + np.float32(offset) if offset else values


def _write_tensors(writer: "GGUFWriter", tensors: list[_Tensor]) -> None:
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.stored, tensor.dtype, tensor.nbytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.fetch())
