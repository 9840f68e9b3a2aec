"""Writing HuggingFace folders: what transformers opens, in the dtypes of the file, in one piece or several."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones import reading, writing
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.backbones.writing import save_pretrained


def load(folder, **options):
    return load_backbone(folder, rngs=nnx.Rngs(0), **options)


def batch(rows=1, length=6):
    place = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return place + 1, jnp.ones((rows, length), jnp.int32), place, place * 0


def test_modernbert_starts_as_in_transformers(make_checkpoint):
    """Standard deviations of fresh kernels, against those of a network that transformers initialized."""
    settings = dict(vocab_size=50, hidden_size=64, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0)
    config = transformers.ModernBertConfig(**settings, intermediate_size=96, initializer_range=0.1)
    torch.manual_seed(0)
    theirs = transformers.ModernBertForSequenceClassification(config).state_dict()
    head = build_head(config, "sequence", 64, rngs=nnx.Rngs(0))
    tensors = writing.export_tensors(
        reading.build_backbone(config, rngs=nnx.Rngs(0)), config, head=head, head_kind="sequence"
    )
    assert set(tensors) == set(theirs)
    for name, ours in tensors.items():
        if ours.ndim == 2:
            assert ours.std() == pytest.approx(float(theirs[name].std()), rel=0.15), name


def test_transformers_opens_what_we_write(make_checkpoint, tmp_path):
    """A bare network and a fresh head of ours, written in several shards: the same logits in PyTorch."""
    loaded = load(make_checkpoint("bert"))
    head = build_head(loaded.config, "sequence", 3, rngs=nnx.Rngs(4))
    head.output.bias[...] = jnp.array([1.0, -2.0, 3.0])
    save_pretrained(
        tmp_path,
        loaded.module,
        loaded.config,
        report=loaded.report,
        head=head,
        head_kind="sequence",
        max_shard_bytes=9999,
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens, segments, positions, types = batch(2)
    hidden = loaded.module(tokens, segments, positions, types)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(np.asarray(tokens)).long()).logits.numpy()
    np.testing.assert_allclose(head(loaded.module, hidden, segments, 1)[:, 0], expected, atol=1e-5)


def test_written_dtype(make_checkpoint, tmp_path):
    loaded = load(make_checkpoint("distilbert", dtype=torch.float16))
    tensors = writing.export_tensors(loaded.module, loaded.config, report=loaded.report)
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float16)}
    tensors = writing.export_tensors(loaded.module, loaded.config, report=loaded.report, dtype="bfloat16")
    assert {str(t.dtype) for t in tensors.values()} == {"bfloat16"}
    loaded.module.embedding_norm.scale[...] = jnp.full(32, 1e6)
    with pytest.raises(ValueError, match="embeddings.LayerNorm.weight.*float16"):
        save_pretrained(tmp_path, loaded.module, loaded.config, report=loaded.report)
