"""The parts of check_parity.py that compare networks of sounds: Whisper, and its encoder with a classifier."""

from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx
from parity_of_images import Say, largest, softmax_of_float64

from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.inference.decoding import Decoder
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.tasks.base import Model

CLASSES = {
    "lm": transformers.AutoModelForSpeechSeq2Seq,
    "image": transformers.AutoModelForAudioClassification,
    None: transformers.AutoModel,
}
GENERATED = 12  # tokens


def compare_sounds(torch_model: Any, loaded: Any, head: Any, rng: np.random.Generator, say: Say) -> None:
    """Compares the outputs for random spectrograms, also packed into one row. `torch_model` is float64 afterwards."""
    module = loaded.module
    encoder = module if loaded.family.kind == "sound" else module.encoder
    sounds = rng.normal(size=(3, encoder.spec.frames, encoder.spec.mels)).astype(np.float32)
    longest = 0 if encoder is module else module.max_target_length
    lengths = [min(n, longest) for n in (5, 9, 1)]
    targets = rng.integers(0, loaded.config.vocab_size, (3, max(lengths)))
    single = torch_outputs(torch_model, sounds, targets)
    torch_model = torch_model.double()
    with softmax_of_float64():
        expected = torch_outputs(torch_model, sounds, targets)
    alone = _encoder_outputs(encoder, head, sounds) if encoder is module else _outputs(module, head, sounds, targets)
    for name, value in expected.items():
        say(f"sounds: {name}", largest(value - np.asarray(alone[name])), largest(value - single[name]))
    if encoder is not module:
        packed = np.asarray(_packed(module, sounds, targets, tuple(lengths)))
        real = np.concatenate([expected["hidden"][row, :n] for row, n in enumerate(lengths)])
        own = np.concatenate([single["hidden"][row, :n] for row, n in enumerate(lengths)])
        say("sounds, packed into one row: hidden", largest(real - packed), largest(real - own))


def torch_outputs(model: Any, sounds: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    features = torch.tensor(sounds).permute(0, 2, 1).to(next(model.parameters()).dtype)
    words = {"decoder_input_ids": torch.tensor(targets)} if targets.size else {}
    with torch.no_grad():
        if not words:
            result = {"encoded": model.encoder(features).last_hidden_state}
        else:
            base = getattr(model, "model", model)(features, **words)
            result = {"encoded": base.encoder_last_hidden_state, "hidden": base.last_hidden_state}
        if not words or hasattr(model, "proj_out"):
            result["logits"] = model(features, **words).logits
    return {name: value.numpy() for name, value in result.items()}


@nnx.jit
def _encoder_outputs(module: Any, head: Any, sounds: Any) -> dict[str, jax.Array]:
    result = {"encoded": module(sounds)}
    if head is not None:
        places = np.zeros((len(sounds), 1), np.int32)
        vectors = module.read_rows(RowImages(sounds[:, None], places))
        result["logits"] = head(module, vectors, places + 1, 1)[:, 0]
    return result


@nnx.jit
def _outputs(module: Any, head: Any, sounds: Any, targets: Any) -> dict[str, jax.Array]:
    rows, length, vectors = len(sounds), targets.shape[1], module.image_vectors
    places = np.tile(np.arange(vectors, dtype=np.int32), (rows, 1))
    ones, zeros = np.ones((rows, length), np.int32), np.zeros_like(places)
    encoded = module.encode(zeros, zeros + 1, places, images=RowImages(sounds[:, None], places))
    numbers = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    hidden = module.decode(targets, ones, numbers, encoded, zeros + 1)
    return {"encoded": encoded, "hidden": hidden} | ({} if head is None else {"logits": head(module, hidden)})


@nnx.jit(static_argnames="lengths")
def _packed(module: Any, sounds: Any, targets: Any, lengths: tuple[int, ...]) -> jax.Array:
    """[tokens, hidden]: the first `lengths` hidden states of each target, with all sounds in one row."""
    count, vectors = len(sounds), module.image_vectors
    places = np.arange(count * vectors, dtype=np.int32)[None]
    images = RowImages(sounds[None], places)
    encoded = module.encode(places * 0, places // vectors + 1, places % vectors, images=images)
    segments = np.repeat(np.arange(1, count + 1, dtype=np.int32), lengths)[None]
    numbers = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])[None]
    rows = np.repeat(np.arange(count), lengths)
    tokens = targets[rows, numbers[0]][None]
    return module.decode(tokens, segments, numbers, encoded, places // vectors + 1)[0]


def compare_speech(model: Any, loaded: Any, head: Any, rng: np.random.Generator) -> bool:
    """Compares greedy generation for random spectrograms."""
    from instructrec_jax.distributed.mesh import make_mesh
    from instructrec_jax.distributed.mesh_config import MeshConfig

    encoder, start = loaded.module.encoder, loaded.config.decoder_start_token_id
    sounds = rng.normal(size=(3, encoder.spec.frames, encoder.spec.mels)).astype(np.float32)
    steps = min(GENERATED, loaded.module.max_target_length - 1)
    graphdef, state = nnx.split(Model(loaded.module, head))
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    limits = {"max_length": loaded.module.max_length, "max_answer": loaded.module.max_target_length}
    decoder = Decoder(graphdef, mesh, TokenRules(start=start), encoder_decoder=True, **limits)
    place = np.arange(loaded.module.image_vectors, dtype=np.int32)
    images = [RowImages(one[None, None], place[None]) for one in sounds]
    settings = GenerationConfig(max_new_tokens=steps, batch_size=3)
    found = dict(decoder.answer(nnx.to_pure_dict(state), [place * 0] * 3, settings, images=images))
    actual = np.array([found[row].tokens for row in range(3)])
    model.generation_config = transformers.GenerationConfig(decoder_start_token_id=start, pad_token_id=0)
    features = torch.tensor(sounds).permute(0, 2, 1)
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "eos_token_id": None}
    # transformers' own generate of Whisper cuts the special tokens of real checkpoints out of the answers
    expected = transformers.GenerationMixin.generate(model, features, **options).numpy()[:, -steps:]
    equal = int((expected == actual).sum())
    good = equal == expected.size
    print(f"  {'ok  ' if good else 'FAIL'} greedy generation: {equal} of {expected.size} tokens equal")
    return good
