"""FLOPs of a training step by formula, since a compiler's count sees the body of a scan once and no kernels.

A token costs 2 FLOP forward for every parameter of a matrix product that it goes through. Backward it costs 2 more for
the gradient of what came in, where something below is trained, and 2 more for the gradient of the parameter, where it
is trained itself (Kaplan et al., 2020, "Scaling Laws for Neural Language Models", section 2.1). So 6 in full tuning, 4
for a frozen kernel beside LoRA, 2 for a frozen layer below all that is trained. How a kernel is stored does not count:
an nf4 kernel has as many parameters as it stands for. Attention costs, forward, 4 FLOP for each layer, query, key that
it sees and feature of a head, and twice that backward.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = dict[str, Any]

# Forward passes that the backward pass repeats, of (products with parameters in layers, attention).
RECOMPUTED = {"none": (0, 0), "attention": (0, 1), "dots": (0, 1), "offload": (0, 1), "full": (1, 1)}


@dataclass(frozen=True)
class Texts:
    """What a step works on, padding and all, since it costs as much.

    Attributes:
      tokens, length: of all rows together, and of one.
      causal: whether a token sees only those before it: half of them.
      target_tokens, target_length: of the answers that an encoder–decoder's decoder reads; 0 where there is none.
      pooled: how many vectors the head and the pooler see, where each text is pooled to one; None: every token.
    """

    tokens: int
    length: int
    causal: bool
    target_tokens: int = 0
    target_length: int = 0
    pooled: int | None = None


@dataclass(frozen=True)
class Flops:
    """Of one step, over all devices. What is computed again (remat) is no FLOP of the model.

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
        """What MFU counts: forward and backward, nothing twice."""
        return self.products + self.attention + self.attention_backward

    def products_with(self, remat: str) -> float:
        """Products with what a setting of `backbone.remat` computes again: the layers' forward pass."""
        again = RECOMPUTED[remat][0] if self.layers_backward else 0
        return self.products + again * self.layers

    def attention_with(self, remat: str, *, kernel: bool = False) -> float:
        """Attention with what is computed again.

        Args:
          kernel: flash attention, whose backward pass takes 7 products in place of 4 (splash: 4 for keys and values,
            3 for queries), as it makes the scores anew.
        """
        again = RECOMPUTED[remat][1] if self.attention_backward else 0
        backward = self.attention_backward * (7 / 4 if kernel else 1)
        return self.attention * (1 + again) + backward


def leaves(params: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, array) of nested dicts."""
    for name, value in params.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def step_flops(
    params: Tree, is_frozen: Callable[[str], bool], config: Any, texts: Texts, *, tied: bool, backbone: bool = True
) -> Flops:
    """The FLOP of a training step.

    Args:
      params: nested dicts with 'backbone' and 'head', of arrays or of shapes.
      is_frozen: of a parameter's path.
      config: HuggingFace's, of the network.
      tied: the table of the network's words is its output's too, and so a matrix like others.
      backbone: whether the step runs the backbone; a head on vectors that were made before (a sequence recommender)
        does without.
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
        # a layer's own parameters lie below the next product of the layer, those of a head do not
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


def _matrix_size(path: str, value: Any, *, tied: bool) -> int:
    """Parameters of the matrix that a token is multiplied by; 0 for what is no matrix.

    Tables that rows are taken from cost nothing, unless they are the output's too.
    """
    shape = tuple(value.shape)
    dims = len(shape) - ("/block" in path)  # stacked layers have one more
    looked_up = path.startswith("backbone/") and path.endswith("/table")
    if dims < 2 or path.endswith("/kernel/scales") or (looked_up and not (tied and path == WORDS)):
        return 0
    # nf4: two weights to a byte (a kernel with an odd number of inputs counts one row more)
    packed = 2 if path.endswith("/kernel/codes") and value.dtype == np.uint8 else 1
    return packed * int(np.prod(shape))


WORDS = "backbone/word_embeddings/table"


def _place(path: str) -> tuple[float, float]:
    """Where a parameter lies on the way of a text: (embeddings, layers of the encoder, of the decoder, head; block)."""
    if path.startswith("head/"):
        return 3.0, 0.0
    side = 2.0 if "/decoder/" in path else 1.0
    if found := re.search(r"/block(\d+)/", path):
        return side, float(found[1])
    if "/final_norm/" in path or "/pooler/" in path:
        return side, np.inf
    return 0.0, 0.0


def _output_place(path: str, *, tied: bool) -> tuple[float, float]:
    """The same for the product with a parameter: of tied words, that is the output."""
    return (3.0, 0.0) if tied and path == WORDS else _place(path)


def _vectors_through(path: str, texts: Texts) -> int:
    """How many vectors meet a parameter: in an encoder–decoder those of the text, or those of the answer."""
    if texts.pooled is not None and (path.startswith("head/") or "/pooler/" in path):
        return texts.pooled
    of_text = ("backbone/encoder/", "cross_attention/key/", "cross_attention/value/")
    return texts.target_tokens if texts.target_tokens and not any(part in path for part in of_text) else texts.tokens


def attention_flops(params: Tree, lowest: tuple[float, float], config: Any, texts: Texts) -> tuple[float, float]:
    """(forward, backward) of the scores and weighted sums of all layers.

    Args:
      lowest: the place of the lowest trained parameter: layers below it have no backward pass.
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
    if texts.target_tokens:  # the decoder looks at the answer so far, and at the text
        decoder_layers = first("num_decoder_layers", "decoder_layers") or layers
        of_decoder = [texts.target_tokens * (0.5 * texts.target_length + texts.length)] * decoder_layers
        forward, backward = forward + sum(of_decoder), backward + _last(of_decoder, blocks, 2.0, lowest)
    return 4.0 * heads * width * forward, 8.0 * heads * width * backward


def _layers_of_blocks(params: Tree) -> dict[tuple[float, float], int]:
    """Place of a block of stacked layers -> how many layers it has."""
    return {
        _place(path): int(value.shape[0])
        for path, value in leaves(params.get("backbone", {}), "backbone/")
        if "/block" in path
    }


def _last(seen: list[float], blocks: dict[tuple[float, float], int], side: float, lowest: tuple[float, float]) -> float:
    """The sum over the layers of a side that have a backward pass: its last ones."""
    count = sum(layers for place, layers in blocks.items() if place[0] == side and place >= lowest)
    return sum(seen[max(0, len(seen) - count) :]) if count else 0.0


def windows(config: Any, layers: int) -> list[tuple[int, int] | None]:
    """Of each layer how far a token sees (back, ahead), itself not counted; None: everything."""
    each_way, window = getattr(config, "local_attention", None), getattr(config, "sliding_window", None)
    reach = (each_way // 2, each_way // 2) if each_way else (window - 1, 0) if window else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [reach if kind == "sliding_attention" else None for kind in kinds[:layers]]


def keys_seen(length: int, window: tuple[int, int] | None, *, causal: bool) -> float:
    """Keys that a query sees, on the average over a text of `length` tokens.

    Half of them all where it sees only earlier ones, as usual: the half of its own place is left out.
    """
    if not causal:
        reach = length - 1 if window is None else min(max(window), length - 1)
        return 2 * reach + 1 - reach * (reach + 1) / max(length, 1)
    back = length if window is None else min(window[0] + 1, length)
    return back - back * back / (2 * max(length, 1))


def has_output_table(params: Tree) -> bool:
    """Whether a language model's head has a table of its own, and does not use that of the network's words."""
    return any(path.endswith("table") for path, _ in leaves(params.get("head", {})))
