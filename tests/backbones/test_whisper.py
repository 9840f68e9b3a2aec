"""Whisper: what is read, refused, and forced; parity with PyTorch is in test_parity.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tiny_sounds import SIZES

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import answer_limit, input_limit, load_backbone, load_head
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.backbones.whisper import SoundEncoder, Whisper, sinusoids
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.inference.decoding import Decoder
from instructrec_jax.inference.generation_config import GenerationConfig, token_rules
from instructrec_jax.tasks.base import Model

Make = Callable[..., Path]
VECTORS = SIZES["max_source_positions"]


def sounds(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 2 * VECTORS, SIZES["num_mel_bins"])).astype(np.float32)


def test_positions_begin_as_transformers_begins() -> None:
    theirs = transformers.models.whisper.modeling_whisper.sinusoids(9, 12)
    np.testing.assert_allclose(sinusoids(9, 12), theirs.numpy(), atol=1e-6)


def test_a_network_of_sounds_has_two_limits(make_checkpoint: Make) -> None:
    config = read_config(make_checkpoint("whisper", "ForConditionalGeneration"))
    assert (input_limit(config), answer_limit(config)) == (VECTORS, SIZES["max_target_positions"])


def test_the_encoder_is_read_from_every_folder(make_checkpoint: Make) -> None:
    whole = make_checkpoint("whisper", "ForConditionalGeneration")
    module = load_backbone(whole, rngs=nnx.Rngs(0)).module
    alone = load_backbone(whole, rngs=nnx.Rngs(0), images=True, tower=True).module
    assert isinstance(module, Whisper) and isinstance(alone, SoundEncoder)
    np.testing.assert_array_equal(alone(sounds(2)), module.encoder(sounds(2)))


def test_parameters_are_sharded_by_their_axes(make_checkpoint: Make) -> None:
    module = load_backbone(make_checkpoint("whisper"), rngs=nnx.Rngs(0)).module
    axes = {path: value.get_metadata()["axes"] for path, value in nnx.to_flat_state(nnx.state(module))}
    assert axes["encoder", "first", "kernel"] == (None, None, "embed")
    assert axes["encoder", "layers", "block0", "attention", "query", "kernel"] == ("embed", "heads")
    assert ("encoder", "layers", "block0", "attention", "key", "bias") not in axes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop"),
        ({"apply_spec_augment": True}, "apply_spec_augment"),
        ({"use_weighted_layer_sum": True}, "use_weighted_layer_sum"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"d_model": 30}, "d_model is 30"),
    ],
)
def test_what_is_not_implemented_is_refused(change: dict[str, Any], said: str, make_checkpoint: Make) -> None:
    folder = make_checkpoint("whisper")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_backbone(folder, rngs=nnx.Rngs(0))


def test_inputs_of_other_forms_are_refused(make_checkpoint: Make) -> None:
    module = load_backbone(make_checkpoint("whisper"), rngs=nnx.Rngs(0)).module
    with pytest.raises(ValueError, match=r"\[sounds, 20, 8\]"):
        module.encoder(sounds(1)[:, :-1])
    zeros = np.zeros((1, VECTORS), np.int32)
    with pytest.raises(ValueError, match="the batch has none"):
        module.encode(zeros, zeros + 1, zeros)


FORCED = {
    "multilingual": dict(
        language="en", task="transcribe", lang_to_id={"<|en|>": 31}, task_to_id={"transcribe": 32, "translate": 33}
    ),
    "older": dict(forced_decoder_ids=[[1, 31], [2, 33]]),
    "english": {},
}


@pytest.mark.parametrize("kind", FORCED)
def test_answers_are_those_of_whispers_generate(kind: str, make_checkpoint: Make) -> None:
    """With forced, suppressed and first suppressed tokens, token by token."""
    folder = make_checkpoint("whisper", "ForConditionalGeneration")
    (folder / "generation_config.json").write_text(
        json.dumps(
            dict(
                decoder_start_token_id=3,
                eos_token_id=2,
                pad_token_id=2,
                bos_token_id=2,
                no_timestamps_token_id=34,
                return_timestamps=False,
                suppress_tokens=[7, 11, 12],
                begin_suppress_tokens=[2, 19, 20, 21],
                **FORCED[kind],
            )
        )
    )
    tokenizer = type("Tokenizer", (), {"eos_token_id": 2, "pad_token_id": 2})
    config = read_config(folder)
    rules = token_rules(folder, config, tokenizer, "encoder_decoder", speech=True)
    assert rules.forced_first == {"multilingual": (31, 32, 34), "older": (31, 33, 34), "english": (34,)}[kind]
    loaded = load_backbone(folder, rngs=nnx.Rngs(0))

    def build(key: jax.Array) -> nnx.Module:
        return build_head(config, "lm", config.vocab_size, rngs=nnx.Rngs(params=key))

    model = Model(loaded.module, load_head(folder, "lm", build, rngs=nnx.Rngs(0))[0])
    graphdef, state = nnx.split(model)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    limits = dict(max_length=VECTORS, max_answer=answer_limit(config))
    decoder = Decoder(graphdef, mesh, rules, encoder_decoder=True, **limits)
    place = np.arange(VECTORS, dtype=np.int32)
    heard = sounds(4)
    images = [RowImages(one[None, None], place[None]) for one in heard]
    settings = GenerationConfig(max_new_tokens=16, batch_size=3)
    found = dict(decoder.answer(nnx.to_pure_dict(state), [place * 0] * 4, settings, images=images))

    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    for number, one in enumerate(heard):
        features = torch.tensor(one[None]).permute(0, 2, 1)
        said = theirs.generate(features, max_new_tokens=16 - len(rules.forced_first), do_sample=False)[0].tolist()
        prompt = [3, *rules.forced_first]
        said = said[len(prompt) :] if said[: len(prompt)] == prompt else said
        ours = found[number].tokens[len(rules.forced_first) :]
        assert found[number].tokens[: len(rules.forced_first)] == list(rules.forced_first)
        assert [t for t in ours if t != 2] == [t for t in said if t != 2]
