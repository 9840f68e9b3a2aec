"""LoRA against PEFT in PyTorch and NumPy: the same numbers, the same files."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.adapters.lora import LoraConfig, add_lora, is_lora, merge_lora, places
from instructrec_jax.adapters.peft import read_peft, write_peft
from instructrec_jax.adapters.quantized import quantize_backbone
from instructrec_jax.backbones.layers import StackOptions, dropout_keys
from instructrec_jax.backbones.reading import build_backbone, load_backbone, load_head
from instructrec_jax.distributed.mesh import MeshConfig, make_mesh, parameter_shardings

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
AUTO = {
    "sequence": (transformers.AutoModelForSequenceClassification, "SEQ_CLS"),
    "token": (transformers.AutoModelForTokenClassification, "TOKEN_CLS"),
    "mlm": (transformers.AutoModelForMaskedLM, None),
    "lm": (transformers.AutoModelForCausalLM, "CAUSAL_LM"),
    "seq2seq": (transformers.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    None: (transformers.AutoModel, "FEATURE_EXTRACTION"),
}
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
ONES = np.ones_like(TOKENS)
POSITIONS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)


def scatter(module: Any, seed: int) -> None:
    """Values less regular than an initialisation's: a zero or a swapped matrix would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """checkpoint(model_type, kind) -> folder of a tiny random HuggingFace model, made once."""
    made: dict[Any, Path] = {}

    def make(model_type: str, kind: str | None) -> Path:
        if (model_type, kind) not in made:
            torch.manual_seed(0)
            model = AUTO[kind][0].from_config(CONFIGS[model_type]())
            scatter(model, 0)
            folder = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(folder)
            made[model_type, kind] = folder
        return made[model_type, kind]

    return make


def load(folder: Path, kind: str | None, **options: Any) -> tuple[Any, Any, Any]:
    """(backbone, head or None, HuggingFace config)"""
    loaded = load_backbone(folder, rngs=nnx.Rngs(0), **options)
    head = None
    if kind is not None:
        outputs = LABELS if kind in ("sequence", "token") else VOCABULARY
        ours = "lm" if kind == "seq2seq" else kind

        def build(key: jax.Array) -> nnx.Module:
            return build_head(loaded.config, ours, outputs, rngs=nnx.Rngs(params=key))

        head, report = load_head(folder, ours, build, rngs=nnx.Rngs(0))
        assert not report.initialised
    return loaded.module, head, loaded.config


def our_logits(backbone: Any, head: Any, kind: str | None) -> np.ndarray:
    if kind == "seq2seq":
        encoded = backbone.encode(TOKENS, ONES, POSITIONS)
        return np.asarray(head(backbone, backbone.decode(TOKENS[::-1], ONES, POSITIONS, encoded, ONES)))
    hidden = backbone(TOKENS, ONES, POSITIONS, np.zeros_like(TOKENS))
    if kind == "sequence":
        return np.asarray(head(backbone, hidden, ONES, 1)[:, 0])
    if kind == "token":
        return np.asarray(head(hidden))
    return np.asarray(hidden if kind is None else head(backbone, hidden))


def their_logits(model: Any, kind: str | None) -> np.ndarray:
    model.eval()
    inputs = {"input_ids": torch.tensor(TOKENS).long(), "attention_mask": torch.tensor(ONES).long()}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor(TOKENS[::-1].copy()).long()
    with torch.no_grad():
        out = model(**inputs)
    return (out.last_hidden_state if kind is None else out.logits).numpy()


def trained(backbone: Any, seed: int = 5) -> None:
    """Gives b values, as training would."""
    rng = np.random.default_rng(seed)
    for keys, variable in nnx.to_flat_state(nnx.state(backbone)):
        if keys[-1] == "b":
            owner = backbone
            for key in keys:
                owner = getattr(owner, key)
            owner[...] = jnp.asarray(rng.normal(size=variable.shape) * 0.2, jnp.float32)


FORMATS = [
    ("bert", "sequence", ["all-linear"]),
    ("bert", "token", [r".*layer\.\d+\.output\.dense", "query"]),
    ("bert", "mlm", ["attention.self.value"]),
    ("bert", None, ["query"]),
    ("modernbert", "sequence", ["all-linear"]),
    ("gpt2", "lm", ["all-linear"]),
    ("gpt2", "sequence", ["c_attn"]),
    ("llama", "lm", ["all-linear"]),
    ("llama", "sequence", ["q_proj", "v_proj"]),
    ("qwen2", "lm", ["mlp.down_proj"]),
    ("t5", "seq2seq", ["all-linear"]),
    ("t5", "seq2seq", ["decoder.*EncDecAttention.[kv]"]),
]


@pytest.mark.parametrize(("model_type", "kind", "targets"), FORMATS, ids=str)
def test_peft_opens_what_is_written_with_the_same_logits(checkpoint, tmp_path, model_type, kind, targets):
    base = checkpoint(model_type, kind)
    backbone, head, config = load(base, kind)
    before = our_logits(backbone, head, kind)
    lora = LoraConfig(rank=4, alpha=6, targets=targets, rslora=model_type == "llama")
    names = add_lora(backbone, config, lora, nnx.Rngs(1))
    np.testing.assert_array_equal(our_logits(backbone, head, kind), before)  # b is zero: nothing changed yet
    trained(backbone)
    if kind in ("sequence", "token"):
        head.output.kernel[...] = head.output.kernel[...] * 1.5
    ours = our_logits(backbone, head, kind)
    assert np.abs(ours - before).max() > 1e-2
    ours_kind = "lm" if kind == "seq2seq" else kind
    saved_head = head if kind in ("sequence", "token") else None
    write_peft(tmp_path, backbone, config, lora, str(base), AUTO[kind][1], saved_head, ours_kind)
    model = peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(base), tmp_path)
    np.testing.assert_allclose(ours, their_logits(model, kind), atol=1e-4, rtol=0)
    adapted = {n for n, m in model.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert {n.removeprefix(prefix_of(config)) for n in adapted} == set(names)
    # and back again
    fresh, fresh_head, _ = load(base, kind)
    settings = read_peft(tmp_path, fresh, config, fresh_head if saved_head else None, ours_kind)
    assert (settings.rank, settings.alpha, settings.rslora) == (4, 6.0, lora.rslora)
    np.testing.assert_allclose(our_logits(fresh, fresh_head, kind), ours, atol=1e-6, rtol=0)


def prefix_of(config: Any) -> str:
    from instructrec_jax.backbones.folder import find_family

    return find_family(config.model_type).prefix


@pytest.mark.parametrize(
    ("model_type", "kind", "options"),
    [
        ("bert", "sequence", dict(target_modules=["query", "dense"], exclude_modules=["pooler.dense"])),
        ("bert", "sequence", dict(target_modules=".*(key|value)", layers_to_transform=None, use_rslora=True)),
        ("bert", "mlm", dict(target_modules=["query"], layers_to_transform=[0, 1])),
        ("modernbert", "token", dict(target_modules=["Wqkv", "mlp.Wo"], alpha_pattern={"mlp.Wo": 3}, lora_alpha=5)),
        ("gpt2", "lm", dict(target_modules="all-linear", rank_pattern={"c_fc": 2, "mlp.c_proj": 7})),
        ("llama", "lm", dict(target_modules=["q_proj", "up_proj"], init_lora_weights="gaussian")),
        ("t5", "seq2seq", dict(target_modules=["q", "wo"])),
        (None, None, None),
    ][:-1],
    ids=str,
)
def test_reads_what_peft_writes(checkpoint, tmp_path, model_type, kind, options):
    base = checkpoint(model_type, kind)
    model = peft.get_peft_model(
        AUTO[kind][0].from_pretrained(base), peft.LoraConfig(task_type=AUTO[kind][1], r=4, **options)
    )
    scatter(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    # the scattering moved the base as well: its values go with it
    model.unload().save_pretrained(tmp_path / "base")
    theirs = their_logits(
        peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(tmp_path / "base"), tmp_path / "adapter"), kind
    )
    backbone, head, config = load(tmp_path / "base", kind)
    classifies = kind in ("sequence", "token")
    ours_kind = "lm" if kind == "seq2seq" else kind
    settings = read_peft(tmp_path / "adapter", backbone, config, head if classifies else None, ours_kind)
    np.testing.assert_allclose(our_logits(backbone, head, kind), theirs, atol=1e-4, rtol=0)
    # written again, with its patterns of ranks and alphas
    write_peft(
        tmp_path / "again", backbone, config, settings, "base", AUTO[kind][1], head if classifies else None, ours_kind
    )
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    again = peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(tmp_path / "base"), tmp_path / "again")
    np.testing.assert_allclose(their_logits(again, kind), theirs, atol=1e-5, rtol=0)
