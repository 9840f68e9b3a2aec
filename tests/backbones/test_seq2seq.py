"""Encoder–decoders against transformers, from random checkpoints of T5, mT5 and BART in odd configs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from seq2seq_networks import (
    LM,
    SOURCE,
    TARGET,
    TOLERANCE,
    edited,
    largest,
    load,
    load_both,
    open_torch,
    run,
    run_torch,
    texts,
)

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.heads import build_head
from instructrec_jax.adapters.lora import Lora, add_lora
from instructrec_jax.backbones import attention as attention_module
from instructrec_jax.backbones import layers as layers_module
from instructrec_jax.backbones.folder import declared_head, read_config
from instructrec_jax.backbones.layers import Linear, StackOptions, dropout_keys
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.seq2seq import positions_of
from instructrec_jax.backbones.tensor_names import TensorFiles, sites_of
from instructrec_jax.backbones.writing import export_tensors, save_pretrained

pytestmark = pytest.mark.usefixtures("exact")


@pytest.fixture(scope="module")
def bart(make_checkpoint):
    return make_checkpoint("bart", LM)


@pytest.fixture(scope="module", params=["t5", "bart"])
def checkpoint(request):
    return request.getfixturevalue(request.param)


def untied(folder: Path, out: Path, **config) -> Path:
    def add(tensors):
        table = np.random.default_rng(7).normal(size=tensors["shared.weight"].shape)
        return tensors | {"lm_head.weight": table.astype(tensors["shared.weight"].dtype)}

    return edited(folder, out, add, **config)


def packed(arrays, padding=2):
    """All texts of `texts` in one row, one after the other."""
    tokens, segment_ids, positions = arrays
    real = segment_ids != 0
    numbers = np.cumsum(np.ones_like(segment_ids), axis=0)
    return tuple(np.pad(x[real], (0, padding))[None].astype(np.int32) for x in (tokens, numbers, positions))


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("t5", dict()),
        ("t5", dict(tie_word_embeddings=False, feed_forward_proj="gated-gelu", num_decoder_layers=1)),
        ("t5", dict(feed_forward_proj="gated-silu", relative_attention_num_buckets=32, layer_norm_epsilon=1e-2)),
        ("mt5", dict(num_heads=3, relative_attention_max_distance=128)),
        ("mt5", dict(feed_forward_proj="gelu", num_layers=1)),
        ("bart", dict()),
        ("bart", dict(scale_embedding=True, activation_function="relu", encoder_attention_heads=1)),
        ("bart", dict(activation_function="gelu_new", decoder_layers=1, encoder_layers=3, pad_token_id=5)),
    ],
)
def test_numbers(make_checkpoint, model_type, options):
    folder = make_checkpoint(model_type, LM, **options)
    model = open_torch(folder, type(read_config(folder)).__name__.replace("Config", LM))
    loaded, head, report = load_both(folder)
    assert not report.unused and not report.initialized
    assert loaded.module.hidden_size == 32 and loaded.module.vocab_size == 61
    expected = run_torch(model, SOURCE, TARGET)
    encoded, hidden = run(loaded.module, SOURCE, TARGET)
    assert largest(encoded, expected.encoder_last_hidden_state, SOURCE[1]) < TOLERANCE
    assert largest(head(loaded.module, hidden), expected.logits, TARGET[1]) < TOLERANCE


@pytest.mark.parametrize("model_type", ["t5", "mt5", "bart"])
def test_base_model(make_checkpoint, model_type):
    """A checkpoint of the network alone; its tensors have no prefix."""
    folder = make_checkpoint(model_type)
    loaded = load(folder)
    assert declared_head(loaded.config) is None and not loaded.report.unused
    expected = run_torch(open_torch(folder, type(loaded.config).__name__.replace("Config", "Model")), SOURCE, TARGET)
    encoded, hidden = run(loaded.module, SOURCE, TARGET)
    assert largest(encoded, expected.encoder_last_hidden_state, SOURCE[1]) < TOLERANCE
    assert largest(hidden, expected.last_hidden_state, TARGET[1]) < TOLERANCE


def test_bfloat16(checkpoint):
    exact = run(load(checkpoint).module, SOURCE, TARGET)[1]
    loaded = load(checkpoint, dtype=jnp.bfloat16)
    rounded = run(loaded.module, SOURCE, TARGET)[1]
    assert rounded.dtype == jnp.bfloat16
    spread = float(jnp.std(exact))
    assert np.abs(np.asarray(exact) - rounded.astype(jnp.float32))[TARGET[1] != 0].mean() < 0.05 * spread


# ---------------------------------------------------------------- packing and dropout


def keys_of(source, target, numbers=None):
    """Dropout keys of source and target; the number of a text is its row, or its segment's where they are packed."""

    def keys(seed, arrays):
        rows = np.arange(len(arrays[0]))[:, None] + np.zeros_like(arrays[0]) if numbers is None else arrays[1] - 1
        return dropout_keys(jnp.uint32(seed), jnp.asarray(rows), jnp.asarray(arrays[2]))

    return keys(3, source), keys(4, target)


@pytest.fixture(scope="module", params=["t5", "bart"])
def small(request, make_checkpoint):
    """One layer a side, with dropout everywhere."""
    if request.param == "bart":
        sizes = dict(encoder_layers=1, decoder_layers=1, attention_dropout=0.25, activation_dropout=0.375)
    else:
        sizes = dict(num_layers=1, num_decoder_layers=1, feed_forward_proj="gated-gelu", dropout_rate=0.25)
    return make_checkpoint(request.param, LM, **sizes)


@pytest.mark.slow
def test_packed_pairs_equal_unpacked_ones(small):
    """Hidden states and gradients: a target sees its own source only; distances and dropout are those it has alone.

    LoRA's dropout too, whose keys are those of the tokens a linear layer reads: source tokens in cross-attention.
    """
    loaded = load(small)
    network = loaded.module
    # sources and targets of a pair lie at different places of their rows
    alone = texts((9, 1, 5, 12), 12), texts((3, 6, 1, 8), 8, seed=1)
    row = tuple(packed(arrays, padding) for arrays, padding in zip(alone, (2, 5), strict=True))
    add_lora(network, loaded.config, LoraConfig(rank=2, alpha=2, dropout=0.5), nnx.Rngs(0))
    for path, module in nnx.iter_modules(network):
        if isinstance(module, Lora):
            module.b[...] = 0.1 * jax.random.normal(jax.random.key(len(path)), module.b.shape)
    weights = np.random.default_rng(2).normal(size=(4, 8, 32)).astype(np.float32)

    @nnx.jit
    def gradients(network, arrays, keys, weights):
        def loss(network):
            encoded, hidden = run(network, *arrays, *keys)
            return (hidden * weights).sum(), (encoded, hidden)

        return nnx.value_and_grad(loss, has_aux=True)(network)

    real = alone[1][1] != 0
    (_, theirs), their_gradients = gradients(network, alone, keys_of(*alone), weights * real[..., None])
    flat = np.pad(weights[real], ((0, 5), (0, 0)))[None]
    (_, ours), our_gradients = gradients(network, row, keys_of(*row, 1), flat)
    for one, other, (_, segment_ids, _), plain in zip(theirs, ours, alone, run(network, *alone), strict=True):
        real = segment_ids != 0
        np.testing.assert_allclose(other[0, : real.sum()], np.asarray(one)[real], atol=2e-5)
        assert largest(one, plain, segment_ids) > 0.1
    for one, other in zip(jax.tree.leaves(their_gradients), jax.tree.leaves(our_gradients), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5 * max(1.0, float(np.abs(one).max())))


def test_dropout_is_where_transformers_has_it(small, monkeypatch):
    """The same (shape, rate) of dropped values on both sides; each of ours has its own bits, each linear layer keys."""
    model = open_torch(small, type(read_config(small)).__name__.replace("Config", LM)).train()
    source, target = texts((5,), 5), texts((3,), 3)
    theirs = []

    def torch_dropout(x, p=0.5, training=True, inplace=False):
        theirs.append((tuple(x.shape), p))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", torch_dropout)
    run_torch(model, source, target)

    ours, bits, linears = [], [], []
    keep_mask, call = layers_module.keep_mask, Linear.__call__

    def recorded_mask(x, rate):
        ours.append((x.shape, rate))
        bits.append(np.asarray(x)[0, 0].tobytes()[:12])
        return keep_mask(x, rate)

    def recorded_call(self, x, keys=None):
        linears.append(keys is not None and keys.tokens.shape == x.shape[:2])
        return call(self, x, keys)

    monkeypatch.setattr(layers_module, "keep_mask", recorded_mask)
    monkeypatch.setattr(attention_module, "keep_mask", recorded_mask)
    monkeypatch.setattr(Linear, "__call__", recorded_call)
    network = load(small).module
    keys = keys_of(source, target)
    with jax.disable_jit():
        network.decode(*target, network.encode(*source, dropout=keys[0]), source[1], dropout=keys[1])
    assert sorted(ours) == sorted(theirs) and len(ours) in (12, 14)
    assert len(set(bits)) == len(bits)
    assert all(linears) and len(linears) in (4 + 2 + 8 + 2, 4 + 3 + 8 + 3)


def test_positions_of():
    segment_ids = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [2, 2, 0, 0, 1, 1, 1, 1]])
    assert positions_of(segment_ids).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1, 2, 3]]


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("t5", dict()),
        ("t5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=2)),
        ("mt5", dict(num_decoder_layers=1)),
        ("bart", dict(forced_eos_token_id=None)),
    ],
)
def test_greedy_generation_equals_transformers(make_checkpoint, tmp_path, model_type, options):
    def livelier(tensors):
        """The layers, or the positions, count more: else the last token is the likeliest next one, again and again."""
        factors = {"decoder.block": 5, "embed_positions": 10, "model.shared": 2, "final_logits_bias": 0.2}
        return {
            name: np.float32(next((f for part, f in factors.items() if part in name and t.ndim == 2), 1)) * t
            for name, t in tensors.items()
        }

    folder = edited(make_checkpoint(model_type, LM, **options), tmp_path, livelier)
    loaded, head, _ = load_both(folder)
    config, steps = loaded.config, 25  # beyond the bucketed distances
    model = open_torch(folder, type(config).__name__.replace("Config", LM))
    source = texts((14, 1, 8), 14)
    expected = model.generate(
        torch.tensor(source[0]).long(),
        attention_mask=torch.tensor(source[1]).long(),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        # transformers 5.24 makes the cache of a T5 for as many layers as the encoder has
        use_cache=getattr(config, "num_decoder_layers", 0) <= config.num_hidden_layers,
    ).numpy()

    @nnx.jit
    def generate(network, head, source):
        rows = len(source[0])
        one = jnp.ones((rows, 1), jnp.int32)
        encoded = network.encode(*source)
        token = one[:, 0] * config.decoder_start_token_id
        cache = network.empty_cache(rows, steps, source[0].shape[1])
        hidden, cache = network.decode(token[:, None], one, one * 0, encoded, source[1], cache=cache)
        first = head(network, hidden[:, 0]).argmax(-1)

        def step(carry, number):
            token, cache = carry
            hidden, cache = network.decode(token[:, None], one, one * number, cache=cache)
            return (head(network, hidden[:, 0]).argmax(-1), cache), token

        (last, cache), tokens = jax.lax.scan(step, (first, cache), jnp.arange(1, steps))
        return jnp.concatenate([token[:, None], tokens.T, last[:, None]], axis=1)

    actual = np.asarray(generate(loaded.module, head, source))
    np.testing.assert_array_equal(actual, expected)
    assert len(np.unique(actual)) > 4


def test_parts_through_the_cache_equal_the_whole(small):
    """Several tokens a call; packed pairs; a part as long as the cache, which is as long as the encoded text."""
    network = load(small).module
    source, target = packed(texts((9, 3, 5), 9), padding=3), packed(texts((8, 4, 6), 8, seed=1), padding=2)
    length = target[0].shape[1]
    assert length == source[0].shape[1] == 20
    encoded, whole = run(network, source, target)
    real = target[1] != 0
    decode = nnx.jit(lambda network, inputs, given, cache: network.decode(*inputs, *given, cache=cache))
    for borders, spare in [((0, 20), 0), ((0, 7, 8, 15, 20), 0), ((0, 7, 20), 4)]:
        cache, parts = network.empty_cache(1, length + spare, source[0].shape[1]), []
        for start, stop in zip(borders, borders[1:], strict=False):
            inputs = [x[:, start:stop] for x in target]
            given = (encoded, source[1]) if start == 0 else (None, source[1] if start == 8 else None)
            hidden, cache = decode(network, inputs, given, cache)
            parts.append(hidden)
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1)[real], whole[real], atol=2e-5)
        assert int(cache["index"]) == length
        np.testing.assert_array_equal(cache["segment_ids"][:, :length], target[1])
        np.testing.assert_array_equal(cache["encoded_segment_ids"], source[1])


def test_misuse_of_the_cache(small):
    network = load(small).module
    source, target = texts((5,), 5), texts((3,), 3)
    encoded = network.encode(*source)
    with pytest.raises(ValueError, match="encoded"):
        network.decode(*target)
    with pytest.raises(ValueError, match="encoded_segment_ids"):
        network.decode(*target, encoded)
    with pytest.raises(ValueError, match="encoded"):
        network.decode(*target, cache=network.empty_cache(1, 4, 5))
    with pytest.raises(ValueError, match="6 .*5"):
        network.decode(*target, encoded, source[1], cache=network.empty_cache(1, 4, 6))
    with pytest.raises(ValueError, match="3 .*cache.* 2 .* 0 "):
        network.decode(*target, encoded, source[1], cache=network.empty_cache(1, 2, 5))
    _, cache = network.decode(*target, encoded, source[1], cache=network.empty_cache(1, 5, 5))
    with pytest.raises(ValueError, match="3 .*cache.* 5 .* 3 "):
        network.decode(*target, cache=cache)

    decode = nnx.jit(lambda network, target, cache: network.decode(*target, cache=cache)[0])
    assert np.isnan(decode(network, target, cache)).all()
    assert np.isnan(decode(network, target, network.empty_cache(1, 5, 5))).all()
    assert not np.isnan(decode(network, texts((2,), 2), cache)).any()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["t5", "mt5", "bart"])
@pytest.mark.parametrize("suffix", [LM, "Model"])
def test_round_trip(make_checkpoint, tmp_path, model_type, suffix, dtype):
    folder = make_checkpoint(model_type, suffix, dtype=dtype)
    if model_type == "mt5" and suffix == LM:
        folder = untied(folder, tmp_path / "untied")
    if suffix == LM:
        loaded, head, report = load_both(folder)
        save_pretrained(tmp_path, loaded.module, loaded.config, report=report, head=head, head_kind="lm")
    else:
        loaded = load(folder)
        save_pretrained(tmp_path, loaded.module, loaded.config, report=loaded.report)
    with TensorFiles(folder) as source, TensorFiles(tmp_path) as written:
        assert set(source.names) == set(written.names)
        for name in source.names:
            assert source.dtype(name) == written.dtype(name), name
            assert source.read(name).tobytes() == written.read(name).tobytes(), name
    assert read_config(tmp_path).architectures == read_config(folder).architectures
    name = type(loaded.config).__name__.replace("Config", suffix)
    theirs = [run_torch(open_torch(path, name), SOURCE, TARGET)[0] for path in (folder, tmp_path)]
    assert torch.equal(*theirs)


def test_copies_of_the_word_embeddings(checkpoint, tmp_path):
    """Older files hold the table several times. Copies are left out; a table that differs would be lost."""
    prefix = "model." if read_config(checkpoint).model_type == "bart" else ""
    names = [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]

    def copied(tensors):
        shared = tensors[f"{prefix}shared.weight"]
        return tensors | {name: shared.copy() for name in names} | {"lm_head.weight": shared.copy()}

    folder = edited(checkpoint, tmp_path / "equal", copied)
    loaded, head, report = load_both(folder)
    assert set(report.unused) == {*names, "lm_head.weight"} and head.table is None
    for name in names:

        def different(tensors, name=name):
            changed = copied(tensors)
            changed[name][-1, -1] += 1
            return changed

        with pytest.raises(ValueError, match=f"{name}.*{prefix}shared.weight"):
            load(edited(checkpoint, tmp_path / "different", different))


# ---------------------------------------------------------------- training


def test_train_last_is_of_the_decoder(checkpoint):
    expected = run(load(checkpoint).module, SOURCE, TARGET)
    network = load(checkpoint, stack=StackOptions(train_last=1, remat="full")).module
    encoder, decoder = network.encoder.layers, network.decoder.layers
    assert encoder.first_trained == encoder.num_layers == 2
    assert [(b.first, b.count) for b in decoder.blocks] == [(0, 2), (2, 1)] and decoder.first_trained == 2
    for theirs, ours in zip(expected, run(network, SOURCE, TARGET), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("t5", dict(initializer_factor=1.5, d_kv=16, d_ff=96)),
        ("t5", dict(feed_forward_proj="gated-gelu", d_kv=16, d_ff=96)),
        ("bart", dict(init_std=0.07, pad_token_id=4)),
    ],
)
def test_initialization_is_that_of_transformers(make_checkpoint, model_type, options):
    config = read_config(make_checkpoint(model_type, LM, **options))
    model = getattr(transformers, type(config).__name__.replace("Config", LM))(config)
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    head = build_head(config, "lm", config.vocab_size, rngs=nnx.Rngs(1))
    tensors = export_tensors(build_backbone(config, rngs=nnx.Rngs(0)), config, head=head, head_kind="lm")
    assert set(tensors) == {n for n in theirs if "embed_tokens" not in n and n != "lm_head.weight"}
    for name, ours in tensors.items():
        assert ours.shape == theirs[name].shape
        # a standard deviation of n draws is off by 1 / sqrt(2 n) of itself; five of these, on both sides
        assert np.isclose(ours.std(), theirs[name].std(), rtol=5 * ours.size**-0.5), name
        assert np.isclose(ours.mean(), theirs[name].mean(), atol=8 * max(ours.std(), 1e-7) * ours.size**-0.5), name
    if model_type == "bart":
        assert not tensors["model.shared.weight"][4].any()


def test_axes(checkpoint):
    """Sharding: attention over heads, the MLP over its width, the table over the vocabulary."""
    axes = {site.rule_path: site.axes for site in sites_of(load(checkpoint).module)}
    assert axes["word_embeddings.table"] == ("vocab", "embed")
    for name in ("decoder.layers.{layer}.cross_attention", "encoder.layers.{layer}.attention"):
        assert axes[f"{name}.key.kernel"] == axes[f"{name}.query.kernel"] == ("layers", "embed", "heads")
        assert axes[f"{name}.output.kernel"] == ("layers", "heads", "embed")
    wide = [path for path, names in axes.items() if "mlp" in names and path.endswith("kernel")]
    assert len(wide) == 4
