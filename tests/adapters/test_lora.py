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
from instructrec_jax.adapters.lora import Lora, LoraConfig, add_lora, is_lora, merge_lora, places
from instructrec_jax.adapters.peft import read_peft, write_peft
from instructrec_jax.adapters.quantized import quantize_backbone
from instructrec_jax.backbones.folder import FAMILIES, find_family
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
    """Values less regular than an initialization's: a zero or a swapped matrix would show."""
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
        assert not report.initialized
    return loaded.module, head, loaded.config


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
    ("bart", "seq2seq", ["all-linear"]),
    ("t5", "seq2seq", ["decoder.*EncDecAttention.[kv]"]),
]


@pytest.mark.parametrize(("model_type", "kind", "targets"), FORMATS, ids=str)
def test_peft_opens_what_is_written_with_the_same_logits(checkpoint, tmp_path, model_type, kind, targets):
    base = checkpoint(model_type, kind)
    backbone, head, config = load(base, kind)
    before = our_logits(backbone, head, kind)
    lora = LoraConfig(rank=4, alpha=6, targets=targets, rslora=model_type == "llama")
    names = add_lora(backbone, config, lora, nnx.Rngs(1))
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


def test_new_lora_changes_no_bit(checkpoint):
    """b starts at zero. Op by op, since two compiled programs round differently, with LoRA or without."""
    backbone, _, config = load(checkpoint("bert", None), None)
    with jax.disable_jit():
        before = our_logits(backbone, None, None)
        add_lora(backbone, config, LoraConfig(rank=4), nnx.Rngs(1))
        np.testing.assert_array_equal(our_logits(backbone, None, None), before)


def prefix_of(config: Any) -> str:
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
    ],
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
    # of ModernBERT's head PEFT saved the last layer alone, we write all of it
    assert {name for name in second.keys() - first.keys() if ".head." not in name} == set()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    again = peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(tmp_path / "base"), tmp_path / "again")
    np.testing.assert_allclose(their_logits(again, kind), theirs, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- pooler saved whole, refusals


def test_a_pooler_that_the_base_lacks_goes_along_whole(checkpoint, tmp_path):
    base = checkpoint("bert", "sequence")
    backbone, head, config = load(base, "sequence")
    lora = LoraConfig(rank=4)
    add_lora(backbone, config, lora, nnx.Rngs(1))
    trained(backbone)
    backbone.pooler.kernel[...] = backbone.pooler.kernel[...][::-1]  # other values than the base has
    backbone.pooler.bias[...] = backbone.pooler.bias[...] + 1
    write_peft(tmp_path, backbone, config, lora, str(base), "SEQ_CLS", head, "sequence", saved=["pooler.dense"])
    model = peft.PeftModel.from_pretrained(AUTO["sequence"][0].from_pretrained(base), tmp_path)
    ours = our_logits(backbone, head, "sequence")
    np.testing.assert_allclose(ours, their_logits(model, "sequence"), atol=1e-4, rtol=0)
    fresh, fresh_head, _ = load(base, "sequence")
    read_peft(tmp_path, fresh, config, fresh_head, "sequence")
    np.testing.assert_allclose(our_logits(fresh, fresh_head, "sequence"), ours, atol=1e-5, rtol=0)


@pytest.fixture
def adapter(checkpoint, tmp_path) -> Any:
    """(folder of a written adapter for a bare BERT, load a fresh BERT and read it)"""
    backbone, _, config = load(checkpoint("bert", None), None)
    lora = LoraConfig(rank=4, targets=["query"])
    add_lora(backbone, config, lora, nnx.Rngs(1))
    write_peft(tmp_path, backbone, config, lora, "base", None)

    def read() -> Any:
        fresh, _, _ = load(checkpoint("bert", None), None)
        return read_peft(tmp_path, fresh, config)

    read()  # it is fine so far
    return tmp_path, read


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("use_dora", True, "use_dora=True"),
        ("bias", "lora_only", "bias='lora_only'"),
        ("lora_bias", True, "lora_bias=True"),
        ("layer_replication", [[0, 2]], "layer_replication"),
        ("trainable_token_indices", [1], "trainable_token_indices"),
        ("a_flag_of_next_year", True, "a_flag_of_next_year=True"),
        ("init_lora_weights", "pissa", "init_lora_weights='pissa'"),
        ("peft_type", "IA3", "peft_type.*'IA3'"),
        ("rank_pattern", {"layer.0.attention.self.query": 2}, "rank_pattern"),
        ("alpha_pattern", {"layer.1.attention.self.query": 2}, "rank_pattern"),
        ("r", 5, r"lora_A.weight.*\[4, 32\].*rank 5.*\[5, 32\]"),
        ("target_modules", ["query", "key"], "encoder.layer.0.attention.self.key.lora_A.weight"),
    ],
)
def test_settings_that_would_give_wrong_numbers_are_refused(adapter, setting, value, message):
    folder, read = adapter
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {setting: value}))
    with pytest.raises(ValueError, match=message):
        read()


def test_null_settings_have_pefts_defaults(adapter):
    folder, read = adapter
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": None, "lora_dropout": None}))
    assert (read().alpha, read().dropout) == (8.0, 0.0)


QUERY = "base_model.model.encoder.layer.1.attention.self.query.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY + "B.weight"), "layer.1.attention.self.query.lora_B.weight"),
        (lambda t: (t.pop(QUERY + "A.weight"), t.pop(QUERY + "B.weight")), "encoder.layer.1"),
        (lambda t: t.update({QUERY + "C.weight": t[QUERY + "A.weight"]}), "lora_C"),
        (
            lambda t: t.update({"base_model.model.classifier.weight": np.ones((3, 32), np.float32)}),
            "bert.*classifier.weight",
        ),
        (lambda t: t.update({QUERY + "A.weight": t[QUERY + "A.weight"][:, :16]}), "query.lora_A.weight.*shape"),
        (lambda t: t.update({"other.weight": np.ones(2, np.float32)}), "other.weight.*'base_model.model.'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(adapter, change, message):
    folder, read = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        read()


def test_layer_ranges_and_pickles_are_refused(adapter):
    folder, read = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: t for n, t in tensors.items() if ".layer.0." in n}, folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"layers_to_transform": [0]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="layers_to_transform.*encoder.layer.1"):
        read()
    shutil.move(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin"):
        read()


def test_what_cannot_be_written_is_named(checkpoint, tmp_path):
    backbone, head, config = load(checkpoint("bert", "sequence"), "sequence")
    lora = LoraConfig(rank=2)
    with pytest.raises(ValueError, match="LoRA"):
        write_peft(tmp_path, backbone, config, lora, "base", None)
    add_lora(backbone, config, lora, nnx.Rngs(0))
    with pytest.raises(ValueError, match="'SEQ_CLS'.*'sequence'"):
        write_peft(tmp_path, backbone, config, lora, "base", "SEQ_CLS")
    with pytest.raises(ValueError, match="'CLASSIFY'"):
        write_peft(tmp_path, backbone, config, lora, "base", "CLASSIFY", head, "sequence")
    with pytest.raises(ValueError, match="'lm'"):
        write_peft(tmp_path, backbone, config, lora, "base", "CAUSAL_LM", None, "lm")
    with pytest.raises(ValueError, match="encoder.layer.0.output.dense"):
        name = "encoder.layer.0.output.dense"
        write_peft(tmp_path, backbone, config, lora, "base", "SEQ_CLS", head, "sequence", saved=[name])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query"], {"attention.self.query"}),
        (["output.dense"], {"attention.output.dense", "output.dense"}),
        ([r".*layer\.\d+\.output\.dense"], {"output.dense"}),
        ([r"bert\.encoder.*(key|value)"], {"attention.self.key", "attention.self.value"}),
        (["encoder.layer.0.intermediate.dense", "encoder.layer.1.intermediate.dense"], {"intermediate.dense"}),
    ],
)
def test_targets_mean_what_peft_has_them_mean(targets, expected):
    config = CONFIGS["bert"]()
    backbone = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    names = add_lora(backbone, config, LoraConfig(rank=2, targets=targets), nnx.Rngs(0))
    assert set(names) == {f"encoder.layer.{i}.{name}" for name in expected for i in (0, 1)}
    with torch.device("meta"):
        model = transformers.BertForMaskedLM(config)
    targets = targets[0] if "\\" in targets[0] else targets
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets)).base_model.model
    theirs = {n for n, m in wrapped.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert {f"bert.{name}" for name in names} == theirs


SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_key_value_heads=2, head_dim=8
)
SIZES: dict[str, Any] = {
    "distilbert": dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "bart": dict(
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    ),
    "modernbert": {key: value for key, value in SMALL.items() if "key" not in key and "dim" not in key},
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4),
    **{name: dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4) for name in ("t5", "mt5")},
}


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_all_linear_means_every_linear_module_of_every_family(model_type):
    """So the table of a family misses none, and HuggingFace's names are right."""
    config = transformers.AutoConfig.for_model(model_type, **SIZES.get(model_type, SMALL), vocab_size=VOCABULARY)
    config.pad_token_id = 0
    backbone = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    names = add_lora(backbone, config, LoraConfig(rank=2), nnx.Rngs(0))
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    assert sorted(names) == sorted(name for name, module in model.named_modules() if isinstance(module, linear))


def test_targets_that_mean_nothing_or_half_a_stack_are_named():
    config = CONFIGS["bert"]()

    def add(*targets: str, **options: Any) -> None:
        backbone = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
        add_lora(backbone, config, LoraConfig(**{"rank": 2, "targets": list(targets)} | options), nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"'q_proj'.*all-linear.*encoder.layer.\{layer\}.attention"):
        add("query", "q_proj")
    with pytest.raises(ValueError, match="lora.targets"):
        add()
    with pytest.raises(ValueError, match="encoder.layer.0.attention.self.query.*encoder.layer.1"):
        add("layer.0.attention.self.query")
    with pytest.raises(ValueError, match="'[(]query'"):
        add("(query")
    with pytest.raises(ValueError, match="lora.rank"):
        add("query", rank=0)
    with pytest.raises(ValueError, match="lora.dropout"):
        add("query", dropout=1.0)
    # stored apart, the layer can be meant alone
    backbone = build_backbone(config, stack=StackOptions(train_last=1), rngs=nnx.Rngs(0))
    lora = LoraConfig(rank=2, targets=["layer.1.attention.self.query"])
    assert add_lora(backbone, config, lora, nnx.Rngs(0)) == ["encoder.layer.1.attention.self.query"]
    with pytest.raises(ValueError, match="LoRA"):
        add_lora(backbone, config, lora, nnx.Rngs(0))


# ---------------------------------------------------------------- the arithmetic


def test_initialization_is_pefts():
    """A: kaiming uniform with a = sqrt(5), which is uniform in ± 1 / sqrt(in). B: zero."""
    config = transformers.BertConfig(**BASE | dict(hidden_size=256, num_hidden_layers=3))
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    add_lora(backbone, config, LoraConfig(rank=64, targets=["query"]), nnx.Rngs(1))
    lora = backbone.layers.block0.attention.query.lora
    a, bound = np.asarray(lora.a[...], np.float64), 256**-0.5
    assert a.shape == (3, 256, 64) and lora.b.shape == (3, 64, 256) and not lora.b[...].any()
    assert np.abs(a).max() <= bound
    np.testing.assert_allclose([a.mean(), a.std()], [0, bound / 3**0.5], atol=bound * 0.01)
    assert not np.array_equal(a[0], a[1])


@pytest.mark.parametrize(("model_type", "rslora"), [("modernbert", False), ("gpt2", True)])
def test_merged_kernels_are_w_plus_scale_ab_in_every_layer(model_type, rslora):
    config = CONFIGS[model_type]()
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    plain = {p: np.asarray(v) for p, v in flat(backbone).items()}
    add_lora(backbone, config, LoraConfig(rank=4, alpha=6, rslora=rslora), nnx.Rngs(1))
    trained(backbone)
    before, updates = (
        our_logits(backbone, None, None),
        {p: np.asarray(v, np.float64) for p, v in flat(backbone).items()},
    )
    assert merge_lora(backbone) is backbone
    merged = flat(backbone)
    assert merged.keys() == plain.keys()
    scale = 6 / (2 if rslora else 4)
    for path, value in merged.items():
        expected = plain[path].astype(np.float64)
        if path.endswith("/kernel"):
            a, b = (updates[path.removesuffix("kernel") + f"lora/{m}"] for m in "ab")
            assert np.abs(b).max() > 0
            expected = expected + scale * np.einsum("lir,lr...->li...", a, b)
            np.testing.assert_allclose(value, expected, atol=1e-6, rtol=0, err_msg=path)
        else:
            np.testing.assert_array_equal(value, plain[path], err_msg=path)
    np.testing.assert_allclose(our_logits(backbone, None, None), before, atol=1e-5, rtol=0)


def flat(module: Any) -> dict[str, Any]:
    return {"/".join(map(str, keys)): v[...] for keys, v in nnx.to_flat_state(nnx.state(module))}


def test_dropout_hits_the_input_of_the_update_alone_and_differs_between_modules():
    config = CONFIGS["bert"]()
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    add_lora(backbone, config, LoraConfig(rank=2, dropout=0.25), nnx.Rngs(1))
    sites = [place.linear.lora.site for place in places(backbone, config)]
    assert len(set(sites)) == len(sites) == 7 and min(sites) >= 1 << 16
    # with unit matrices the update is scale · dropout(x) itself
    lora = Lora(jnp.eye(32), jnp.eye(32), axes=("embed", "mlp"), scale=3.0, dropout=0.25, site=sites[0])
    rows, length = 40, 200
    numbers, positions = (np.asarray(x, np.int32) for x in np.meshgrid(range(rows), range(length), indexing="ij"))
    keys = dropout_keys(jnp.uint32(7), numbers, positions)
    out = np.asarray(lora(jnp.ones((rows, length, 32)), keys), np.float64) / lora.scale
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    n = out.size  # 256,000 draws: four standard deviations
    assert abs((out == 0).mean() - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    np.testing.assert_array_equal(lora(jnp.ones((1, 2, 32)), None), np.full((1, 2, 32), lora.scale, np.float32))


def test_dropout_of_a_packed_row_equals_separate_rows():
    config = transformers.BertConfig(**BASE, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    add_lora(backbone, config, LoraConfig(rank=4, dropout=0.5), nnx.Rngs(1))
    trained(backbone)
    lengths = (5, 3, 5)
    segments = np.repeat([1, 2, 3], lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    tokens = TOKENS.reshape(-1)[None, : sum(lengths)]

    def run(*inputs: Any) -> Any:
        graphdef, state = nnx.split(backbone)
        return jax.jit(lambda state, *inputs: with_dropout(nnx.merge(graphdef, state), *inputs))(state, *inputs)

    def with_dropout(network: Any, tokens: Any, segments: Any, positions: Any, numbers: Any) -> Any:
        keys = dropout_keys(jnp.uint32(3), numbers, positions)
        return network(tokens, segments, positions, jnp.zeros_like(tokens), dropout=keys)

    packed = run(tokens, segments, positions, segments)
    for number in (1, 2, 3):
        here = segments[0] == number
        alone = run(tokens[:, here], np.ones_like(tokens[:, here]), positions[:, here], segments[:, here])
        np.testing.assert_allclose(alone[0], packed[0, here], atol=1e-5, rtol=0)
    backbone.layers.block0.attention.query.lora.dropout = 0.0
    assert np.abs(run(tokens, segments, positions, segments) - packed).max() > 1e-2


def test_dropout_of_packed_sources_and_targets_equals_separate_rows():
    """In cross attention the updates of key and value read the encoded tokens, which are not as many."""
    config = CONFIGS["t5"]()
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    add_lora(backbone, config, LoraConfig(rank=4, dropout=0.5, targets=["EncDecAttention.k", "q"]), nnx.Rngs(1))
    trained(backbone)

    def layout(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segments = np.repeat([1, 2], lengths)[None].astype(np.int32)
        positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
        return TOKENS.reshape(-1)[None, : sum(lengths)], segments, positions

    @jax.jit
    def run(source: Any, target: Any, numbers: Any, target_numbers: Any) -> Any:
        keys = dropout_keys(jnp.uint32(3), numbers, source[2])
        target_keys = dropout_keys(jnp.uint32(4), target_numbers, target[2])
        encoded = backbone.encode(*source, dropout=keys)
        return backbone.decode(*target, encoded, source[1], dropout=target_keys)

    source, target = layout((6, 3)), layout((2, 4))
    packed = run(source, target, source[1], target[1])
    for number in (1, 2):
        here, there = source[1][0] == number, target[1][0] == number
        alone = [tuple(x[:, m] for x in text) for text, m in ((source, here), (target, there))]
        numbers = [text[1] for text in alone]
        single = [(text[0], np.ones_like(text[1]), text[2]) for text in alone]
        np.testing.assert_allclose(run(*single, *numbers)[0], packed[0, there], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- stacks, shapes, devices


def test_an_abstract_network_gets_the_same_structure_in_both_ways():
    config, lora = CONFIGS["modernbert"](), LoraConfig(rank=4)

    def build() -> nnx.Module:
        backbone = build_backbone(config, rngs=nnx.Rngs(0))
        add_lora(backbone, config, lora, nnx.Rngs(1))
        return backbone

    real, inside = nnx.split(build()), nnx.split(nnx.eval_shape(build))
    finished = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    add_lora(finished, config, lora, nnx.Rngs(1))
    after = nnx.split(finished)
    assert real[0] == inside[0] == after[0]
    for other in (inside[1], after[1]):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), other) == jax.tree.map(lambda x: (x.shape, x.dtype), real[1])
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(other))


def test_eight_devices_equal_one():
    config = CONFIGS["gpt2"]()
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    quantize_backbone(backbone, "nf4")
    add_lora(backbone, config, LoraConfig(rank=4, dropout=0.1), nnx.Rngs(1))
    trained(backbone)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    graphdef, state = nnx.split(backbone)
    params = nnx.to_pure_dict(state)
    shardings = parameter_shardings(mesh, backbone)
    keys = dropout_keys(jnp.uint32(3), ONES * np.arange(ROWS)[:, None], POSITIONS)

    def gradients(params: Any) -> Any:
        def loss(lora: Any) -> Any:
            network = nnx.merge(graphdef, joined(lora, params))
            # not the sum of squares: behind the last norm it is nearly constant, and its gradients are rounding
            return jnp.sum(jnp.sin(network(TOKENS, ONES, POSITIONS, 0 * TOKENS, dropout=keys)))

        return jax.value_and_grad(loss)(only_lora(params))

    spread = jax.device_put(params, shardings)
    lora = spread["layers"]["block0"]["qkv"]["lora"]
    assert tuple(lora["a"].sharding.spec) == (None, "fsdp", None)
    assert tuple(lora["b"].sharding.spec) == (None, None, None, "tensor")
    one, eight = jax.jit(gradients)(params), jax.jit(gradients)(spread)
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
    for path, gradient in one[1].items():
        np.testing.assert_allclose(gradient, eight[1][path], atol=1e-5 * np.abs(gradient).max(), rtol=0, err_msg=path)


def only_lora(params: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    named = {"/".join(part.key for part in path): value for path, value in leaves}
    return {path: value for path, value in named.items() if is_lora(path)}


def joined(lora: dict[str, Any], params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, v: lora.get("/".join(part.key for part in p), v), params)
