"""The network of a HuggingFace folder, with its head, as a function of tokens; and as a StableHLO program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.dual_encoder import unit_length
from instructrec_jax.adapters.heads import LMHead, MaskedLMHead, SequenceHead, TokenHead, build_head, pool_segments
from instructrec_jax.backbones.attention_kernels import LONG
from instructrec_jax.backbones.folder import declared_head, find_family, read_config, read_pooling
from instructrec_jax.backbones.reading import load_backbone, load_head
from instructrec_jax.backbones.sentence_vectors import read_projection
from instructrec_jax.extras import require
from instructrec_jax.files import replacing

OUTPUTS = {None: "hidden", "sequence": "logits", "token": "logits", "span": "logits", "mlm": "logits", "lm": "logits"}


@dataclass(frozen=True)
class Program:
    """A network as a function of arrays.

    Attributes:
        call: call(params, input_ids, attention_mask[, token_type_ids]) -> float32 array; the inputs are int32
            [rows, length], and the mask is 1 for tokens and 0 for the padding behind or before them.
        params: name -> float32 array.
        inputs: the names of the inputs.
        output: "logits" [rows, labels], or [rows, length, labels or vocabulary]; "vectors" [rows, width] of a folder
            that declares its pooling; else "hidden" [rows, length, width].
        longest: maximum number of tokens of a row.
    """

    call: Callable[..., jax.Array]
    params: dict[str, jax.Array]
    inputs: tuple[str, ...]
    output: str
    longest: int


def folder_program(folder: Path) -> Program:
    """The network of a HuggingFace folder. Raises ValueError for an encoder–decoder."""
    config = read_config(folder)
    if find_family(config.model_type).kind == "encoder_decoder":
        raise ValueError(
            f"{config.model_type} is an encoder–decoder, which this format does not have: use --format hf."
        )
    kind = declared_head(config)
    loaded, spec = load_backbone(folder, rngs=nnx.Rngs(0), pooler=True), read_pooling(folder)
    head: nnx.Module | None = None
    if kind is not None:
        labels = 2 if kind == "span" else len(config.id2label or ())
        outputs: int = config.get_text_config().vocab_size if kind in ("mlm", "lm") else labels

        def build(key: jax.Array) -> nnx.Module:
            return build_head(config, kind, outputs, rngs=nnx.Rngs(params=key))

        head = load_head(folder, kind, build, rngs=nnx.Rngs(0))[0]
    graph, state = nnx.split((loaded.module, head))
    names = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(state)}
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    projection = None if spec.projection is None else jnp.asarray(read_projection(spec.projection))
    pools = kind is None and spec.declared

    def call(params: dict[str, jax.Array], tokens: jax.Array, mask: jax.Array, *types: jax.Array) -> jax.Array:
        flat = nnx.from_flat_state({paths[name]: names[name].replace(value) for name, value in params.items()})
        backbone, own = nnx.merge(graph, flat)
        segments = mask.astype(jnp.int32)
        positions = jnp.maximum(jnp.cumsum(segments, axis=-1, dtype=jnp.int32) - 1, 0)
        hidden = backbone(tokens, segments, positions, *(types or (None,)))
        if isinstance(own, SequenceHead):
            return own(backbone, hidden, segments, 1)[:, 0]
        if isinstance(own, TokenHead):
            return own(hidden)
        if isinstance(own, MaskedLMHead | LMHead):
            return own(backbone, hidden)
        if not pools:
            return hidden.astype(jnp.float32)
        vectors = pool_segments(hidden, segments, spec.mode, 1)[:, 0].astype(jnp.float32)
        vectors = vectors if projection is None else vectors @ projection
        return unit_length(vectors) if spec.normalize else vectors

    inputs = ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs.append("token_type_ids")
    params = {name: jnp.asarray(value[...], jnp.float32) for name, value in names.items()}
    output = "vectors" if pools else OUTPUTS[kind]
    return Program(call, params, tuple(inputs), output, min(loaded.module.max_length, LONG - 1))


def write_stablehlo(folder: Path, out: Path) -> str:
    """Writes model.stablehlo, weights.npz and returns how to run them.

    The program takes any number of rows and tokens, on CPU, GPU and TPU; it computes attention in XLA's own operations.
    """
    require("flatbuffers", "--format stablehlo")
    program = folder_program(folder)
    rows, length = jax.export.symbolic_shape(
        "rows, length", constraints=[f"length <= {program.longest}", "length >= 2"]
    )
    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    params = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in program.params.items()}
    exported = jax.export.export(jax.jit(program.call), platforms=("cpu", "cuda", "rocm", "tpu"))(
        params, *[shape] * len(program.inputs)
    )
    with replacing(out / "model.stablehlo") as file:
        file.write(exported.serialize())
    with replacing(out / "weights.npz") as file:
        arrays: Mapping[str, Any] = {name: np.asarray(x) for name, x in program.params.items()}
        np.savez(file, **arrays)
    return (
        "`jax.export.deserialize(bytearray(Path('model.stablehlo').read_bytes())).call(dict(np.load('weights.npz')), "
        f"{', '.join(program.inputs)})` gives {program.output} (float32); the inputs are int32 [rows, length], with "
        f"at most "
        f"{program.longest} tokens, and need only jax and numpy."
    )
