"""Trained rows of word embeddings: against a table in which they are, in PEFT's files, and in a run."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from helpers import examples, task_config
from lora_networks import CONFIGS, TOKENS, VOCABULARY, our_logits, trained
from safetensors.numpy import load_file, save_file
from tiny_pictures import image_network
from tiny_runs import tiny_run

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.heads import build_head
from instructrec_jax.adapters.lora import add_lora
from instructrec_jax.adapters.peft import TENSORS, read_peft, write_peft
from instructrec_jax.adapters.peft_config import CONFIG
from instructrec_jax.adapters.quantized import quantize_tables
from instructrec_jax.adapters.token_rows import (
    TokenRows,
    add_token_rows,
    added_tokens,
    merge_token_rows,
    read_rows,
    written_rows,
)
from instructrec_jax.backbones.reading import load_backbone, load_head
from instructrec_jax.export import main as export
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train

NEW = sorted({int(TOKENS[0, 0]), int(TOKENS[1, 3]), VOCABULARY - 1})
CLASSES = {
    "llama": transformers.AutoModelForCausalLM,  # a table of its own in the head
    "qwen2": transformers.AutoModelForCausalLM,  # one table
    "t5": transformers.AutoModelForSeq2SeqLM,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, auto in CLASSES.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        auto.from_config(CONFIGS[name]()).save_pretrained(found[name])
    return found


def opened(folder: Path) -> tuple[Any, Any, Any]:
    loaded = load_backbone(folder, rngs=nnx.Rngs(0))

    def build(key: jax.Array) -> nnx.Module:
        return build_head(loaded.config, "lm", VOCABULARY, rngs=nnx.Rngs(params=key))

    return loaded.module, load_head(folder, "lm", build, rngs=nnx.Rngs(0))[0], loaded.config


def with_rows(folder: Path) -> tuple[Any, Any, Any, LoraConfig]:
    """A network with LoRA and rows, both moved as by training."""
    backbone, head, config = opened(folder)
    lora = LoraConfig(rank=2)
    add_lora(backbone, config, lora, nnx.Rngs(1))
    trained(backbone)
    add_token_rows(nnx.Dict(backbone=backbone, head=head), NEW)
    for owner in (backbone.word_embeddings, head):
        if isinstance(owner.table, TokenRows):
            rows = owner.table.lora.rows
            rows[...] = rows[...] + jnp.sin(jnp.arange(rows.size, dtype=jnp.float32)).reshape(rows.shape)
    return backbone, head, config, lora


@pytest.mark.parametrize("name", CLASSES)
def test_peft_opens_what_is_written_with_the_same_logits(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    import peft

    kind, task = ("seq2seq", "SEQ_2_SEQ_LM") if name == "t5" else ("lm", "CAUSAL_LM")
    backbone, head, config, lora = with_rows(bases[name])
    ours = our_logits(backbone, head, kind)
    plain, plain_head, _ = opened(bases[name])
    assert np.abs(ours - our_logits(plain, plain_head, kind)).max() > 0.1
    write_peft(tmp_path, backbone, config, lora, str(bases[name]), task, None, "lm", language_head=head)
    indices = read_json(tmp_path / CONFIG, dict)["trainable_token_indices"]
    assert indices == (NEW if name != "llama" else {"embed_tokens": NEW, "lm_head": NEW})
    model = peft.PeftModel.from_pretrained(CLASSES[name].from_pretrained(bases[name]), tmp_path).eval()
    inputs = {"input_ids": torch.tensor(TOKENS).long()}
    inputs |= {"decoder_input_ids": torch.tensor(TOKENS[::-1].copy()).long()} if name == "t5" else {}
    with torch.no_grad():
        theirs = model(**inputs).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    read_peft(tmp_path, plain, config, plain_head, "lm")
    np.testing.assert_allclose(our_logits(plain, plain_head, kind), ours, atol=1e-6, rtol=0)
    merge_token_rows(nnx.List([backbone, head]))
    assert isinstance(backbone.word_embeddings.table, nnx.Param)
    np.testing.assert_allclose(our_logits(backbone, head, kind), ours, atol=2e-6, rtol=2e-6)  # a few ulp of values to 4


@pytest.mark.parametrize("quantized", [False, True])
def test_rows_are_those_of_a_table_that_has_them(quantized: bool, bases: dict[str, Path]) -> None:
    """Lookup, logits and gradients; ids outside the table are NaN, as ever."""
    backbone, head, _ = opened(bases["qwen2"])
    if quantized:
        quantize_tables(nnx.Dict(backbone=backbone, head=head), "none")
    before = backbone.word_embeddings(jnp.arange(VOCABULARY))
    add_token_rows(backbone, NEW)
    table = backbone.word_embeddings.table
    np.testing.assert_allclose(backbone.word_embeddings(jnp.arange(VOCABULARY)), before, atol=1e-7)
    table.lora.rows[...] = 2 * table.lora.rows[...] + 1
    dense = np.array(before)
    dense[NEW] = 2 * dense[NEW] + 1
    np.testing.assert_allclose(table.dense(), dense, atol=1e-6)
    np.testing.assert_allclose(table.rows(jnp.asarray(TOKENS)), dense[TOKENS], atol=1e-6)
    assert np.isnan(table.rows(jnp.asarray([VOCABULARY + 1]))).all()
    x = np.random.default_rng(0).normal(size=(2, 5, dense.shape[1])).astype(np.float32)
    np.testing.assert_allclose(table.logits(jnp.asarray(x)), x @ dense.T, atol=1e-4)
    base = table.base

    def total(rows: jax.Array) -> jax.Array:
        return TokenRows(base, rows, NEW).rows(jnp.asarray(TOKENS)).sum()

    counts = [int(np.sum(TOKENS == token)) for token in NEW]
    np.testing.assert_array_equal(jax.grad(total)(table.lora.rows[...])[:, 0], counts)
    merge_token_rows(backbone)
    np.testing.assert_allclose(backbone.word_embeddings(jnp.asarray(TOKENS)), dense[TOKENS], atol=1e-6)


def test_a_run_trains_these_rows_and_no_other_row(coded: dict[str, Path], tmp_path: Path) -> None:
    """A generative recommender with LoRA: rows of ids change, those of words do not; both exports say the same."""
    task = task_config("generative", tmp_path / "catalogue", beams=20)
    lora = LoraConfig(rank=2, token_rows="added")
    made: dict[str, Any] = dict(task=task, lora=lora, steps=3, evaluation__every=0, data__max_length=64)
    made |= dict(evaluation__fuse=False)
    config = tiny_run("retrieval", coded["codes llama"], tmp_path, **made)
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [e.to_record() for e in examples("generative", 8)])
    train(config)
    ids = added_tokens(Run.open(config.run_dir).task.context.tokenizer)
    export([config.run_dir, "--out", str(tmp_path / "merged")])
    export([config.run_dir, "--format", "peft", "--out", str(tmp_path / "adapter")])
    name = "model.embed_tokens.weight"
    old, new = (load_file(f / "model.safetensors")[name] for f in (coded["codes llama"], tmp_path / "merged"))
    changed = np.flatnonzero((old != new).any(1)).tolist()
    assert changed and set(changed) <= set(ids)
    adapter = load_file(tmp_path / "adapter" / TENSORS)
    rows = adapter["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    np.testing.assert_array_equal(rows, new[ids])
    assert len(rows) == len(ids) and not (tmp_path / "merged" / "adapter_config.json").exists()


def test_what_cannot_be_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora.token_rows is added, but the tokenizer has no added tokens"):
        added_tokens(None)
    backbone, head, config, lora = with_rows(bases["qwen2"])
    with pytest.raises(ValueError, match="rows that are trained already"):
        add_token_rows(backbone, NEW)
    with pytest.raises(ValueError, match="token 61 is beyond the 61 rows"):
        add_token_rows(opened(bases["qwen2"])[0], [3, VOCABULARY])
    write_peft(tmp_path, backbone, config, lora, "base", "CAUSAL_LM", None, "lm", language_head=head)
    settings = read_json(tmp_path / CONFIG, dict)

    def read(tokens: Any) -> None:
        (tmp_path / CONFIG).write_text(json.dumps(settings | {"trainable_token_indices": tokens}))
        fresh, fresh_head, _ = opened(bases["qwen2"])
        read_peft(tmp_path, fresh, config, fresh_head, "lm")

    for broken in ([1.5], ["a"], [-1], [True], [3, 3], {"embed_tokens": 3}, "abc", 3):
        with pytest.raises(ValueError, match="trainable_token_indices"):
            read(broken)
    with pytest.raises(ValueError, match=r"should have shape \[2, 32\].*there is shape \[3, 32\]"):
        read(NEW[:2])
    with pytest.raises(ValueError, match="names other, but this qwen2 network has tables of words in model.embed_tok"):
        read({"embed_tokens": NEW, "other": NEW})
    read(settings["trainable_token_indices"])
    tensors = {k: v for k, v in load_file(tmp_path / TENSORS).items() if "token_adapter" not in k}
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ValueError, match="there is no such tensor"):
        read(NEW)


def test_a_network_without_words_has_no_rows(tmp_path: Path) -> None:
    loaded = load_backbone(image_network("vit", tmp_path), images=True, rngs=nnx.Rngs(0))
    assert written_rows(loaded.module, None, loaded.config, "").indices is None
    with pytest.raises(ValueError, match="a.json: trainable_token_indices is for word embeddings.*vit"):
        read_rows({}, [1], loaded.module, None, loaded.config, "", Path("a.json"))
