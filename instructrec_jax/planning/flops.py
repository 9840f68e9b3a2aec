"""FLOPs of a training step by formula, since a compiler's count sees the body of a scan once and no kernels.

A token costs 2 FLOP forward for every parameter of a matrix product that it goes through, and twice that backward: once
for the gradient of what came in, once for that of the parameter (Kaplan et al., 2020, "Scaling Laws for Neural Language
Models", section 2.1). A frozen parameter needs no gradient of its own, so 4 in place of 6. Attention adds, forward, 4
FLOP for each layer, query, key that it sees and feature of a head; three times that with the backward pass.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Tree = dict[str, Any]


def leaves(params: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def merged(first: Tree, second: Tree) -> Tree:
    """Two trees of parameters as one."""
    together = dict(first)
    for name, value in second.items():
        together[name] = merged(together[name], value) if name in together else value
    return together


def product_parameters(params: Tree, is_frozen: Callable[[str], bool], *, tied: bool) -> tuple[int, int]:
    """Parameters that tokens are multiplied with: (trained, frozen).

    Matrices are what has two dimensions beside that of the layers. Tables that rows are taken from are none, but where
    the network's words are also its output (`tied`), their table is one.
    """
    counts = [0, 0]
    for path, value in leaves(params):
        dims = len(value.shape) - ("/block" in path)  # stacked layers have one more
        looked_up = path.startswith("backbone/") and path.endswith("/table")
        if dims >= 2 and (not looked_up or (tied and path == "backbone/word_embeddings/table")):
            counts[is_frozen(path)] += int(np.prod(value.shape))
    return counts[0], counts[1]


def attention_flops(config: Any, tokens: int, length: int, *, causal: bool) -> float:
    """Of all layers, forward and backward, for `tokens` queries in texts of `length` tokens.

    Args:
      config: HuggingFace's, of the network.
      causal: half of the keys are seen.
    """
    text = getattr(config, "get_text_config", lambda: config)()
    layers = int(getattr(text, "num_hidden_layers", None) or getattr(text, "num_layers", None) or 0)
    heads = int(getattr(text, "num_attention_heads", None) or getattr(text, "num_heads", None) or 1)
    width = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // heads
    return 12.0 * layers * heads * width * tokens * length * (0.5 if causal else 1.0)


def step_flops(
    params: Tree, is_frozen: Callable[[str], bool], config: Any, tokens: int, length: int, *, causal: bool
) -> float:
    """Model FLOP of one step over `tokens` tokens (what remat computes again is not counted).

    Args:
      params: nested dicts of arrays or shapes, with 'backbone' and 'head'.
      is_frozen: says of a parameter's path whether it is left as it is.
      config: HuggingFace's, of the network.
      length: of a text; where several share a row, that of the row is an upper bound.
    """
    has_table = any(path.startswith("head/") and path.endswith("table") for path, _ in leaves(params))
    predicts_words = "head" in params and any("table" in path or "bias" in path for path, _ in leaves(params["head"]))
    tied = (
        getattr(config, "tie_word_embeddings", False) and not has_table and (predicts_words or not params.get("head"))
    )
    trained, frozen = product_parameters(params, is_frozen, tied=tied)
    return (6.0 * trained + 4.0 * frozen) * tokens + attention_flops(config, tokens, length, causal=causal)
