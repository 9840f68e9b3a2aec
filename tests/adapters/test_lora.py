"""LoRA against PEFT in PyTorch and NumPy: the same places, the same numbers. (Files are tested in test_peft.py.)"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from lora_networks import BASE, CONFIGS, ONES, POSITIONS, ROWS, TOKENS, VOCABULARY, our_logits, trained
from tiny_sounds import SIZES as SOUND_SIZES

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.lora import Lora, add_lora, is_lora, merge_lora, places
from instructrec_jax.adapters.quantized import Format, quantize_backbone
from instructrec_jax.backbones.folder import FAMILIES
from instructrec_jax.backbones.layers import StackOptions, dropout_keys
from instructrec_jax.backbones.network_config import OWN_TYPES
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.distributed.mesh import make_mesh, parameter_shardings
from instructrec_jax.distributed.mesh_config import MeshConfig


def test_new_lora_changes_no_bit():
    """b starts at zero. Op by op, since two compiled programs round differently, with LoRA or without."""
    config = CONFIGS["bert"]()
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    with jax.disable_jit():
        before = our_logits(backbone, None, None)
        add_lora(backbone, config, LoraConfig(rank=4), nnx.Rngs(1))
        np.testing.assert_array_equal(our_logits(backbone, None, None), before)


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
IMAGE = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
)
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, projection_size=32)
PIXELS: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=24, patch_size=6
)
IMAGES: dict[str, Any] = {"paligemma": dict(projection_dim=32), "gemma3": dict(mm_tokens_per_image=4)}
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
    "whisper": SOUND_SIZES,
    **{name: IMAGE for name in ("vit", "clip_vision_model", "siglip_vision_model")},
    **{name: IMAGE | dict(mlp_ratio=2) for name in ("dinov2", "dinov2_with_registers")},
    **{name: dict(text_config=TEXT, vision_config=IMAGE) for name in ("clip", "siglip")},
    **{
        name: dict(text_config=SMALL | dict(model_type=text, vocab_size=61, pad_token_id=0), vision_config=vision)
        for name, text, vision in (
            ("llava", "qwen2", PIXELS | dict(model_type="clip_vision_model")),
            ("paligemma", "gemma", PIXELS | dict(model_type="siglip_vision_model", vision_use_head=False)),
            ("gemma3", "gemma3_text", PIXELS | dict(model_type="siglip_vision_model", vision_use_head=False)),
        )
    },
    **{name: dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4) for name in ("t5", "mt5")},
}


@pytest.mark.parametrize("model_type", sorted({*FAMILIES} - {*OWN_TYPES}))
def test_all_linear_means_every_linear_module_of_every_family(model_type):
    """So the table of a family misses none, and HuggingFace's names are right."""
    sizes = SIZES.get(model_type, SMALL) | IMAGES.get(model_type, {})
    words = {} if FAMILIES[model_type].kind.startswith("image") else dict(vocab_size=VOCABULARY, pad_token_id=0)
    config = transformers.AutoConfig.for_model(model_type, **sizes, **words)
    backbone = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    names = add_lora(backbone, config, LoraConfig(rank=2), nnx.Rngs(0))
    with torch.device("meta"):
        # AutoModel does not know SigLIP's text network
        alone = {"siglip_text_model": transformers.SiglipTextModel}.get(model_type)
        model = transformers.AutoModel.from_config(config) if alone is None else alone(config)
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
    quantize_backbone(backbone, Format("nf4"))
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
