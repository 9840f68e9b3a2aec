"""FLOPs of a training step by formula, since a compiler's count sees the body of a scan once and no kernels.

A token costs 2 FLOP forward for every parameter of a matrix product that it goes through, and twice that backward: once
for the gradient of what came in, once for that of the parameter (Kaplan et al., 2020, "Scaling Laws for Neural Language
Models", section 2.1). A frozen parameter needs no gradient of its own, so 4 in place of 6. Attention adds, forward, 4
FLOP for each layer, query, key that it sees and feature of a head; three times that with the backward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """What a step works on, padding and all, since it costs as much.

    Attributes:
      tokens, length: of all rows together, and of one.
      causal: whether a token sees only those before it: half of them.
      target_tokens, target_length: of the answers that an encoder–decoder's decoder reads; 0 where there is none.
    """

    tokens: int
    length: int
    causal: bool
    target_tokens: int = 0
    target_length: int = 0


def leaves(params: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def product_flops(params: Tree, is_frozen: Callable[[str], bool], texts: Texts, *, tied: bool) -> float:
    """Of all products of tokens with parameters, forward and backward.

    Tables that rows are taken from cost nothing, but where the network's words are also its output (`tied`), their
    table is a matrix like others.
    """
    total = 0.0
    for path, value in leaves(params):
        dims = len(value.shape) - ("/block" in path)  # stacked layers have one more
        looked_up = path.startswith("backbone/") and path.endswith("/table")
        if dims >= 2 and (not looked_up or (tied and path == "backbone/word_embeddings/table")):
            total += (4.0 if is_frozen(path) else 6.0) * int(np.prod(value.shape)) * _tokens_through(path, texts)
    return total


def _tokens_through(path: str, texts: Texts) -> int:
    """How many tokens meet a parameter: in an encoder–decoder those of the text, or those of the answer."""
    of_text = ("backbone/encoder/", "cross_attention/key/", "cross_attention/value/")
    return texts.target_tokens if texts.target_tokens and not any(part in path for part in of_text) else texts.tokens


def attention_flops(config: Any, texts: Texts) -> float:
    """Of the scores and sums of all layers, forward and backward.

    Args:
      config: HuggingFace's, of the network.
    """
    text = getattr(config, "get_text_config", lambda: config)()

    def first(*names: str) -> int:
        return next((int(value) for name in names if (value := getattr(text, name, None))), 0)

    heads = first("num_attention_heads", "num_heads", "encoder_attention_heads", "n_head") or 1
    width = first("head_dim", "d_kv") or first("hidden_size", "d_model", "n_embd") // heads
    layers = first("encoder_layers", "num_hidden_layers", "num_layers", "n_layer")
    seen = layers * texts.tokens * texts.length * (0.5 if texts.causal else 1.0)
    if texts.target_tokens:  # the decoder looks at the answer so far, and at the text
        decoder_layers = first("num_decoder_layers", "decoder_layers") or layers
        seen += decoder_layers * texts.target_tokens * (0.5 * texts.target_length + texts.length)
    return 12.0 * heads * width * seen


def has_output_table(params: Tree) -> bool:
    """Whether a language model's head has a table of its own, and does not use that of the network's words."""
    return any(path.endswith("table") for path, _ in leaves(params.get("head", {})))
