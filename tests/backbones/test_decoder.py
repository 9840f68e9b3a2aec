"""Decoders beyond plain parity (which `test_parity.py` checks): caches, packing, dropout, rope, refusals, files."""

import copy
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones import reading
from instructrec_jax.backbones.folder import FAMILIES, declared_head, read_config, read_pooling
from instructrec_jax.backbones.layers import RMSNorm, StackOptions, dropout_keys
from instructrec_jax.backbones.reading import build_backbone, load_backbone
from instructrec_jax.backbones.tensor_names import TensorFiles, abstract_module, read_slice, sites_of, to_file
from instructrec_jax.backbones.writing import save_pretrained

BASE = dict(vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
DECODER = BASE | dict(num_key_value_heads=2, max_position_embeddings=48)
GEMMA = DECODER | dict(head_dim=6, query_pre_attn_scalar=20, sliding_window=4)
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=48),
    "llama": transformers.LlamaConfig(**DECODER | dict(num_key_value_heads=1)),
    "mistral": transformers.MistralConfig(**DECODER, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": transformers.Qwen3Config(**DECODER, head_dim=10),
    "gemma2": transformers.Gemma2Config(**GEMMA),
    "gemma3_text": transformers.Gemma3TextConfig(**GEMMA, sliding_window_pattern=2),
}
LM_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
every_family = pytest.mark.parametrize("model_type", CONFIGS)


@functools.cache
def network(model_type: str, **options):
    """A network with random weights: norms and biases too, so that none of them is the identity."""
    return build(CONFIGS[model_type], **options)


def build(config, **options):
    rng = np.random.default_rng(1)
    module = shapes(config, **options)

    def draw(path, variable):
        center = 1.0 if path[-1] == "scale" else 0.0
        return variable.replace(jnp.asarray(center + 0.25 * rng.normal(size=variable.shape), jnp.float32))

    nnx.update(module, nnx.from_flat_state([(path, draw(path, v)) for path, v in nnx.to_flat_state(nnx.state(module))]))
    return module


def shapes(config, **options):
    return abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key), **options))


def texts(lengths: list[int]) -> dict[str, np.ndarray]:
    """Random texts, one a row, padded to the longest."""
    rows, length = len(lengths), max(lengths)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    real = place < np.array(lengths)[:, None]
    tokens = np.random.default_rng(0).integers(1, 61, (rows, length), dtype=np.int32)
    return {
        "tokens": np.where(real, tokens, 0),
        "segment_ids": real.astype(np.int32),
        "positions": np.where(real, place, 0),
        "token_types": np.zeros_like(place),
    }


@nnx.jit
def run(module, batch, cache=None, dropout=None):
    inputs = (batch["tokens"], batch["segment_ids"], batch["positions"], batch["token_types"])
    if cache is None:
        return module(*inputs, dropout=dropout)
    return module(*inputs, dropout=dropout, cache=cache)


def pick(batch: dict, rows: np.ndarray, places: np.ndarray) -> dict:
    return {name: value[rows[:, None], places] for name, value in batch.items()}


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize(("model_type", "train_last"), [*((name, None) for name in CONFIGS), ("qwen2", 1)])
def test_prefill_and_single_tokens_equal_the_full_pass(model_type, train_last):
    """Ragged, right-padded prompts; then each row continues at its own position, one token at a time."""
    module = network(model_type, stack=StackOptions(train_last=train_last))
    prompts, steps = np.array([7, 1, 4]), 5
    batch = texts(list(prompts + steps))
    full = np.asarray(run(module, batch))
    rows, width = np.arange(3), prompts.max()

    prompt = {name: np.where(np.arange(width) < prompts[:, None], v[:, :width], 0) for name, v in batch.items()}
    hidden, cache = run(module, prompt, module.empty_cache(3, width + steps))
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(hidden[row, :length], full[row, :length], atol=2e-5)
    for step in range(steps):
        hidden, cache = run(module, pick(batch, rows, (prompts + step)[:, None]), cache)
        np.testing.assert_allclose(hidden[:, 0], full[rows, prompts + step], atol=2e-5)
    assert int(cache["index"]) == width + steps


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma3_text"])
def test_packed_prompts_in_the_cache(model_type):
    """Two prompts share a row, read in two calls; then both continue by one token per call."""
    module = network(model_type)
    batch = texts([9, 8])
    full = np.asarray(run(module, batch))
    row = {name: np.concatenate([v[0, :6], v[1, :4]])[None] for name, v in batch.items()}
    row["segment_ids"] = np.array([[1] * 6 + [2] * 4], np.int32)
    cache = module.empty_cache(1, 20)
    first, cache = run(module, {name: v[:, :5] for name, v in row.items()}, cache)
    second, cache = run(module, {name: v[:, 5:] for name, v in row.items()}, cache)
    hidden = np.concatenate([first, second], axis=1)[0]
    np.testing.assert_allclose(hidden, np.concatenate([full[0, :6], full[1, :4]]), atol=2e-5)
    for step in range(3):
        two = {name: np.stack([v[0, 6 + step], v[1, 4 + step]])[None] for name, v in batch.items()}
        hidden, cache = run(module, two | {"segment_ids": np.array([[1, 2]], np.int32)}, cache)
        np.testing.assert_allclose(hidden[0], [full[0, 6 + step], full[1, 4 + step]], atol=2e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_cache_that_is_too_small(model_type):
    module, batch = network(model_type), texts([5])
    inputs = tuple(batch.values())
    with pytest.raises(ValueError, match="5 .*cache.* 4 .* 0 "):
        module(*inputs, cache=module.empty_cache(1, 4))
    _, cache = module(*inputs, cache=module.empty_cache(1, 8))
    with pytest.raises(ValueError, match="5 .*cache.* 8 .* 5 "):
        module(*inputs, cache=cache)
    assert np.isnan(run(module, batch, cache)[0]).all()  # the index is a tracer there


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_too_long_an_input(model_type):
    module, batch = network(model_type), texts([49, 48])
    inputs = tuple(batch.values())
    for options in ({}, {"cache": module.empty_cache(2, 49)}):
        with pytest.raises(ValueError, match="49 .*48"):
            module(*inputs, **options)
    finite = np.isfinite(run(module, batch)).all(-1)
    assert finite[0, :48].all() and not finite[0, 48] and finite[1, :48].all()


def test_the_cache_has_the_dtype_of_the_activations():
    module = network("qwen2", dtype=jnp.bfloat16)
    hidden, cache = run(module, texts([3]), module.empty_cache(1, 4))
    assert {x.dtype for x in jax.tree.leaves(cache["layers"])} == {jnp.dtype(jnp.bfloat16)}
    assert hidden.dtype == jnp.bfloat16


# ---------------------------------------------------------------- packing and dropout


@pytest.mark.parametrize("model_type", ["gpt2", "mistral", "gemma3_text"])
def test_packed_rows_equal_unpacked_ones_under_dropout(model_type):
    config = copy.deepcopy(CONFIGS[model_type])
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop") if model_type == "gpt2" else ("attention_dropout",):
        setattr(config, name, 0.3)
    module = build(config)
    batch = texts([7, 5])
    real = batch["segment_ids"] != 0
    numbers = np.array([[3], [8]]) * real
    one_row = {name: v[real][None] for name, v in batch.items()} | {"segment_ids": np.array([[1] * 7 + [2] * 5])}
    seed = jnp.uint32(5)
    apart = run(module, batch, dropout=dropout_keys(seed, numbers, batch["positions"]))
    packed = run(module, one_row, dropout=dropout_keys(seed, numbers[real][None], one_row["positions"]))
    np.testing.assert_allclose(packed[0], np.asarray(apart)[real], atol=2e-5)
    assert np.abs(np.asarray(apart) - np.asarray(run(module, batch)))[real].max() > 0.01


def test_each_dropout_rate_of_gpt2_is_used():
    batch = texts([6])
    keys = dropout_keys(jnp.uint32(5), batch["segment_ids"], batch["positions"])
    outputs = []
    for on in ("attn_pdrop", "resid_pdrop", "embd_pdrop", None):
        rates = {name: 0.3 * (name == on) for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop")}
        config = transformers.GPT2Config(**CONFIGS["gpt2"].to_diff_dict() | rates | {"n_layer": 1})
        outputs.append(np.asarray(run(build(config), batch, dropout=keys)))
    for i, one in enumerate(outputs):
        assert all(np.abs(one - other).max() > 0.01 for other in outputs[:i])


# ---------------------------------------------------------------- rotary positions

YARN = dict(factor=4.0, original_max_position_embeddings=64)


# ---------------------------------------------------------------- what is refused

LONGROPE = dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, factor=2.0)
SLIDING = ["sliding_attention"] * 3


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("llama", dict(hidden_act="laplace"), "'laplace'"),
        ("llama", dict(is_causal=False), "is_causal=False"),
        ("llama", dict(rope_parameters=LONGROPE | dict(rope_theta=1e4)), "'longrope'"),
        ("llama", dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), "partial_rotary_factor"),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4)), "factor"),
        ("llama", dict(num_key_value_heads=3), "4 attention heads.* 3"),
        ("llama", dict(layer_types=SLIDING), "layer_types"),
        ("llama", dict(per_layer_config={"1": {"intermediate_size": 20}}), "is_heterogeneous"),
        ("mistral", dict(layer_types=["full_attention"] * 3), "'ministral'"),  # by AutoConfig
        ("mistral", dict(sliding_window=0), "sliding_window.* 0"),
        ("qwen2", dict(use_sliding_window=False, layer_types=SLIDING), "sliding_window.* None"),
        ("qwen2", dict(use_mrope=True), "use_mrope=True"),
        ("qwen3", dict(head_dim=3), r"head_dim.*3"),
        ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        ("gemma2", dict(hidden_activation="laplace"), "'laplace'"),
        ("gemma3_text", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        ("gemma3_text", dict(attn_logit_softcapping=20.0), "attn_logit_softcapping=20.0"),
        (
            "gemma3_text",
            dict(rope_parameters={"full_attention": dict(rope_type="yarn", rope_theta=1e4, truncate=False, **YARN)}),
            "truncate.*yarn.*full_attention",
        ),
        ("gpt2", dict(add_cross_attention=True), "add_cross_attention=True"),
        ("gpt2", dict(activation_function="laplace"), "'laplace'"),
        ("gpt2", dict(n_head=5), "32.* 5"),
    ],
)
def test_refused_by_name(tmp_path, model_type, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[model_type].to_dict() | fields))
    with pytest.raises(ValueError, match=message):
        shapes(read_config(tmp_path))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gemma3n", "phi3"])
def test_relatives_that_are_not_implemented(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"'{model_type}'.*gemma3_text.*qwen3"):
        read_config(tmp_path)


def test_dynamic_rope_is_refused_beyond_where_it_changes():
    config = transformers.LlamaConfig(**DECODER, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4))
    module = build(config)
    assert module.max_length == 48
    with pytest.raises(ValueError, match="49 tokens"):
        module(*texts([49]).values())


# ---------------------------------------------------------------- files


def edited(folder: Path, out: Path, tensors) -> Path:
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors(load_file(folder / "model.safetensors")), out / "model.safetensors", metadata={"format": "pt"})
    return out


def lm_head(folder: Path):
    config = read_config(folder)
    return reading.load_head(
        folder,
        "lm",
        lambda key: build_head(config, "lm", config.vocab_size, rngs=nnx.Rngs(params=key)),
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize(
    ("model_type", "prefix", "table"),
    [("llama", "model.", "embed_tokens.weight"), ("gpt2", "transformer.", "wte.weight")],
)
@pytest.mark.parametrize("bare", [False, True])
def test_a_second_copy_of_a_tied_table(make_checkpoint, tmp_path, model_type, prefix, table, bare):
    """Equal: fine. Different: it would be lost, so it is refused. Old GPT-2 files have names without a prefix."""
    folder = make_checkpoint(model_type, LM_CLASSES[model_type].removeprefix("Llama").removeprefix("GPT2"))
    if model_type == "llama":
        folder = make_checkpoint("llama", "ForCausalLM", tie_word_embeddings=True)

    def copy(factor: float):
        def change(weights):
            weights = {n.removeprefix(prefix) if bare else n: t for n, t in weights.items()}
            return weights | {"lm_head.weight": weights[table if bare else prefix + table] * np.float32(factor)}

        return change

    head, report = lm_head(edited(folder, tmp_path / "same", copy(1.0)))
    assert head.table is None and not report.used and not report.initialized
    assert load_backbone(tmp_path / "same", rngs=nnx.Rngs(0)).report.unused == ("lm_head.weight",)
    with pytest.raises(ValueError, match="lm_head.weight.*tie_word_embeddings"):
        lm_head(edited(folder, tmp_path / "other", copy(1.5)))


def test_a_language_model_without_its_output_matrix(make_checkpoint, tmp_path):
    folder = make_checkpoint("qwen2", "ForCausalLM")
    lacking = edited(folder, tmp_path, lambda weights: {n: t for n, t in weights.items() if n != "lm_head.weight"})
    with pytest.raises(ValueError, match="lm_head.weight.*tie_word_embeddings"):
        lm_head(lacking)
    bare = make_checkpoint("qwen2")  # promises no head: a new one is what is asked for
    assert lm_head(bare)[1].initialized == ("table",)


@every_family
def test_transformers_opens_what_we_write(tmp_path, model_type):
    """Fresh networks with each kind of head, in several files: the right class, no tensor missing or left over."""
    config, module = CONFIGS[model_type], network(model_type)
    for kind in FAMILIES[model_type].heads:
        outputs = config.vocab_size if kind == "lm" else config.num_labels
        head = build_head(config, kind, outputs, rngs=nnx.Rngs(2))
        save_pretrained(tmp_path / kind, module, config, head=head, head_kind=kind, max_shard_bytes=30_000)
        assert len(list((tmp_path / kind).glob("*.safetensors"))) > 1
        assert declared_head(read_config(tmp_path / kind)) == kind
        name = read_config(tmp_path / kind).architectures[0]
        assert kind != "lm" or name == LM_CLASSES[model_type]
        model, info = getattr(transformers, name).from_pretrained(tmp_path / kind, output_loading_info=True)
        assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    save_pretrained(tmp_path / "bare", module, config)
    assert read_config(tmp_path / "bare").architectures == [FAMILIES[model_type].base_class]
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert type(model).__name__ == FAMILIES[model_type].base_class
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert read_pooling(tmp_path / "bare").mode == "lasttoken"


def test_sequence_heads_have_no_bias():
    head = build_head(CONFIGS["qwen2"], "sequence", 5, rngs=nnx.Rngs(0))
    assert head.output.bias is None and head.output.kernel.shape == (32, 5)


def test_gpt2_projection_is_one_parameter_read_slice_by_slice(make_checkpoint):
    folder = make_checkpoint("gpt2")
    kernel = load_backbone(folder, rngs=nnx.Rngs(0)).module.layers.block0.qkv.kernel
    assert kernel.shape == (2, 32, 3, 32)
    with TensorFiles(folder) as files:
        name = "h.1.attn.c_attn.weight"
        stored = files.read(name)
        np.testing.assert_array_equal(kernel[1].reshape(32, 96), stored)
        for index in (np.s_[4:9, 1:3, 5:6], np.s_[:, 0:1, 16:32], np.s_[31:, :, :]):
            index = tuple(slice(*i.indices(n)) for i, n in zip(index, (32, 3, 32), strict=True))
            part = read_slice(files, name, "split", (32, 3, 32), index)
            np.testing.assert_array_equal(part, stored.reshape(32, 3, 32)[index])
        np.testing.assert_array_equal(to_file("split", np.asarray(kernel[1])), stored)


def test_sharding_axes():
    axes = {site.rule_path: site.axes for site in sites_of(shapes(CONFIGS["gemma3_text"]))}
    attention, layer = "layers.{layer}.attention", "layers.{layer}"
    assert axes["word_embeddings.table"] == ("vocab", "embed")
    for name in ("query", "key", "value"):
        assert axes[f"{attention}.{name}.kernel"] == ("layers", "embed", "heads")
    assert axes[f"{attention}.output.kernel"] == ("layers", "heads", "embed")
    assert axes[f"{attention}.query_norm.scale"] == ("layers", None)
    assert axes[f"{layer}.mlp_gate.kernel"] == axes[f"{layer}.mlp_in.kernel"] == ("layers", "embed", "mlp")
    assert axes[f"{layer}.mlp_out.kernel"] == ("layers", "mlp", "embed")


def test_layers_of_one_kind_share_a_body():
    config = transformers.Gemma3TextConfig(**GEMMA | dict(num_hidden_layers=12), sliding_window_pattern=6)
    groups = shapes(config).layers.groups
    assert sum(len(group) for group in groups) == 6
    config = transformers.LlamaConfig(**DECODER | dict(num_hidden_layers=12))
    assert sum(len(group) for group in shapes(config).layers.groups) == 1


# ---------------------------------------------------------------- precision


def test_rms_norm_is_computed_in_fp32():
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32) * 300
    x = jnp.asarray(x, jnp.bfloat16)
    norm = RMSNorm(64, eps=1e-6, offset=1.0, dtype=jnp.bfloat16)
    norm.scale[...] = jnp.linspace(-0.5, 0.5, 64)
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-6) * (1 + np.linspace(-0.5, 0.5, 64))
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), exact, rtol=2**-8)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_gemma_rounds_the_embedding_scale_as_pytorch_does(make_checkpoint, model_type):
    """In bf16 √32 becomes 5.65625. All that follows is switched off: a huge eps makes the last norm linear."""
    folder = make_checkpoint(model_type, rms_norm_eps=1e6, dtype=torch.bfloat16)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    module = load_backbone(folder, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)).module
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    for block in module.layers.blocks:
        layer = getattr(module.layers, block.name)
        layer.attention.output.kernel[...] *= 0
        layer.mlp_out.kernel[...] *= 0
    batch = texts([40])
    expected = model(torch.tensor(batch["tokens"]).long()).last_hidden_state.detach().float().numpy()
    np.testing.assert_array_equal(np.asarray(run(module, batch), np.float32), expected)


# ---------------------------------------------------------------- published layouts

# The fields of the config.json of google/gemma-3-1b-it and of google/gemma-3-270m-it, in small.
GEMMA3_SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=6,
    query_pre_attn_scalar=24,
    sliding_window=5,
    max_position_embeddings=64,
)
GEMMA3_SHARED = dict(
    architectures=["Gemma3ForCausalLM"],
    attention_bias=False,
    attention_dropout=0.0,
    attn_logit_softcapping=None,
    bos_token_id=2,
    eos_token_id=[1, 106],
    final_logit_softcapping=None,
    hidden_activation="gelu_pytorch_tanh",
    initializer_range=0.02,
    model_type="gemma3_text",
    pad_token_id=0,
    rms_norm_eps=1e-06,
    rope_local_base_freq=100,
    rope_scaling=None,
    rope_theta=1000,
    torch_dtype="float32",
    use_cache=True,
)
LAYER_TYPES = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
GEMMA3_LAYOUTS = {
    "1b": {"cache_implementation": "hybrid", "sliding_window_pattern": 6, "transformers_version": "4.50.0.dev0"},
    "270m": {
        "_sliding_window_pattern": 6,
        "layer_types": LAYER_TYPES,
        "use_bidirectional_attention": False,
        "transformers_version": "4.55.0.dev0",
    },
    "new keys": {
        "layer_types": LAYER_TYPES,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}


@pytest.mark.parametrize("layout", GEMMA3_LAYOUTS)
def test_gemma3_as_it_is_published(layout, tmp_path):
    """Old and new keys of rope and layer types; norms multiply by 1 + weight; logits against PyTorch."""
    fields = GEMMA3_SHARED | GEMMA3_SIZES | GEMMA3_LAYOUTS[layout]
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in fields.items() if v is not None or k[-1] == "g"})
    )
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)  # norms too
    save_file(
        {name: value.numpy() for name, value in theirs.state_dict().items() if name != "lm_head.weight"},
        tmp_path / "model.safetensors",
    )
    loaded = load_backbone(tmp_path, rngs=nnx.Rngs(0))
    spec = loaded.module.spec
    assert list(spec.layer_types) == LAYER_TYPES and spec.window == 5
    ropes = dict(spec.ropes)
    np.testing.assert_allclose(ropes["full_attention"].frequencies[1], 1000 ** (-2 / 6), rtol=1e-6)
    np.testing.assert_allclose(ropes["sliding_attention"].frequencies[1], 100 ** (-2 / 6), rtol=1e-6)
    batch = texts([20, 9])
    with torch.no_grad():
        mask = torch.tensor(batch["segment_ids"])
        expected = theirs.double().model(torch.tensor(batch["tokens"]).long(), attention_mask=mask)
    real = batch["segment_ids"] != 0
    found = np.asarray(run(loaded.module, batch))
    np.testing.assert_allclose(found[real], expected.last_hidden_state.numpy()[real], atol=1e-4)


def test_pretraining_tp_changes_no_number(tmp_path):
    """Some Llama files say in how many parts the products were computed; the numbers are the same."""
    config = CONFIGS["llama"].to_dict() | {"pretraining_tp": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert reading.input_limit(read_config(tmp_path)) == 48
