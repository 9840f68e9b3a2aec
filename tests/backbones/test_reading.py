"""Reading HuggingFace folders: what is read, what is left, and what is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import save_file
from seq2seq_networks import edited, load

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones import reading
from instructrec_jax.backbones import tensor_names as tensors
from instructrec_jax.backbones.folder import declared_head, read_config
from instructrec_jax.backbones.layers import dropout_keys
from instructrec_jax.backbones.reading import load_head
from instructrec_jax.backbones.tensor_names import TensorFiles


@pytest.fixture(scope="module")
def bert(make_checkpoint):
    return make_checkpoint("bert", "ForMaskedLM")


@pytest.fixture(scope="module")
def modernbert(make_checkpoint):
    return make_checkpoint("modernbert", num_hidden_layers=4, attention_bias=True)


def batch(rows=1, length=6):
    place = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return place + 1, jnp.ones((rows, length), jnp.int32), place, place * 0


# ---------------------------------------------------------------- what is refused


def test_pickle_only_says_how_to_convert(bert, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ValueError, match="pytorch_model.bin.*save_pretrained"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "hidden_act", "laplace"),
        ("bert", "pruned_heads", {"0": [1]}),
        ("roberta", "add_cross_attention", True),
        ("mpnet", "relative_attention_num_buckets", 16),
        ("modernbert", "rope_scaling", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
    ],
)
def test_config_fields_that_would_change_the_numbers_are_refused_by_name(
    make_checkpoint, tmp_path, model_type, field, value
):
    folder = make_checkpoint(model_type)
    config = {field: value}
    if field == "rope_scaling":
        config["rope_parameters"] = None
    word = {"hidden_act": "laplace", "rope_scaling": "longrope"}.get(field, field)
    with pytest.raises(ValueError, match=word):
        load(edited(folder, tmp_path, **config))


def test_missing_misshapen_and_leftover_tensors_are_named(bert, tmp_path):
    name = "bert.encoder.layer.1.output.dense.weight"
    with pytest.raises(ValueError, match=name):
        load(edited(bert, tmp_path, tensors=lambda w: {n: t for n, t in w.items() if n != name}))
    with pytest.raises(ValueError, match=r"word_embeddings.weight.*\[61, 32\].*\[62, 32\]"):
        load(edited(bert, tmp_path, vocab_size=62))
    with pytest.raises(ValueError, match="bert.encoder.layer.1"):
        load(edited(bert, tmp_path, num_hidden_layers=1))
    with pytest.raises(ValueError, match="I8"):
        load(edited(bert, tmp_path, tensors=lambda w: w | {name: w[name].astype(np.int8)}))


def test_a_cut_off_file_is_named(bert, tmp_path):
    folder = edited(bert, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="model.safetensors"):
        load(folder)


def test_too_long_an_input_names_both_numbers(bert):
    module = load(bert).module
    with pytest.raises(ValueError, match="41 .*40"):
        module(*batch(length=41))
    inside_jit = jax.jit(lambda m, *a: m(*a))(module, *batch(length=41))
    assert np.isnan(inside_jit).any()


def test_roberta_positions_start_after_padding(make_checkpoint):
    folder = make_checkpoint("roberta", pad_token_id=3)
    assert load(folder).module.max_length == 42 - 4
    assert reading.input_limit(read_config(folder)) == 42 - 4


# ---------------------------------------------------------------- reading


def test_report_and_pooler(bert):
    loaded = load(bert)
    assert loaded.report.initialized == ("pooler.bias", "pooler.kernel")
    assert "cls.predictions.bias" in loaded.report.unused and len(loaded.report.unused) == 5
    assert "2 (pooler.bias, pooler.kernel)" in str(loaded.report)
    without = load(bert, pooler=False)
    assert without.report.initialized == () and without.module.pooler is None
    with pytest.raises(ValueError, match="pooler=True"):
        without.module.pool(jnp.ones((1, 32)))


def test_random_init_takes_nothing_from_the_file(bert):
    fresh, again = load(bert, random_init=True), load(bert, random_init=True)
    assert not fresh.report.used and "layers.block0.attention.query.kernel" in fresh.report.initialized
    kernel = fresh.module.layers.block0.attention.query.kernel[...]
    assert float(kernel.std()) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(kernel, again.module.layers.block0.attention.query.kernel[...])
    assert float(jnp.abs(fresh.module.word_embedding_table[0]).max()) == 0.0  # the padding token's row


def test_every_parameter_names_its_axes(modernbert, bert):
    for folder in (modernbert, bert):
        for keys, variable in nnx.to_flat_state(nnx.state(load(folder).module)):
            stacked = "layers" in keys
            assert len(variable.get_metadata()["axes"]) == variable.ndim - stacked, keys


def test_activations_take_the_dtype_and_parameters_stay_fp32(modernbert):
    module = load(modernbert, dtype=jnp.bfloat16).module
    assert module(*batch()).dtype == jnp.bfloat16
    assert {v.dtype for _, v in nnx.to_flat_state(nnx.state(module))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_sharded_reading_gives_the_same_parameters(family, request):
    """Every parameter split along its last dimension that divides, over whatever devices there are."""
    folder = request.getfixturevalue(family)
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    seen = {}

    def shardings(path, shape, axes):
        assert len(shape) == len(axes)
        seen[path] = axes
        split = [i for i, n in enumerate(shape) if n % jax.device_count() == 0 and axes[i] != "layers"]
        spec = ["x" if split and i == split[-1] else None for i in range(len(shape))]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    plain = nnx.to_flat_state(nnx.state(load(folder).module))
    sharded = nnx.to_flat_state(nnx.state(load(folder, shardings=shardings).module))
    for (path, a), (_, b) in zip(plain, sharded, strict=True):
        np.testing.assert_array_equal(a[...], b[...])
        assert b[...].sharding.mesh.size == jax.device_count(), path
    assert any(axes[0] == "layers" for axes in seen.values())


@pytest.mark.parametrize("transform", ["none", "transpose", "transpose parts", "split"])
def test_slices_are_cut_from_the_file_as_from_the_whole(transform, tmp_path):
    """Every slice that a sharding can ask for equals the slice of the whole, transformed array."""
    rng = np.random.default_rng(0)
    stored, shape = {
        "none": (rng.normal(size=(6, 4)), (6, 4)),
        "transpose": (rng.normal(size=(6, 4)), (4, 6)),
        "transpose parts": (rng.normal(size=(6, 4)), (4, 3, 2)),
        "split": (rng.normal(size=(6,)), (3, 2)),
    }[transform]
    stored = stored.astype(np.float16)
    save_file({"t": stored}, tmp_path / "model.safetensors")
    expected = stored if transform == "none" else stored.T.reshape(shape)
    with TensorFiles(tmp_path) as files:
        for _ in range(20):
            index = tuple(slice(*sorted(rng.choice(n + 1, 2, replace=False).tolist())) for n in shape)
            actual = tensors.read_slice(files, "t", transform.split()[0], shape, index)
            assert actual.dtype == np.float32
            np.testing.assert_array_equal(actual, expected[index].astype(np.float32))


def test_dropout_changes_the_output_but_not_with_packing(bert):
    module = load(bert).module
    lengths, length = [5, 3], 8
    tokens = np.arange(1, 9, dtype=np.int32)[None]
    segments = np.array([[1] * 5 + [2] * 3], np.int32)
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2]], np.int32)

    @jax.jit
    def run(module, tokens, segments, positions, examples):
        keys = dropout_keys(jnp.uint32(1), examples, positions)
        return module(tokens, segments, positions, tokens * 0, dropout=keys)

    packed = run(module, tokens, segments, positions, segments)[0]
    assert float(jnp.abs(packed - module(tokens, segments, positions, tokens * 0)[0]).max()) > 0.1
    start = 0
    for number, n in enumerate(lengths, 1):
        pad = ((0, 0), (0, length - n))
        alone = [np.pad(x[:, start : start + n], pad) for x in (tokens, np.ones_like(tokens), positions)]
        hidden = run(module, *alone, np.full((1, length), number, np.int32))[0, :n]
        np.testing.assert_allclose(hidden, packed[start : start + n], atol=2e-6)
        start += n


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("bert", ["hidden_dropout_prob", "attention_probs_dropout_prob"]),
        ("distilbert", ["dropout", "attention_dropout"]),
        ("modernbert", ["embedding_dropout", "attention_dropout", "mlp_dropout"]),
    ],
)
def test_every_dropout_rate_of_the_config_acts(model_type, fields):
    """Each rate alone changes the output when keys are given; with all at zero nothing does."""
    name = {"bert": "BertConfig", "distilbert": "DistilBertConfig", "modernbert": "ModernBertConfig"}[model_type]
    config_class = getattr(transformers, name)
    shape = dict(vocab_size=20, num_hidden_layers=1, num_attention_heads=2, hidden_size=8, pad_token_id=0)
    example = jnp.zeros((1, 6), jnp.int32)
    keys = dropout_keys(jnp.uint32(1), example, batch()[2])
    outputs = []
    for field in [None, *fields]:
        rates = dict.fromkeys(fields, 0.0) | ({field: 0.5} if field else {})
        module = reading.build_backbone(config_class(**shape, **rates), rngs=nnx.Rngs(0))
        off, on = jax.jit(lambda m: (m(*batch()), m(*batch(), dropout=keys)))(module)
        assert np.array_equal(off, on) == (field is None), field
        outputs.append(np.asarray(on))
    assert len({o.tobytes() for o in outputs}) == len(outputs)


# ---------------------------------------------------------------- heads in the checkpoint


def head_of(folder, kind, outputs):
    config = read_config(folder)
    return load_head(
        folder,
        kind,
        lambda key: build_head(config, kind, outputs, rngs=nnx.Rngs(params=key)),
        rngs=nnx.Rngs(0),
    )


def test_a_head_of_another_kind_is_left_alone(make_checkpoint):
    folder = make_checkpoint("bert", "ForTokenClassification")
    assert declared_head(read_config(folder)) == "token"
    _, report = head_of(folder, "sequence", 3)
    assert report.initialized == ("output.bias", "output.kernel") and not report.used
    _, report = head_of(folder, "token", 3)
    assert set(report.used) == {"classifier.weight", "classifier.bias"} and not report.initialized


def test_another_number_of_labels_is_named(make_checkpoint):
    with pytest.raises(ValueError, match=r"classifier.bias.*\[3\].*\[5\]"):
        head_of(make_checkpoint("bert", "ForTokenClassification"), "token", 5)


def test_untied_weights_under_a_tied_config_are_refused(make_checkpoint, tmp_path):
    folder = make_checkpoint("bert", "ForMaskedLM", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="cls.predictions.decoder.weight"):
        head_of(edited(folder, tmp_path, tie_word_embeddings=True), "mlm", 61)
