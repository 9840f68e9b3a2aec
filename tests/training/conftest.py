"""Tiny random language models, with dropout, in HuggingFace layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, processors

# Every kind of place that dropout can have; positions from a table, rotary, and by buckets of distance.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", dict(n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "llama": (
        "LlamaForCausalLM",
        dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            attention_dropout=0.1,
        ),
    ),
    "t5": ("T5ForConditionalGeneration", dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
    "bart": (
        "BartForConditionalGeneration",
        dict(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            attention_dropout=0.1,
        ),
    ),
}


@pytest.fixture(scope="session")
def language_models(
    tokenizer: transformers.PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """model_type -> folder."""
    end = tokenizer.sep_token_id
    folders = {}
    for kind, (name, sizes) in NETWORKS.items():
        cls = getattr(transformers, name)
        pairs = name.endswith("ConditionalGeneration")
        ids = dict(vocab_size=len(tokenizer), eos_token_id=end, pad_token_id=0, bos_token_id=2)
        settings = ids | sizes | (dict(decoder_start_token_id=0, forced_eos_token_id=None) if pairs else {})
        torch.manual_seed(0)
        folders[kind] = tmp_path_factory.mktemp(kind)
        cls(cls.config_class(**settings)).save_pretrained(folders[kind])
        core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        single = "$A [SEP]" if pairs else "$A"
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[SEP]", end)])
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
        ).save_pretrained(folders[kind])
    return folders
