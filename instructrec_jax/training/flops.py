"""FLOPs of a training step by formula, since a compiler counts the body of a scan once and no kernels.

Forward, a token costs 2 FLOP per parameter of each matrix product. Backward, it costs 2 FLOP for the gradient of the
product's input, where a layer below is trained, and 2 FLOP for the gradient of the parameter, where it is trained
(Kaplan et al., 2020, "Scaling Laws for Neural Language Models", section 2.1): 6 in full tuning, 4 for a frozen kernel
beside LoRA, 2 for a frozen layer below all trained layers. A quantized (nf4) kernel counts its original number of
parameters. Attention costs 4 FLOP forward per layer, query, visible key and head feature, and twice that backward.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np

from instructrec_jax.hf_types import PretrainedConfig
from instructrec_jax.training.state import Tree

# Forward passes that the backward pass recomputes: (products with parameters in layers, attention).
RECOMPUTED = {"none": (0, 0), "attention": (0, 1), "dots": (0, 1), "offload": (0, 1), "full": (1, 1)}


@dataclass(frozen=True)
class Texts:
    """The size of a step's batch, padding included, since padding costs as much.

    Attributes:
      tokens, length: tokens of all rows, and of one row.
      causal: whether attention is causal.
      target_tokens, target_length: the same for the decoder rows of an encoder–decoder; else 0.
      pooled: number of vectors that the head and the pooler see, where each text is pooled to one; None: every token.
    """

    tokens: int
    length: int
    causal: bool
    target_tokens: int = 0
    target_length: int = 0
    pooled: int | None = None


@dataclass(frozen=True)
class Flops:
    """FLOPs of one step, over all devices. Recomputation (remat) is not a FLOP of the model.

    Attributes:
      layers, layers_backward: products with parameters of the stacked layers, forward and backward.
      others, others_backward: products with the other parameters: head, pooler.
      attention, attention_backward: scores and weighted sums.
    """

    layers: float
    layers_backward: float
    others: float
    others_backward: float
    attention: float
    attention_backward: float

    @property
    def products(self) -> float:
        return self.layers + self.layers_backward + self.others + self.others_backward

    @property
    def model(self) -> float:
        """FLOPs that MFU counts: forward and backward, without recomputation."""
        return self.products + self.attention + self.attention_backward

    def products_with(self, remat: str) -> float:
        """Products, including the layers' forward passes that this `backbone.remat` recomputes."""
        again = RECOMPUTED[remat][0] if self.layers_backward else 0
        return self.products + again * self.layers

    def attention_with(self, remat: str, *, kernel: bool = False) -> float:
        """Attention, including recomputation.

        Args:
          kernel: flash attention, whose backward pass takes 7 products instead of 4 (splash: 4 for keys and values,
            3 for queries), since it recomputes the scores.
        """
        again = RECOMPUTED[remat][1] if self.attention_backward else 0
        backward = self.attention_backward * (7 / 4 if kernel else 1)
        return self.attention * (1 + again) + backward


def leaves(params: Tree, prefix: str = "") -> Iterator[tuple[str, jax.Array]]:
    """(path, array) of nested dicts."""
    for name, value in params.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def step_flops(
    params: Tree,
    is_frozen: Callable[[str], bool],
    config: PretrainedConfig,
    texts: Texts,
    *,
    tied: bool,
    backbone: bool = True,
) -> Flops:
    """The FLOPs of a training step.

    Args:
      params: nested dicts with 'backbone' and 'head', of arrays or abstract arrays.
      is_frozen: parameter path -> whether it is frozen.
      config: the network's HuggingFace config.
      tied: whether the word embeddings are also the output layer, and so cost a matrix product.
      backbone: whether the step runs the backbone; a head on precomputed vectors (task sequence) does not.
    """
    trained = [_place(path) for path, _ in leaves(params) if not is_frozen(path)]
    lowest = min(trained, default=(np.inf, 0.0))
    sums = {(in_layers, passes): 0.0 for in_layers in (True, False) for passes in ("forward", "backward")}
    for path, value in leaves(params):
        if not path.startswith("head/") and not backbone:
            continue
        size = _matrix_size(path, value, tied=tied)
        once = 2.0 * size * _vectors_through(path, texts)
        in_layers = "/block" in path
        # a layer's parameters lie below the layer's next product; a head's parameters do not
        place = _output_place(path, tied=tied)
        flows = lowest <= place if in_layers else lowest < place
        sums[in_layers, "forward"] += once
        sums[in_layers, "backward"] += once * (flows + (not is_frozen(path)))
    forward, backward = attention_flops(params, lowest, config, texts) if backbone else (0.0, 0.0)
    return Flops(
        sums[True, "forward"],
        sums[True, "backward"],
        sums[False, "forward"],
        sums[False, "backward"],
        forward,
        backward,
    )


def forward_flops(params: Tree, config: PretrainedConfig, texts: Texts, *, tied: bool, backbone: bool = True) -> float:
    """The FLOPs of a network that is only run, such as a teacher. Arguments as in `step_flops`."""
    return step_flops(params, lambda path: True, config, texts, tied=tied, backbone=backbone).model


def _matrix_size(path: str, value: jax.Array, *, tied: bool) -> int:
    """Parameters of the matrix that a token is multiplied by; 0 for a parameter that is not a matrix.

    Embedding tables cost nothing, unless they are also the output layer.
    """
    path, shape = path.replace("/table/codes", "/table"), tuple(value.shape)
    dims = len(shape) - ("/block" in path)  # stacked layers have one more
    looked_up = path.startswith("backbone/") and path.endswith(("/table", "/positions", "/registers"))
    if dims < 2 or path.endswith("/scales") or (looked_up and not (tied and path == WORDS)):
        return 0
    # 4 bits: two weights per byte (a kernel with an odd number of inputs counts one extra row)
    packed = 2 if path.endswith("/kernel/codes") and value.dtype == np.uint8 else 1
    return packed * int(np.prod(shape))


WORDS = "backbone/word_embeddings/table"


def _place(path: str) -> tuple[float, float]:
    """A parameter's depth: (0 embeddings, 1 encoder layers, 2 decoder layers, 3 head; block)."""
    if path.startswith("head/"):
        return 3.0, 0.0
    side = 2.0 if "/decoder/" in path else 1.0
    if found := re.search(r"/block(\d+)/", path):
        return side, float(found[1])
    if "/final_norm/" in path or "/pooler/" in path:
        return side, np.inf
    return 0.0, 0.0


def _output_place(path: str, *, tied: bool) -> tuple[float, float]:
    """The depth of the product with a parameter: for tied word embeddings, that of the output layer."""
    return (3.0, 0.0) if tied and path.removesuffix("/codes") == WORDS else _place(path)


def _vectors_through(path: str, texts: Texts) -> int:
    """The number of vectors multiplied by a parameter: in an encoder–decoder, tokens of the source or of the target."""
    if texts.pooled is not None and (path.startswith("head/") or "/pooler/" in path):
        return texts.pooled
    of_text = ("backbone/encoder/", "cross_attention/key/", "cross_attention/value/")
    return texts.target_tokens if texts.target_tokens and not any(part in path for part in of_text) else texts.tokens


def attention_flops(
    params: Tree, lowest: tuple[float, float], config: PretrainedConfig, texts: Texts
) -> tuple[float, float]:
    """(forward, backward) FLOPs of the scores and weighted sums of all layers.

    Args:
      lowest: depth of the lowest trained parameter: layers below it have no backward pass.
    """
    text = getattr(config, "get_text_config", lambda: config)()

    def first(*names: str) -> int:
        return next((int(value) for name in names if (value := getattr(text, name, None))), 0)

    heads = first("num_attention_heads", "num_heads", "encoder_attention_heads", "n_head") or 1
    width = first("head_dim", "d_kv") or first("hidden_size", "d_model", "n_embd") // heads
    layers = first("encoder_layers", "num_hidden_layers", "num_layers", "n_layer")
    blocks = _layers_of_blocks(params)
    seen = [texts.tokens * keys_seen(texts.length, window, causal=texts.causal) for window in windows(text, layers)]
    forward, backward = sum(seen), _last(seen, blocks, 1.0, lowest)
    if texts.target_tokens:  # self-attention over the target so far, cross-attention over the source
        decoder_layers = first("num_decoder_layers", "decoder_layers") or layers
        of_decoder = [texts.target_tokens * (0.5 * texts.target_length + texts.length)] * decoder_layers
        forward, backward = forward + sum(of_decoder), backward + _last(of_decoder, blocks, 2.0, lowest)
    return 4.0 * heads * width * forward, 8.0 * heads * width * backward


def _layers_of_blocks(params: Tree) -> dict[tuple[float, float], int]:
    """Depth of each block of stacked layers -> number of its layers."""
    return {
        _place(path): int(value.shape[0])
        for path, value in leaves(params)
        if path.startswith("backbone/") and "/block" in path
    }


def _last(seen: list[float], blocks: dict[tuple[float, float], int], side: float, lowest: tuple[float, float]) -> float:
    """The sum of `seen` over the layers with a backward pass (the last ones) of encoder (side 1) or decoder (2)."""
    count = sum(layers for place, layers in blocks.items() if place[0] == side and place >= lowest)
    return sum(seen[max(0, len(seen) - count) :]) if count else 0.0


def windows(config: PretrainedConfig, layers: int) -> list[tuple[int, int] | None]:
    """The attention window of each layer, (tokens back, tokens ahead); None: unlimited."""
    each_way, window = getattr(config, "local_attention", None), getattr(config, "sliding_window", None)
    reach = (each_way // 2, each_way // 2) if each_way else (window - 1, 0) if window else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [reach if kind == "sliding_attention" else None for kind in kinds[:layers]]


def keys_seen(length: int, window: tuple[int, int] | None, *, causal: bool) -> float:
    """Mean number of keys visible to a query in a text of `length` tokens.

    Causal attention counts length / 2, by convention: the extra half of the diagonal is left out.
    """
    if not causal:
        reach = length - 1 if window is None else min(max(window), length - 1)
        return 2 * reach + 1 - reach * (reach + 1) / max(length, 1)
    back = length if window is None else min(window[0] + 1, length)
    return back - back * back / (2 * max(length, 1))


def has_output_table(params: Tree) -> bool:
    """Whether a language model's head has its own output table instead of the word embeddings."""
    return any(path.startswith("head/") and path.endswith("table") for path, _ in leaves(params))
