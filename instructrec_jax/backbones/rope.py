"""Rotary positions (Su et al., 2021) and their scaling for longer inputs."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.hf_types import PretrainedConfig


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one kind of layer.

    Attributes:
        frequencies: radians per position, one for each of the head_dim / 2 pairs of features.
        scale: factor of cos and sin; attention scores are scaled by its square (YaRN).
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0


def rotation(positions: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """cos and sin, fp32 [rows, length, 1, head_dim / 2], of int32 positions [rows, length]."""
    angles = positions[..., None, None].astype(jnp.float32) * np.array(rope.frequencies, np.float32)
    return jnp.cos(angles) * rope.scale, jnp.sin(angles) * rope.scale


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + head_dim / 2) of x [rows, length, heads, head_dim] by their angles."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def read_rope(config: PretrainedConfig, kind: str | None = None) -> Rope:
    """The rotary positions of a HuggingFace config: its `rope_parameters`, which include AutoConfig's `rope_scaling`.

    Args:
        config: of `transformers`.
        kind: the layer type, if the config has rope parameters by layer type.

    rope_type "dynamic" scales positions only in inputs longer than `max_position_embeddings`, which every network here
    refuses (`max_length`), so it equals the default.

    Raises ValueError for a rope_type, or one of its fields, that is not implemented.
    """
    config.standardize_rope_params()
    parameters = config.rope_parameters if kind is None else config.rope_parameters[kind]
    rope_type = parameters["rope_type"]
    of = "" if kind is None else f" of {kind} layers"
    if rope_type not in SCALINGS:
        raise ValueError(
            f"config.json has rope_type {rope_type!r}{of}, which is not implemented (supported: {', '.join(SCALINGS)})."
        )
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"config.json has a partial_rotary_factor other than 1{of}, which is not implemented.")
    if kind is not None and rope_type == "yarn" and not parameters.get("truncate", True):
        # transformers reads it only at the top of rope_parameters, so its effect in training is unknown
        raise ValueError(f"config.json has truncate=false in the yarn parameters{of}, which is not implemented.")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim is {head_dim}, but must be even for rotary positions.")
    # fp32 throughout, as in PyTorch, because rounding of frequencies matters at distant positions
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.power(np.float32(parameters["rope_theta"]), exponents)
    fields = Fields(f"config.json, rope_parameters{of}", parameters)
    frequencies, scale = SCALINGS[rope_type](frequencies, fields, config)
    return Rope(tuple(map(float, frequencies)), scale)


Scaled = tuple[np.ndarray, float]  # frequencies, fp32 [head_dim / 2], and the factor of cos and sin


def _needed(parameters: Fields, name: str) -> float:
    value = parameters.number(name)
    if value is None:
        parameters.refuse(name, "a number")
    return value


def _default(frequencies: np.ndarray, parameters: Fields, config: PretrainedConfig) -> Scaled:
    return frequencies, 1.0


def _linear(frequencies: np.ndarray, parameters: Fields, config: PretrainedConfig) -> Scaled:
    """Position interpolation (Chen et al., 2023)."""
    return frequencies / np.float32(_needed(parameters, "factor")), 1.0


def _llama3(frequencies: np.ndarray, parameters: Fields, config: PretrainedConfig) -> Scaled:
    """Llama 3.1: stretches long waves by `factor`, keeps short ones, and interpolates between the two."""
    factor, length = _needed(parameters, "factor"), _needed(parameters, "original_max_position_embeddings")
    low, high = _needed(parameters, "low_freq_factor"), _needed(parameters, "high_freq_factor")
    waves = np.float32(2 * math.pi) / frequencies  # positions per turn
    keep = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    return ((1 - keep) * frequencies / factor + keep * frequencies).astype(np.float32), 1.0


def _yarn(frequencies: np.ndarray, parameters: Fields, config: PretrainedConfig) -> Scaled:
    """YaRN (Peng et al., 2023): like llama3, interpolated by the number of turns within the original length."""
    length = _needed(parameters, "original_max_position_embeddings")
    if "factor" not in parameters.values:
        parameters.refuse("factor", "a number, or null for the ratio of the new length to the original one")
    factor = parameters.number("factor") or config.max_position_embeddings / length
    base, dim = _needed(parameters, "rope_theta"), 2 * len(frequencies)

    def feature(turns: float) -> float:
        """The feature whose pair makes `turns` turns within `length` positions."""
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = feature(parameters.number("beta_fast") or 32), feature(parameters.number("beta_slow") or 1)
    if parameters.values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - low) / ((high - low) or 0.001)
    keep = 1 - np.clip(ramp, 0.0, 1.0)
    frequencies = ((1 - keep) * frequencies / factor + keep * frequencies).astype(np.float32)

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = parameters.number("attention_factor")
    if scale is None:
        one, all_dim = parameters.number("mscale"), parameters.number("mscale_all_dim")
        scale = magnitude(one) / magnitude(all_dim) if one and all_dim else magnitude(1.0)
    return frequencies, scale


SCALINGS = {"default": _default, "linear": _linear, "dynamic": _default, "llama3": _llama3, "yarn": _yarn}
