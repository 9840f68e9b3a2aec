"""Rows of word embeddings that are trained beside LoRA: those of added tokens, in place of the frozen table's.

Their parameter is `TABLE/lora/rows`, so it is trained, decayed (not at all), kept and started from as LoRA's matrices.
In PEFT: `trainable_token_indices`, whose tensors replace rows as ours do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.quantized import QuantizedTable
from instructrec_jax.backbones.folder import family_of
from instructrec_jax.backbones.tables import Table, dense_table, table_logits
from instructrec_jax.hf_types import PretrainedConfig

PEFT_NAME = "token_adapter.trainable_tokens_delta"  # of the tensor, behind the name of the module with the table


class _Rows(nnx.Module):
    def __init__(self, values: jax.Array):
        self.rows = nnx.Param(values, axes=(None, "embed"))


class TokenRows(nnx.Module):
    """A table [size, features] of which some rows are parameters of their own, fp32 [tokens, features].

    Args:
      base: the table, whose own rows of these tokens have no effect.
      tokens: in rising order.
    """

    def __init__(self, base: "nnx.Param[jax.Array] | Table", rows: jax.Array, tokens: Sequence[int]):
        self.base = base
        self.lora = _Rows(rows)
        self.tokens = tuple(tokens)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    def dense(self) -> jax.Array:
        """fp32 [size, features]."""
        return dense_table(self.base).astype(jnp.float32).at[np.array(self.tokens)].set(self.lora.rows[...])

    def rows(self, ids: jax.Array) -> jax.Array:
        """fp32 [..., features]; NaN for an id outside the table."""
        base, tokens = self.base, jnp.asarray(self.tokens)
        frozen = jnp.take(base[...], ids, axis=0) if isinstance(base, nnx.Param) else base.rows(ids)
        place = jnp.minimum(jnp.searchsorted(tokens, ids), len(tokens) - 1)
        return jnp.where((tokens[place] == ids)[..., None], self.lora.rows[...][place], frozen.astype(jnp.float32))

    def logits(self, x: jax.Array) -> jax.Array:
        """x [..., features] times the table's transpose, in x's dtype: fp32 [..., size]."""
        own = jnp.einsum("...h,vh->...v", x, self.lora.rows[...].astype(x.dtype), preferred_element_type=jnp.float32)
        return table_logits(self.base, x).at[..., np.array(self.tokens)].set(own)


def added_tokens(tokenizer: Any) -> list[int]:
    """The tokens that were added to a tokenizer's vocabulary, without special ones, in rising order.

    Raises:
      ValueError: there are none.
    """
    known = {} if tokenizer is None else tokenizer.added_tokens_decoder
    found = sorted(number for number, token in known.items() if not token.special)
    if not found:
        raise ValueError(
            "lora.token_rows is added, but the tokenizer has no added tokens, such as those of `prepare ids`: leave it "
            "out."
        )
    return found


def add_token_rows(network: nnx.Module, tokens: Sequence[int]) -> None:
    """Makes the rows of tokens parameters of their own, in all tables of a network, in place."""
    for owner in _owners(network):
        set_token_rows(owner, tokens)


def set_token_rows(owner: nnx.Module, tokens: Sequence[int], values: jax.Array | None = None) -> None:
    """The same in the table of a module (`Embedding`, or a head), with rows fp32 [tokens, features] if given.

    Raises:
      ValueError: the table has rows of their own already, or lacks some of the tokens.
    """
    table = owner.table  # type: ignore[attr-defined]
    if isinstance(table, TokenRows):
        raise ValueError("lora.token_rows: the table of words has rows that are trained already.")
    if tokens[-1] >= table.shape[0]:
        raise ValueError(
            f"lora.token_rows: token {tokens[-1]:,} is beyond the {table.shape[0]:,} rows of the table of words: the "
            "tokenizer belongs to another network."
        )
    if values is None:
        numbers = np.array(tokens)
        quantized = isinstance(table, QuantizedTable)
        values = table.codes[...][numbers] * table.scales[...][numbers] if quantized else table[...][numbers]
    owner.table = TokenRows(table, values.astype(jnp.float32), tokens)  # type: ignore[attr-defined]


def merge_token_rows(network: nnx.Module) -> None:
    """Writes the rows into their tables, which become plain ones, in place."""
    for owner in _owners(network):
        if isinstance(owner.table, TokenRows):  # type: ignore[attr-defined]
            owner.table = nnx.Param(owner.table.dense(), axes=("vocab", "embed"))  # type: ignore[attr-defined]


def _owners(network: nnx.Module) -> list[nnx.Module]:
    """The modules with a table of words."""
    found = []
    for _, node in list(nnx.iter_modules(network)):
        table = getattr(node, "table", None)
        plain = isinstance(table, nnx.Param) and table.get_metadata()["axes"] == ("vocab", "embed")
        if plain or isinstance(table, QuantizedTable | TokenRows):
            found.append(node)
    return found


# ---------------------------------------------------------------- PEFT


@dataclass(frozen=True)
class PeftRows:
    """What an adapter holds of tables: tensors by name, and the value of trainable_token_indices (None: no such)."""

    tensors: dict[str, np.ndarray]
    indices: list[int] | dict[str, list[int]] | None


def written_rows(backbone: Any, head: Any, hf_config: PretrainedConfig, prefix: str) -> PeftRows:
    """The rows of a network as PEFT names them; with a table of its own in the head (untied), by module."""
    tensors, indices = {}, {}
    for name, owner in _modules(backbone, head, hf_config, prefix).items():
        if isinstance(owner.table, TokenRows):
            tensors[f"{name}.{PEFT_NAME}"] = np.asarray(owner.table.lora.rows[...], np.float32)
            indices[name.rpartition(".")[2]] = list(owner.table.tokens)
    if len(indices) == 1 and isinstance(backbone.word_embeddings.table, TokenRows):
        return PeftRows(tensors, list(backbone.word_embeddings.table.tokens))
    return PeftRows(tensors, indices or None)


def read_rows(
    tensors: dict[str, np.ndarray],
    indices: Sequence[int] | Mapping[str, Sequence[int]] | None,
    backbone: Any,
    head: Any,
    hf_config: PretrainedConfig,
    prefix: str,
    file: Path,
) -> None:
    """Moves an adapter's rows out of `tensors` into a network. Raises ValueError for rows that do not fit it."""
    if not indices:
        return
    modules = _modules(backbone, head, hf_config, prefix)
    if not modules:
        raise ValueError(
            f"{file}: trainable_token_indices is for word embeddings, which are not read in a network of type "
            f"{hf_config.model_type}."
        )
    first = next(iter(modules)).rpartition(".")[2]
    by_module = dict(indices) if isinstance(indices, Mapping) else {first: indices}
    for name, owner in modules.items():
        tokens = by_module.pop(name.rpartition(".")[2], None) or by_module.pop(name, None)
        if tokens is None:
            continue
        values = tensors.pop(f"{name}.{PEFT_NAME}", None)
        if values is None or values.shape != (len(tokens), owner.table.shape[1]):
            shape = "no such tensor" if values is None else f"shape {list(values.shape)}"
            raise ValueError(
                f"{file}: {name}.{PEFT_NAME} should have shape {[len(tokens), owner.table.shape[1]]} "
                f"(trainable_token_indices), but there is {shape}."
            )
        order = np.argsort(tokens)
        set_token_rows(owner, np.array(tokens)[order].tolist(), jnp.asarray(values[order]))
    if by_module:
        raise ValueError(
            f"{file}: trainable_token_indices names {', '.join(by_module)}, but this {hf_config.model_type} network "
            f"has tables of words in {', '.join(modules)}."
        )


def _modules(backbone: Any, head: Any, hf_config: PretrainedConfig, prefix: str) -> dict[str, Any]:
    """The modules with a table of words, by HuggingFace's names; the embeddings first."""
    family = family_of(hf_config)
    rule = next((rule for rule in family.mapping if rule.path == "word_embeddings.table"), None)
    if rule is None:  # a network of images or sounds alone, or of two parts
        return {}
    found = {prefix + rule.name.removesuffix(".weight"): backbone.word_embeddings}
    if getattr(head, "table", None) is not None and "lm" in family.heads:
        own = next(rule for rule in family.heads["lm"].mapping if rule.path == "table")
        found[own.name.removesuffix(".weight")] = head
    return found
