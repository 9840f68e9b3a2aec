"""Tiny encoder–decoders beside those of transformers: shared by the tests of seq2seq, t5, bart and reading."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones.reading import load_backbone, load_head

LM = "ForConditionalGeneration"
TOLERANCE = 1e-4


def edited(folder: Path, out: Path, tensors=None, **config) -> Path:
    """A copy of a checkpoint with some tensors and config fields changed."""
    out.mkdir(exist_ok=True)
    content = json.loads((folder / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(content))
    weights = load_file(folder / "model.safetensors")
    save_file(tensors(weights) if tensors else weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def load(folder, **options):
    return load_backbone(folder, rngs=nnx.Rngs(0), **options)


def load_both(folder):
    """The loaded network, its head, and the report of both."""
    loaded = load(folder)

    def build(key):
        return build_head(loaded.config, "lm", loaded.config.vocab_size, rngs=nnx.Rngs(params=key))

    head, report = load_head(folder, "lm", build, rngs=nnx.Rngs(0))
    return loaded, head, loaded.report + report


def texts(lengths, length, seed=0, vocab=61):
    """(tokens, segment_ids, positions), int32 [rows, length]: one text a row, padding behind it."""
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (len(lengths), length))
    real = place < np.array(lengths)[:, None]
    tokens = np.random.default_rng(seed).integers(3, vocab, real.shape, dtype=np.int32)
    return np.where(real, tokens, 1), real.astype(np.int32), np.where(real, place, 0)


@nnx.jit
def run(network, source, target, source_keys=None, target_keys=None):
    encoded = network.encode(*source, dropout=source_keys)
    return encoded, network.decode(*target, encoded, source[1], dropout=target_keys)


def run_torch(model, source, target):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(source[0]).long(),
            attention_mask=torch.tensor(source[1]).long(),
            decoder_input_ids=torch.tensor(target[0]).long(),
            decoder_attention_mask=torch.tensor(target[1]).long(),
        )


def open_torch(folder, name):
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def largest(a, b, where):
    return float(np.abs(np.asarray(a) - np.asarray(b))[where != 0].max())


SOURCE, TARGET = texts((23, 1, 9, 31), 31), texts((7, 12, 19, 1), 19, seed=1)
