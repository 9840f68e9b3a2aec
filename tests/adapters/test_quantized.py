"""Quantized kernels against NumPy in float64, and QLoRA against the same network with the kernels turned back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import BertConfig, GPT2Config, ModernBertConfig

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.lora import add_lora, is_lora, merge_lora
from instructrec_jax.adapters.quantized import NF4, Format, Quantized, decode, encode, linears, quantize_backbone
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.distributed.mesh import make_mesh, parameter_shardings
from instructrec_jax.distributed.mesh_config import MeshConfig

BERT = BertConfig(
    vocab_size=61, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, pad_token_id=0
)
MODERNBERT = ModernBertConfig(
    vocab_size=61,
    hidden_size=48,  # less than a block of 64
    num_hidden_layers=5,
    num_attention_heads=4,
    intermediate_size=80,  # a block and a part of one
    local_attention=8,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
GPT2 = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=2)
TOKENS = np.random.default_rng(0).integers(3, 61, (2, 9)).astype(np.int32)
INPUTS = (TOKENS, np.ones_like(TOKENS), np.broadcast_to(np.arange(9, dtype=np.int32), TOKENS.shape), 0 * TOKENS)


def quantized(config: Any, kind: str | Format, *, rank: int = 0, **options: Any) -> Any:
    backbone = build_backbone(config, rngs=nnx.Rngs(0), **options)
    quantize_backbone(backbone, Format(kind) if isinstance(kind, str) else kind)
    if rank:
        add_lora(backbone, config, LoraConfig(rank=rank), nnx.Rngs(1))
        for number, linear in enumerate(linears(backbone)):
            linear.lora.b[...] = 0.1 * jax.random.normal(jax.random.key(number), linear.lora.b.shape)
    return backbone


def dense(backbone: Any) -> Any:
    """The same network, its LoRA kept, with fp32 kernels in place of codes."""
    for linear in linears(backbone):
        linear.kernel = nnx.Param(linear.kernel.dequantize(), axes=linear.kernel.axes)
    return backbone


def params_of(module: Any) -> tuple[Any, dict[str, Any]]:
    graphdef, state = nnx.split(module)
    return graphdef, {"/".join(map(str, keys)): v[...] for keys, v in nnx.to_flat_state(state)}


def rebuilt(graphdef: Any, params: dict[str, Any]) -> Any:
    flat = [(tuple(path.split("/")), value) for path, value in params.items()]
    tree: dict[str, Any] = {}
    for keys, value in flat:
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return nnx.merge(graphdef, tree)


# ---------------------------------------------------------------- codes and scales


def test_nf4_is_the_table_of_the_paper():
    """Appendix E of Dettmers et al., 2023; the values of bitsandbytes."""
    paper = """-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0"""
    np.testing.assert_array_equal(NF4, np.array([float(x) for x in paper.split(",")], np.float32))


@pytest.mark.parametrize("shape", [(128, 3), (64, 2, 5), (150, 4), (33, 2), (1, 1), (63, 2, 2)])
def test_nf4_takes_the_nearest_value_of_each_block(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[: min(64, shape[0]), ..., 0] = 0  # a block of zeros has no scale to divide by
    codes, scales = encode(Format("nf4"), jnp.asarray(kernel))
    blocks = -(-shape[0] // 64)
    assert codes.dtype == jnp.uint8 and codes.shape == (-(-shape[0] // 2), *shape[1:])
    assert scales.dtype == jnp.float32 and scales.shape == (blocks, *shape[1:])
    actual = np.asarray(decode(Format("nf4"), codes, scales, shape[0]))
    table = NF4.astype(np.float64)
    for column in np.ndindex(*shape[1:]):
        for block in range(blocks):
            here = (slice(64 * block, 64 * block + 64), *column)
            w = kernel[here].astype(np.float64)
            largest = np.abs(w).max()
            assert scales[(block, *column)] == np.float32(largest)
            expected = largest * table[np.abs(w[:, None] - largest * table).argmin(1)]
            np.testing.assert_allclose(actual[here], expected, rtol=1e-6, atol=0)
    # nothing is further off than half the widest gap between neighbors, 0.3038 / 2 of the block's largest weight
    bound = np.repeat(np.asarray(scales), 64, axis=0)[: shape[0]] * (np.diff(table).max() / 2)
    assert (np.abs(actual - kernel) <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("shape", [(128, 3), (64, 2, 5), (33, 2), (1, 1)])
def test_int8_is_off_by_half_a_step_at_most(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[..., 0] *= 1e-3  # each output channel has a scale of its own
    if shape[-1] > 2:
        kernel[..., 2] = 0
    codes, scales = encode(Format("int8"), jnp.asarray(kernel))
    assert codes.dtype == jnp.int8 and codes.shape == shape and scales.shape == (1, *shape[1:])
    step = np.abs(kernel.astype(np.float64)).max(0, keepdims=True) / 127
    np.testing.assert_allclose(scales, step, rtol=1e-6)
    assert np.abs(np.asarray(codes, int)).max() == 127
    actual = np.asarray(decode(Format("int8"), codes, scales, shape[0]), np.float64)
    assert (np.abs(actual - kernel) <= step / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_what_is_on_the_grid_comes_back_and_nan_stays_loud(kind):
    kernel = jax.random.normal(jax.random.key(0), (130, 6))
    once = decode(Format(kind), *encode(Format(kind), kernel), 130)
    np.testing.assert_allclose(decode(Format(kind), *encode(Format(kind), once), 130), once, rtol=1e-6, atol=0)
    broken = decode(Format(kind), *encode(Format(kind), kernel.at[3, 2].set(jnp.nan)), 130)
    assert np.isnan(broken[3, 2])


@pytest.mark.parametrize("group", [32, 64, None])
@pytest.mark.parametrize("shape", [(128, 3), (70, 2, 5), (33, 2)])
def test_int4_is_off_by_half_a_step_of_its_group(shape, group):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[:32, ..., 0] = 0
    format = Format("int4", group)
    codes, scales = encode(format, jnp.asarray(kernel))
    size = group or 64
    assert codes.dtype == jnp.uint8 and codes.shape == (-(-shape[0] // 2), *shape[1:])
    assert scales.shape == (-(-shape[0] // size), *shape[1:])
    blocks = [np.abs(kernel[at : at + size]).max(0) / 7 for at in range(0, shape[0], size)]
    np.testing.assert_allclose(scales, blocks, rtol=1e-6)
    step = np.repeat(np.asarray(scales), size, axis=0)[: shape[0]]
    assert (np.abs(np.asarray(decode(format, codes, scales, shape[0])) - kernel) <= step / 2 * (1 + 1e-5)).all()


def test_settings_that_do_not_exist_are_refused():
    for settings, message in [
        (dict(weights="int2"), "int2"),
        (dict(weights="int8", group=16), "the group is 16"),
        (dict(weights="int8", activations="int4"), "activations 'int4'"),
        (dict(weights="nf4", activations="int8"), "nf4 codes are no integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            Format(**settings)


# ---------------------------------------------------------------- products of integers


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("weights", "group"), [("int8", None), ("int8", 32), ("int4", 64)])
@pytest.mark.parametrize("shape", [(70, 5), (64, 2, 3)])
def test_a_product_of_integers_is_that_of_rounded_tokens_and_codes(shape, weights, group, smooth):
    """In float64, token by token; and its gradient is that of the dequantized kernel."""
    rng = np.random.default_rng(0)
    format = Format(weights, group, "int8", smooth=smooth)
    codes, scales = encode(format, jnp.asarray(rng.normal(size=shape), jnp.float32))
    divisors = rng.uniform(0.5, 2, shape[0]).astype(np.float32) if smooth else None
    axes = ("embed", *(None for _ in shape[2:]), "mlp")
    kernel = Quantized(format, codes, scales, size=shape[0], axes=axes, smooth=divisors)
    x = rng.normal(size=(2, 3, shape[0])).astype(np.float32)
    x[1, 2] = 0
    dense = np.asarray(decode(format, codes, scales, shape[0]), np.float64)
    divided = x / (1 if divisors is None else divisors)
    step = np.maximum(np.abs(divided).max(-1, keepdims=True) / 127, 1e-30).astype(np.float64)
    expected = np.tensordot(np.round(divided / step) * step, dense, axes=1)
    np.testing.assert_allclose(kernel(jnp.asarray(x)), expected, atol=2e-4, rtol=1e-4)
    straight = dense / (1 if divisors is None else divisors.reshape(-1, *(1 for _ in shape[1:])))
    np.testing.assert_allclose(kernel.dequantize(), straight, rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sin(kernel(x)).sum())(jnp.asarray(x))
    back = np.tensordot(np.cos(expected), straight, axes=(list(range(2, expected.ndim)), list(range(1, straight.ndim))))
    np.testing.assert_allclose(gradient, back, atol=1e-3)


def test_nan_in_a_token_stays_loud():
    kernel = Quantized(Format("int8", activations="int8"), *encode(Format("int8"), jnp.eye(4)), size=4, axes=("a", "b"))
    y = np.asarray(kernel(jnp.array([[1.0, jnp.nan, 0, 0], [1.0, 2, 3, 4]])))
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


# ---------------------------------------------------------------- networks


def test_bytes():
    """int8 needs a quarter of fp32; nf4 4 bits a weight and 32 bits a block of 64, that is 4.5 / 32."""
    plain = build_backbone(BERT, rngs=nnx.Rngs(0))
    kernels = sum(linear.kernel.nbytes for linear in linears(plain))
    rest = {path for path in params_of(plain)[1] if not path.endswith("/kernel")}
    for kind, share in [("int8", 1 / 4), ("int4", 4.5 / 32), ("nf4", 4.5 / 32)]:
        params = params_of(quantized(BERT, kind))[1]
        sizes = {path: value.nbytes for path, value in params.items() if "/kernel/" in path}
        assert rest | sizes.keys() == params.keys()  # nothing else changed
        scales = sum(size for path, size in sizes.items() if path.endswith("scales"))
        extra = scales / kernels if kind == "int8" else 0  # one scale a channel: 1/128 and 1/192 of these small kernels
        assert sum(sizes.values()) / kernels == pytest.approx(share + extra, rel=1e-9)
        assert extra < 0.01


@pytest.mark.parametrize(
    ("config", "kind"),
    [(BERT, "int8"), (BERT, "nf4"), (MODERNBERT, "nf4"), (GPT2, "int8")],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_logits_and_lora_gradients_are_those_of_the_dequantized_network(config, kind):
    """Gradients of LoRA alone, through the scan, with integer codes in the parameters that are held fast."""
    results = []
    for make in (quantized, lambda *args, **options: dense(quantized(*args, **options))):
        graphdef, params = params_of(make(config, kind, rank=4))

        def loss(lora: Any, graphdef: Any = graphdef, params: Any = params) -> Any:
            hidden = rebuilt(graphdef, params | lora)(*INPUTS)
            return jnp.sum(jnp.sin(hidden)), hidden

        lora = {path: value for path, value in params.items() if is_lora(path)}
        assert lora
        results.append(jax.jit(jax.grad(loss, has_aux=True))(lora))
    (gradients, hidden), (expected, expected_hidden) = results
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-5, rtol=0)
    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        scale = np.abs(expected[path]).max()
        assert "pooler" in path or scale > 0, path
        np.testing.assert_allclose(gradient, expected[path], atol=1e-4 * scale, rtol=0, err_msg=path)


def test_the_product_is_taken_in_the_layers_dtype():
    graphdef, params = params_of(quantized(BERT, "nf4", dtype=jnp.bfloat16))
    other = params_of(dense(quantized(BERT, "nf4", dtype=jnp.bfloat16)))
    hidden = rebuilt(graphdef, params)(*INPUTS)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        hidden.astype(np.float32), rebuilt(*other)(*INPUTS).astype(np.float32), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_the_backward_pass_keeps_no_kernel_in_full(remat):
    """Else QLoRA would save nothing: every layer's kernel would be there between the passes."""
    width, layers = 256, 6
    config = BertConfig(
        vocab_size=61, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=width
    )
    stacked = f"f32[{layers},{width},{width}]"

    def program(backbone: Any) -> str:
        graphdef, params = params_of(backbone)
        lora = {path: value for path, value in params.items() if is_lora(path)}

        def loss(lora: Any, params: Any) -> Any:
            return jnp.sum(rebuilt(graphdef, params | lora)(*INPUTS) ** 2)

        return str(jax.make_jaxpr(jax.grad(loss))(lora, params))

    options = StackOptions(remat=remat)
    assert stacked in program(dense(quantized(config, "nf4", rank=2, stack=options)))  # the check would notice
    assert stacked not in program(quantized(config, "nf4", rank=2, stack=options))


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_merging_adds_to_what_the_codes_stand_for(kind):
    backbone = quantized(BERT, kind, rank=4)
    query = backbone.layers.block0.attention.query
    base = np.asarray(query.kernel.dequantize(), np.float64)
    a, b = (np.asarray(m[...], np.float64) for m in (query.lora.a, query.lora.b))
    before = backbone(*INPUTS)
    merged = merge_lora(backbone)
    np.testing.assert_allclose(query.kernel[...], base + 16 / 4 * np.einsum("lir,lro->lio", a, b), atol=1e-6, rtol=0)
    assert params_of(merged)[0] == params_of(build_backbone(BERT, rngs=nnx.Rngs(0)))[0]  # a plain network again
    np.testing.assert_allclose(merged(*INPUTS), before, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_an_abstract_network_gets_the_same_structure_in_both_ways(kind):
    real = quantized(MODERNBERT, kind)
    inside = nnx.eval_shape(lambda: quantized(MODERNBERT, kind))
    after = nnx.eval_shape(lambda: build_backbone(MODERNBERT, rngs=nnx.Rngs(0)))
    plain = {id(linear): tuple(linear.kernel.shape) for linear in linears(after)}
    quantize_backbone(after, Format(kind))
    assert all(linear.kernel.shape == plain[id(linear)] for linear in linears(after))
    graphdef, state = nnx.split(real)
    for other in (inside, after):
        other_graphdef, other_state = nnx.split(other)
        assert other_graphdef == graphdef
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(other_state))
        shapes = (jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, other_state))
        assert next(shapes) == next(shapes)


@pytest.mark.parametrize(
    "format",
    [Format("int8"), Format("int4"), Format("nf4"), Format("int8", None, "int8"), Format("int4", 32, "int8")],
    ids=str,
)
def test_quantized_on_a_mesh_equals_quantized_on_one_device(format):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    plain = build_backbone(BERT, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(plain)
    spread = nnx.merge(graphdef, jax.device_put(nnx.to_pure_dict(state), parameter_shardings(mesh, plain)))
    quantize_backbone(spread, format)
    expected = params_of(quantized(BERT, format))[1]
    for path, value in params_of(spread)[1].items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    shardings = parameter_shardings(mesh, spread)
    kernel = shardings["layers"]["block0"]["mlp_in"]["kernel"]
    assert tuple(kernel["codes"].spec) == (None, "fsdp", "tensor")
    scales = (None, None if format.weights == "int8" else "fsdp", "tensor")  # one scale a column stays whole
    assert tuple(kernel["scales"].spec) == scales
    graphdef, state = nnx.split(spread)

    def outputs(params: Any) -> Any:
        """Of the network; where activations are rounded, of each layer, whose inputs are then the same to the bit.

        Through the network a sum in another order may round an activation to the next code.
        """
        network = nnx.merge(graphdef, params)
        return network(*INPUTS) if format.activations == "none" else [products(each) for each in linears(network)]

    run = jax.jit(outputs)
    one = run(nnx.to_pure_dict(nnx.state(quantized(BERT, format))))
    found = run(jax.device_put(nnx.to_pure_dict(state), shardings))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), found, one)


def products(linear: Any) -> jax.Array:
    """Random inputs times a layer's kernel, [layers, ...] in a stack."""
    x = jax.random.normal(jax.random.key(0), (3, 5, linear.kernel.size))
    graphdef, state = nnx.split(linear.kernel)
    stacked = linear.kernel.codes.ndim > len(linear.kernel.axes)

    def product(state: Any) -> jax.Array:
        return nnx.merge(graphdef, state)(x)

    return (jax.vmap(product) if stacked else product)(state)


def test_only_linear_layers_and_only_once():
    backbone = quantized(BERT, "int8")
    assert all(isinstance(linear.kernel, Quantized) for linear in linears(backbone)) and len(linears(backbone)) == 7
    with pytest.raises(ValueError, match="quantized"):
        quantize_backbone(backbone, Format("nf4"))
    with pytest.raises(ValueError, match="'fp4'.*int8, int4, nf4"):
        Format("fp4")
