"""Tiny networks with LoRA, and their outputs: shared by the tests of LoRA and of PEFT's files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx

VOCABULARY, LABELS, ROWS, LENGTH = 61, 3, 3, 9
BASE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    num_labels=LABELS,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA = BASE | dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**BASE, max_position_embeddings=40),
    # 8 layers: one special, (local, local, global) twice, one left over
    "modernbert": lambda: transformers.ModernBertConfig(
        **BASE | dict(num_hidden_layers=8),
        cls_token_id=1,
        sep_token_id=2,
        local_attention=8,
        max_position_embeddings=64,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=40, num_labels=LABELS, pad_token_id=0
    ),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "bart": lambda: transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    ),
}
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
ONES = np.ones_like(TOKENS)
POSITIONS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)


def our_logits(backbone: Any, head: Any, kind: str | None) -> np.ndarray:
    graphdef, state = nnx.split((backbone, head))
    return np.asarray(jax.jit(lambda state: _logits(*nnx.merge(graphdef, state), kind))(state))


def _logits(backbone: Any, head: Any, kind: str | None) -> Any:
    if kind == "seq2seq":
        encoded = backbone.encode(TOKENS, ONES, POSITIONS)
        return head(backbone, backbone.decode(TOKENS[::-1], ONES, POSITIONS, encoded, ONES))
    hidden = backbone(TOKENS, ONES, POSITIONS, np.zeros_like(TOKENS))
    if kind == "sequence":
        return head(backbone, hidden, ONES, 1)[:, 0]
    if kind == "token":
        return head(hidden)
    return hidden if kind is None else head(backbone, hidden)


def trained(backbone: Any, seed: int = 5) -> None:
    """Gives b values, as training would."""
    rng = np.random.default_rng(seed)
    for keys, variable in nnx.to_flat_state(nnx.state(backbone)):
        if keys[-1] == "b":
            owner = backbone
            for key in keys:
                owner = getattr(owner, key)
            owner[...] = jnp.asarray(rng.normal(size=variable.shape) * 0.2, jnp.float32)
