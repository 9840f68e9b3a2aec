"""llama.cpp's names and layouts of networks, beside HuggingFace's: one table a network, read in both directions.

Sources: the keys and tensors that llama.cpp's convert_hf_to_gguf.py writes and its llama-arch.cpp reads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from instructrec_jax.backbones.json_fields import Fields

LAYER = "blk.{layer}."
DECODER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    f"{LAYER}attn_norm": "model.layers.{layer}.input_layernorm",
    f"{LAYER}attn_q": "model.layers.{layer}.self_attn.q_proj",
    f"{LAYER}attn_k": "model.layers.{layer}.self_attn.k_proj",
    f"{LAYER}attn_v": "model.layers.{layer}.self_attn.v_proj",
    f"{LAYER}attn_output": "model.layers.{layer}.self_attn.o_proj",
    f"{LAYER}ffn_norm": "model.layers.{layer}.post_attention_layernorm",
    f"{LAYER}ffn_gate": "model.layers.{layer}.mlp.gate_proj",
    f"{LAYER}ffn_up": "model.layers.{layer}.mlp.up_proj",
    f"{LAYER}ffn_down": "model.layers.{layer}.mlp.down_proj",
}
HEAD_NORMS = {
    f"{LAYER}attn_q_norm": "model.layers.{layer}.self_attn.q_norm",
    f"{LAYER}attn_k_norm": "model.layers.{layer}.self_attn.k_norm",
}
GEMMA = DECODER | {
    f"{LAYER}post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    f"{LAYER}ffn_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    f"{LAYER}post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}
GEMMA2 = {own: theirs for own, theirs in GEMMA.items() if own != "output"}  # its table of outputs is that of words
BERT = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    f"{LAYER}attn_q": "encoder.layer.{layer}.attention.self.query",
    f"{LAYER}attn_k": "encoder.layer.{layer}.attention.self.key",
    f"{LAYER}attn_v": "encoder.layer.{layer}.attention.self.value",
    f"{LAYER}attn_output": "encoder.layer.{layer}.attention.output.dense",
    f"{LAYER}attn_output_norm": "encoder.layer.{layer}.attention.output.LayerNorm",
    f"{LAYER}ffn_up": "encoder.layer.{layer}.intermediate.dense",
    f"{LAYER}ffn_down": "encoder.layer.{layer}.output.dense",
    f"{LAYER}layer_output_norm": "encoder.layer.{layer}.output.LayerNorm",
}
# llama.cpp's key (behind "llama.") -> field of config.json; all of them are whole numbers
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
RMS_EPS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's scaling: base frequency / frequency, float32 [head_dim / 2]
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B networks, whose scores are scaled otherwise


@dataclass(frozen=True)
class Architecture:
    """A network under llama.cpp's name.

    Attributes:
        name: llama.cpp's, which its metadata keys begin with.
        model_type: HuggingFace's.
        cls: the class of `transformers`.
        tensors: names without ".weight" and ".bias": llama.cpp's -> HuggingFace's.
        numbers: keys of real numbers -> fields of config.json.
        rotary_neighbors: the rotary pairs of queries and keys are neighbors (in HuggingFace's folders the halves).
        norm_offset: what llama.cpp adds to the scales of norms (HuggingFace's Gemma adds it while computing).
        windows: some layers attend to the last tokens only.
    """

    name: str
    model_type: str
    cls: str
    tensors: Mapping[str, str] = field(default_factory=lambda: DECODER)
    numbers: Mapping[str, str] = field(default_factory=lambda: RMS_EPS)
    rotary_neighbors: bool = False
    norm_offset: float = 0.0
    windows: bool = False

    @property
    def is_decoder(self) -> bool:
        return self.tensors is not BERT

    def to_hf(self, name: str) -> str | None:
        """HuggingFace's name of a tensor of llama.cpp; None: this network has no such tensor."""
        return _translated(name, self.tensors)

    def from_hf(self, name: str) -> str | None:
        """llama.cpp's name of a tensor of a HuggingFace folder; None: it has no such tensor."""
        return _translated(name, {theirs: own for own, theirs in self.tensors.items()})


ARCHITECTURES = {
    "llama": Architecture("llama", "llama", "LlamaForCausalLM", rotary_neighbors=True),
    "mistral": Architecture("llama", "mistral", "MistralForCausalLM", rotary_neighbors=True),
    "qwen2": Architecture("qwen2", "qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", DECODER | HEAD_NORMS),
    "gemma2": Architecture("gemma2", "gemma2", "Gemma2ForCausalLM", GEMMA2, RMS_EPS | CAPS, False, 1.0, True),
    "gemma3_text": Architecture(
        "gemma3", "gemma3_text", "Gemma3ForCausalLM", GEMMA | HEAD_NORMS, RMS_EPS, False, 1.0, True
    ),
    "bert": Architecture("bert", "bert", "BertModel", BERT, {"attention.layer_norm_epsilon": "layer_norm_eps"}),
}
READABLE = {each.name: each for each in reversed(ARCHITECTURES.values())}  # "llama" is read as model_type llama


def _translated(name: str, table: Mapping[str, str]) -> str | None:
    stem, dot, kind = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", stem)
    pattern = stem if number is None else stem.replace(number[0], ".{layer}.", 1)
    if kind not in ("weight", "bias") or pattern not in table:
        return None
    return table[pattern].replace("{layer}", number[1] if number else "") + dot + kind


def heads_of(stem: str, query_heads: int, key_heads: int) -> int | None:
    """The number of rotary heads in a tensor of llama.cpp's name; None: its rows are not rotated."""
    part = stem.split(".")[2:3]
    return {"attn_q": query_heads, "attn_k": key_heads}.get(part[0]) if part else None


def to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [out, ...] of rotary queries or keys: pairs of neighbors -> the two halves of each head."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_neighbors(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `to_halves`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def score_divisor(architecture: Architecture, layers: int, width: int, heads: int, head_dim: int) -> float:
    """Gemma's query_pre_attn_scalar, which llama.cpp knows by the size of the network."""
    return width / heads if LARGEST_GEMMA.get(architecture.name) == layers else head_dim


def needed_integer(fields: Fields, name: str, least: int = 1) -> int:
    value = fields.integer(name, least)
    if value is None:
        fields.refuse(name, "a whole number")
    return value
