"""Tiny random checkpoints of every supported family, written by transformers itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers
from tiny_sounds import SIZES as SOUNDS

BASE = dict(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    num_labels=3,
)
DISTIL = dict(vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48, num_labels=3, max_position_embeddings=40)
MODERN = BASE | dict(
    max_position_embeddings=64,
    local_attention=8,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
DECODER = BASE | dict(num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)
GEMMA = DECODER | dict(head_dim=12, query_pre_attn_scalar=20, sliding_window=7)
T5 = dict(
    vocab_size=61,
    d_model=32,
    d_kv=6,
    d_ff=40,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    relative_attention_num_buckets=10,
    relative_attention_max_distance=17,
    decoder_start_token_id=0,
)
BART = dict(
    vocab_size=61,
    d_model=32,
    max_position_embeddings=40,
    encoder_layers=2,
    encoder_ffn_dim=40,
    encoder_attention_heads=4,
    decoder_layers=3,
    decoder_ffn_dim=24,
    decoder_attention_heads=2,
)
IMAGE = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=17, patch_size=5
)
TEXT = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=36,
    max_position_embeddings=11,
    eos_token_id=60,
)
# what LLaVA and others are made of; the id of an image's tokens is the last one
SIGLIP = IMAGE | dict(model_type="siglip_vision_model", vision_use_head=False)
IN_WORDS = {name: value for name, value in DECODER.items() if name != "num_labels"}
CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "mpnet": "MPNet",
    "modernbert": "ModernBert",
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "t5": "T5",
    "mt5": "MT5",
    "bart": "Bart",
    "vit": "ViT",
    "whisper": "Whisper",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "clip": "CLIP",
    "siglip": "Siglip",
    "clip_text_model": "CLIPText",
    "siglip_text_model": "SiglipText",
    "gemma": "Gemma",
    "llava": "Llava",
    "paligemma": "PaliGemma",
    "gemma3": "Gemma3",
}
IRREGULAR = {"Gemma3TextForCausalLM": "Gemma3ForCausalLM"}  # classes named otherwise than the config's
DEFAULTS = {
    "bert": BASE | dict(max_position_embeddings=40),
    "roberta": BASE | dict(max_position_embeddings=42),
    "xlm-roberta": BASE | dict(max_position_embeddings=42, type_vocab_size=1),
    "distilbert": DISTIL,
    "mpnet": BASE | dict(max_position_embeddings=202),
    "modernbert": MODERN,
    "gpt2": dict(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=3, pad_token_id=0),
    "llama": DECODER,
    "mistral": DECODER | dict(sliding_window=7),
    "qwen2": DECODER,
    "qwen3": DECODER | dict(head_dim=12),
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "vit": IMAGE | dict(num_labels=3),
    "whisper": SOUNDS
    | dict(vocab_size=61, num_labels=3, pad_token_id=2, bos_token_id=2, eos_token_id=2, decoder_start_token_id=3),
    "dinov2": IMAGE | dict(num_labels=3, mlp_ratio=2, layerscale_value=0.3),
    "dinov2_with_registers": IMAGE | dict(num_labels=3, mlp_ratio=2, num_register_tokens=3),
    "clip": dict(text_config=TEXT, vision_config=IMAGE, projection_dim=20),
    "siglip": dict(text_config=TEXT | dict(projection_size=32), vision_config=IMAGE),
    "clip_text_model": TEXT,
    "siglip_text_model": TEXT | dict(projection_size=20),
    "gemma": DECODER | dict(head_dim=12),
    "llava": dict(
        text_config=IN_WORDS | dict(model_type="llama"),
        vision_config=IMAGE | dict(model_type="clip_vision_model", num_hidden_layers=3),
        image_token_index=60,
    ),
    "paligemma": dict(
        text_config=IN_WORDS | dict(model_type="gemma", head_dim=12),
        vision_config=SIGLIP,
        projection_dim=32,
        image_token_index=60,
    ),
    "gemma3": dict(
        text_config=IN_WORDS | dict(model_type="gemma3_text", head_dim=12, query_pre_attn_scalar=20, sliding_window=5),
        vision_config=SIGLIP | dict(image_size=21),
        mm_tokens_per_image=4,
        image_token_index=60,
    ),
}


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """make(model_type, suffix="Model", dtype=torch.float32, shard="50GB", **config) -> folder."""

    def make(
        model_type: str,
        suffix: str = "Model",
        *,
        dtype: Any = torch.float32,
        shard: str = "50GB",
        **config: Any,
    ) -> Path:
        name = CLASSES[model_type]
        torch.manual_seed(0)
        settings = getattr(transformers, f"{name}Config")(**(DEFAULTS[model_type] | config))
        model = getattr(transformers, IRREGULAR.get(f"{name}{suffix}", f"{name}{suffix}"))(settings)
        # larger and less regular than the usual initialization: zero biases and unit norms would hide a
        # swapped tensor
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if hasattr(model, "final_logits_bias"):  # a buffer
                model.final_logits_bias.normal_()
        folder = tmp_path_factory.mktemp(f"{model_type}-{suffix}")
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        return folder

    return make


@pytest.fixture
def exact() -> Iterator[None]:
    """Products of matrices in float32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def t5(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("t5", "ForConditionalGeneration")
