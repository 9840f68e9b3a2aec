"""DalleBart beside dalle-mini's formulas in PyTorch: hidden states, logits, greedy codes, and its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from dalle_in_torch import Reference
from flax import nnx
from safetensors.numpy import load_file, save_file
from seq2seq_networks import TOLERANCE, edited, largest, load, load_both, run, texts
from tiny_drawers import DALLEBART, dallebart

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.lora import add_lora
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.backbones.writing import save_pretrained

pytestmark = pytest.mark.usefixtures("exact")
SOURCE, TARGET = texts((23, 1, 9, 31), 31), texts((7, 12, 16, 1), 16, seed=1, vocab=14)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(scale_embedding=True, activation_function="relu", encoder_attention_heads=1, decoder_layers=1),
        dict(encoder_layers=1, decoder_attention_heads=4, image_vocab_size=29, decoder_start_token_id=29),
    ],
)
def test_numbers_are_dalle_minis(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a", **changes)
    loaded, head, report = load_both(folder)
    assert not report.unused and not report.initialized
    assert loaded.module.vocab_size == 61 and loaded.module.max_length == 31 and loaded.module.max_target_length == 16
    reference = Reference(folder)
    expected = reference.encode(SOURCE)
    encoded, hidden = run(loaded.module, SOURCE, TARGET)
    assert largest(encoded, expected, SOURCE[1]) < TOLERANCE
    logits = head(loaded.module, hidden)
    assert logits.shape[-1] == loaded.config.image_vocab_size + 1
    assert largest(logits, reference.logits(TARGET[0], expected, SOURCE), TARGET[1]) < TOLERANCE


def test_greedy_codes_are_dalle_minis(tmp_path: Path) -> None:
    """With a cache, one code after the other; of all texts at once."""
    folder = dallebart(tmp_path / "a")
    loaded, head, _ = load_both(folder)
    reference = Reference(folder)
    network, rows, length = loaded.module, len(SOURCE[0]), loaded.config.image_length
    encoded, known = network.encode(*SOURCE), reference.encode(SOURCE)
    cache = network.empty_cache(rows, length, SOURCE[0].shape[1])
    step = nnx.jit(lambda network, *arguments, **others: network.decode(*arguments, **others))
    one = np.ones((rows, 1), np.int32)
    token, written = one * loaded.config.decoder_start_token_id, [one * loaded.config.decoder_start_token_id]
    for place in range(length):
        first = (encoded, SOURCE[1]) if place == 0 else ()
        hidden, cache = step(network, token, one, one * place, *first, cache=cache)
        token = np.asarray(head(network, hidden).argmax(-1)).astype(np.int32)
        expected = reference.logits(np.concatenate(written, axis=1), known, SOURCE)[:, -1:].argmax(-1)
        assert np.array_equal(token, expected)
        written.append(token)
    assert len(np.unique(np.concatenate(written[1:]))) > 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_written_folder_has_the_same_bytes(dtype: Any, tmp_path: Path) -> None:
    """All layers in one tensor, as before, also where some layers lie apart here."""
    folder = dallebart(tmp_path / "a", dtype)
    source = load_file(folder / "model.safetensors")
    for stack in (StackOptions(), StackOptions(train_last=1)):
        _, head, report = load_both(folder)
        loaded = load(folder, stack=stack)
        out = tmp_path / f"out{stack.train_last}"
        save_pretrained(out, loaded.module, loaded.config, report=report, head=head, head_kind="lm")
        written = load_file(out / "model.safetensors")
        assert set(written) == set(source)
        for name, value in source.items():
            assert written[name].dtype == dtype and written[name].shape == value.shape
            assert written[name].tobytes() == value.tobytes(), name
        config = json.loads((out / "config.json").read_text())
        # transformers leaves out what it keeps in generation_config.json; dalle-mini has the same by default
        gone = ("do_sample", "max_length", "min_length", "use_cache")
        kept = {name: value for name, value in DALLEBART.items() if name not in gone}
        assert config == config | kept | {"architectures": ["DalleBart"], "model_type": "dallebart"}


def test_a_flattened_flax_file_is_what_is_read(tmp_path: Path) -> None:
    """As docs/images.md flattens it."""
    from flax.serialization import msgpack_restore, msgpack_serialize
    from flax.traverse_util import flatten_dict, unflatten_dict

    folder = dallebart(tmp_path / "a")
    source = load_file(folder / "model.safetensors")
    file = msgpack_serialize(unflatten_dict(source, sep="."))
    tensors = flatten_dict(msgpack_restore(file), sep=".")
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    assert set(load_both(folder)[2].used) >= {"lm_head.kernel", "model.encoder.final_ln.bias"}
    assert all(np.array_equal(x, source[name]) for name, x in load_file(folder / "model.safetensors").items())


def test_tensors_of_all_layers_are_read_layer_by_layer(tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a")
    whole = load_file(folder / "model.safetensors")
    start = "model.decoder.layers.FlaxBartDecoderLayers."
    with TensorFiles(folder, stacked=(start,)) as files:
        kernel = whole[f"{start}GLU_0.Dense_2.kernel"]
        assert files.shape(f"{start}2.GLU_0.Dense_2.kernel") == kernel.shape[1:]
        part = files.read(f"{start}2.GLU_0.Dense_2.kernel", (slice(3, 7), slice(1, 5)))
        assert np.array_equal(part, kernel[2, 3:7, 1:5])
        assert f"{start}3.LayerNorm_0.bias" not in files.names and "lm_head.kernel" in files.names


def without(name: str) -> Callable[[Any], Any]:
    return lambda tensors: {key: value for key, value in tensors.items() if name not in key}


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a")
    with pytest.raises(ValueError, match="no parameter for tensor .*FlaxBartDecoderLayers.2."):
        load(edited(folder, tmp_path / "shallower", decoder_layers=2))
    with pytest.raises(ValueError, match="FlaxBartEncoderLayers.2.*are missing|are missing: .*FlaxBartEncoderLayers.2"):
        load(edited(folder, tmp_path / "deeper", encoder_layers=3))
    with pytest.raises(ValueError, match="final_ln.bias"):
        load(edited(folder, tmp_path / "fewer", without("encoder.final_ln")))
    with pytest.raises(ValueError, match="lm_head.kernel is missing"):
        load_both(edited(folder, tmp_path / "headless", without("lm_head")))
    with pytest.raises(ValueError, match="embed_tokens.embedding has shape"):
        load(edited(folder, tmp_path / "vocabulary", encoder_vocab_size=60))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ln_positions", "swinv2"),
        ("ln_positions", "preln"),
        ("ln_type", "rmsnorm"),
        ("use_glu", False),
        ("use_bias", True),
        ("use_scan", False),
        ("use_head_scale", True),
        ("head_scale", True),
        ("use_cosine_attention", True),
        ("use_deepnet_scaling", True),
        ("use_alibi", True),
        ("use_swin_position_embeddings", True),
        ("use_absolute_position_embeddings", False),
        ("use_final_ln_encoder", False),
        ("use_final_ln_decoder", False),
        ("force_ln_scale", True),
        ("sinkhorn_iters", 3),
        ("tie_word_embeddings", True),
        ("decoder_start_token_id", 0),
        ("decoder_attention_heads", 5),
        ("activation_function", "selu"),
        ("image_length", "16"),
        ("max_text_length", 0),
    ],
)
def test_variants_are_named(field: str, value: object, tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a")
    with pytest.raises(ValueError, match=f"{field}|selu"):
        load(edited(folder, tmp_path / "b", **{field: value}))


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    for field in ("image_vocab_size", "encoder_vocab_size", "max_text_length", "d_model", "decoder_layers"):
        rest = {name: value for name, value in config.items() if name != field}
        (folder / "config.json").write_text(json.dumps(rest))
        with pytest.raises(ValueError, match=field):
            load(folder)


def test_lora_is_on_the_modules_of_flax(tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a")
    config = read_config(folder)
    names = add_lora(load(folder).module, config, LoraConfig(rank=2), nnx.Rngs(0))
    assert len(names) == 2 * 7 + 3 * 11
    assert "encoder.layers.FlaxBartEncoderLayers.1.GLU_0.Dense_2" in names
    some = add_lora(load(folder).module, config, LoraConfig(rank=2, targets=["q_proj", "Dense_0"]), nnx.Rngs(0))
    assert len(some) == 2 * 2 + 3 * 3


def test_positions_beyond_the_tables_are_named(tmp_path: Path) -> None:
    network = load(dallebart(tmp_path / "a")).module
    with pytest.raises(ValueError, match="32 .*31"):
        network.encode(*texts((32,), 32))
    encoded = network.encode(*texts((5,), 5))
    with pytest.raises(ValueError, match="17 .*16"):
        network.decode(*texts((17,), 17, vocab=14), encoded, texts((5,), 5)[1])


def test_a_file_without_the_models_prefix_is_told(tmp_path: Path) -> None:
    folder = dallebart(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): x for name, x in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="are missing"):
        load(folder)
    assert jnp.isnan(load(dallebart(tmp_path / "b")).module.word_embeddings(jnp.array([61]))).all()
