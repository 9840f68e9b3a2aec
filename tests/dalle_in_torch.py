"""DalleBart by dalle-mini's formulas, in PyTorch: shared by the tests of the network and of what it draws."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch.nn.functional import gelu, layer_norm


class Reference:
    """dalle-mini's DalleBart (src/dalle_mini/model/modeling.py), in float64."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        loaded = load_file(folder / "model.safetensors")
        self.tensors = {name: torch.tensor(value.astype(np.float64)) for name, value in loaded.items()}

    def norm(self, x: torch.Tensor, name: str, layer: int | None = None) -> torch.Tensor:
        scale, bias = (self.tensors.get(f"{name}.{kind}") for kind in ("scale", "bias"))
        assert bias is not None
        scale, bias = scale if scale is None or layer is None else scale[layer], bias if layer is None else bias[layer]
        return layer_norm(x, x.shape[-1:], scale, bias, 1e-5)

    def attention(self, x: Any, states: Any, mask: Any, name: str, layer: int, heads: int) -> torch.Tensor:
        def project(x: torch.Tensor, part: str) -> torch.Tensor:
            y = x @ self.tensors[f"{name}.{part}_proj.kernel"][layer]
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        q, k, v = project(x, "q"), project(states, "k"), project(states, "v")
        scores = q / q.shape[-1] ** 0.5 @ k.mT
        weights = torch.softmax(torch.where(mask[:, None], scores, -torch.inf), -1).nan_to_num()
        return (weights @ v).transpose(1, 2).flatten(2) @ self.tensors[f"{name}.out_proj.kernel"][layer]

    def side(self, side: str, ids: np.ndarray, mask: Any, encoded: Any = None, other: Any = None) -> torch.Tensor:
        here, own = f"model.{side}", f"model.{side}.layers.FlaxBart{side.title()}Layers"
        heads, count = self.config[f"{side}_attention_heads"], self.config[f"{side}_layers"]
        x = self.tensors[f"{here}.embed_tokens.embedding"][torch.tensor(ids).long()]
        if self.config["scale_embedding"]:
            x = x * self.config["d_model"] ** 0.5
        x = x + self.tensors[f"{here}.embed_positions.embedding"][: ids.shape[1]]
        x = self.norm(x, f"{here}.layernorm_embedding")
        for i in range(count):
            y = self.norm(x, f"{own}.LayerNorm_0", i)
            y = self.attention(y, y, mask, f"{own}.FlaxBartAttention_0", i, heads)
            x = x + self.norm(y, f"{own}.LayerNorm_1", i)
            if encoded is not None:
                y = self.norm(x, f"{own}.LayerNorm_2", i)
                y = self.attention(y, encoded, other, f"{own}.FlaxBartAttention_1", i, heads)
                x = x + self.norm(y, f"{own}.LayerNorm_3", i)
            y = self.norm(x, f"{own}.GLU_0.LayerNorm_0", i)
            act = {"gelu": gelu, "relu": torch.relu}[self.config["activation_function"]]
            y = act(y @ self.tensors[f"{own}.GLU_0.Dense_0.kernel"][i]) * (
                y @ self.tensors[f"{own}.GLU_0.Dense_1.kernel"][i]
            )
            x = x + self.norm(y, f"{own}.GLU_0.LayerNorm_1", i) @ self.tensors[f"{own}.GLU_0.Dense_2.kernel"][i]
        return self.norm(x, f"{here}.final_ln")

    def encode(self, source: Any) -> torch.Tensor:
        real = torch.tensor(source[1] != 0)
        return self.side("encoder", source[0], real[:, None].expand(-1, real.shape[1], -1))

    def logits(self, ids: np.ndarray, encoded: torch.Tensor, source: Any) -> torch.Tensor:
        rows, length = ids.shape
        causal = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, -1, -1)
        real = torch.tensor(source[1] != 0)[:, None].expand(-1, length, -1)
        hidden = self.side("decoder", ids, causal, encoded, real)
        return hidden @ self.tensors["lm_head.kernel"]

    def greedy(self, source: Any, length: int, codes: int, guide: Any = None, scale: float = 1.0) -> np.ndarray:
        """int64 [rows, length]: the likeliest of the first `codes` codes, one after the other.

        guide: the source of the blank prompt; logits are then b + scale · (a − b).
        """
        start = self.config["decoder_start_token_id"]
        written = np.full((len(source[0]), 1), start)
        sides = [(source, self.encode(source))] + ([] if guide is None else [(guide, self.encode(guide))])
        for _ in range(length):
            a, *b = (self.logits(written, encoded, each)[:, -1, :codes] for each, encoded in sides)
            best = (b[0] + scale * (a - b[0]) if b else a).argmax(-1, keepdim=True)
            written = np.concatenate([written, best.numpy()], axis=1)
        return written[:, 1:]
