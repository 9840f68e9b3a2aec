"""Which parameters are trained, and how fast: by their paths and layers, never by their rank."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from instructrec_jax.adapters.heads import head_kind
from instructrec_jax.adapters.lora import is_lora
from instructrec_jax.backbones.layers import Stack


def frozen_parameters(
    model: nnx.Module, *, freeze: Sequence[str] = (), train_last: int | None = None, lora: bool = False
) -> Callable[[str], bool]:
    """Says of a parameter's path ('backbone/layers/block0/query/kernel') whether it stays as it is.

    Args:
      model: the (possibly abstract) network, with 'backbone' and 'head'.
      freeze: regular expressions; what one of them finds in its path is frozen.
      train_last: of the backbone only the last so many layers are trained, and what follows them.
      lora: of the backbone only the LoRA matrices are trained; a head over the vocabulary, which is part of what was
        pretrained, is frozen too.

    Raises:
      ValueError: a pattern that is no regular expression or finds nothing.
    """
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))]
    frozen = {path for pattern in freeze for path in _matching(pattern, paths)}
    if train_last is not None:
        tail = tuple(_tail(model))
        frozen |= {path for path in paths if path.startswith("backbone/") and not path.startswith(tail)}
    if lora:
        pretrained_head = head_kind(getattr(model, "head", None)) in ("lm", "mlm")
        frozen |= {path for path in paths if path.startswith("backbone/") or pretrained_head}
        frozen -= {path for path in paths if is_lora(path)}
    return frozen.__contains__


def _matching(pattern: str, paths: Sequence[str]) -> list[str]:
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(f"backbone.freeze: {pattern!r} is no regular expression ({error}).") from error
    if not found:
        raise ValueError(
            f"backbone.freeze: {pattern!r} matches no parameter. Some are: {', '.join(sorted(paths)[:6])}."
        )
    return found


def _tail(model: nnx.Module) -> list[str]:
    """The paths of the last stack's trained blocks, and of the norm and pooler behind them."""
    name, stack = stacks(model)[-1]
    blocks = [f"{name}/{block.name}" for block in stack.blocks if block.first >= stack.first_trained]
    return [f"{path}/" for path in [*blocks, *behind(name)]]


def behind(stack: str) -> tuple[str, str]:
    """The paths of the norm and the pooler that follow a stack of layers."""
    owner = stack.rpartition("/")[0]
    return f"{owner}/final_norm", f"{owner}/pooler"


def stacks(model: nnx.Module) -> list[tuple[str, Stack]]:
    """(path, stack) of the backbone's stacks of layers, in the order that a text passes through them."""
    found = [("/".join(map(str, path)), node) for path, node in nnx.iter_modules(model) if isinstance(node, Stack)]
    return sorted(found, key=lambda each: "decoder" in each[0])


def learning_rate_factors(model: nnx.Module, layer_decay: float) -> dict[str, float | np.ndarray]:
    """Path -> factor on the learning rate, [layers] for stacked parameters: layer-wise decay.

    decay ** (L + 1 - depth) with depth 0 for the embeddings, 1 … L for the layers and L + 1 for what follows them and
    for the head (Clark et al., 2020, ELECTRA). An encoder–decoder's decoder lies above its encoder.
    """
    numbered: dict[str, Stack] = dict(stacks(model))
    first, total = {}, 0
    for name, stack in numbered.items():
        first[name], total = total, total + stack.num_layers
    factors: dict[str, float | np.ndarray] = {}
    for keys, _ in nnx.to_flat_state(nnx.state(model)):
        path = "/".join(map(str, keys))
        depth: Any
        name = next((n for n in numbered if path.startswith(f"{n}/")), "")
        if name:
            block = next(b for b in numbered[name].blocks if path.startswith(f"{name}/{b.name}/"))
            depth = 1 + first[name] + np.array(block.layers)
        else:
            # what follows a stack lies above its last layer, also above an encoder's
            owner = next((n for n in numbered if path.rpartition("/")[0] in behind(n)), "")
            above = total if path.startswith("head/") else first[owner] + numbered[owner].num_layers if owner else -1
            depth = above + 1
        factors[path] = layer_decay ** (total + 1 - depth)
    return factors
