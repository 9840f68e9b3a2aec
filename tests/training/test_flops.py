"""The formula against counts made by hand from the sizes of the networks."""

import json
from pathlib import Path

import jax
import pytest

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.planning.compiled_step import planning_folder
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.training import flops
from instructrec_jax.training.flops import Texts

HIDDEN, LAYERS, HEADS, KEY_HEADS, MLP, VOCAB = 64, 3, 4, 2, 96, 320
LLAMA = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=MLP,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KEY_HEADS,
    max_position_embeddings=128,
)
T5 = dict(
    model_type="t5",
    architectures=["T5ForConditionalGeneration"],
    vocab_size=VOCAB,
    d_model=HIDDEN,
    d_kv=8,
    d_ff=MLP,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=HEADS,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    decoder_start_token_id=0,
)


def counted(tmp_path: Path, sizes: dict, texts: Texts, *settings: str) -> tuple[float, float]:
    """(products, attention) of a language model of these sizes."""
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    given = ["--task.type", "language_model", "--backbone.path", str(tmp_path), "--data.max_length", "64", *settings]
    config = parse(Config, given, default=None)
    with planning_folder(config.backbone.path) as (folder, stands_in):
        assert stands_in  # config.json is enough
        task = models.open_task(config, folder)
        model = models.abstract_model(config, task, folder, make_mesh(config.mesh, jax.devices()[:1]))
        tied = not flops.has_output_table(model.params)
        return (
            flops.product_flops(model.params, model.is_frozen, texts, tied=tied),
            flops.attention_flops(read_config(folder), texts),
        )


@pytest.mark.parametrize("tied", [False, True])
def test_decoder(tmp_path: Path, tied: bool) -> None:
    products, attention = counted(tmp_path, LLAMA | {"tie_word_embeddings": tied}, Texts(256, 64, True))
    layer = HIDDEN * HIDDEN * (2 + 2 * KEY_HEADS / HEADS) + 3 * HIDDEN * MLP
    # words are looked up, which costs nothing; the output is a product, with the same table or another
    assert products == 6 * 256 * (LAYERS * layer + HIDDEN * VOCAB)
    # scores and sums: a product each of [64, 16] and [16, 64], 2 FLOP a number, half of them seen; three passes
    assert attention == 3 * (256 / 64) * LAYERS * HEADS * 2 * (2 * 64 * 64 * 16) / 2


def test_what_is_frozen_has_no_gradient_of_its_own(tmp_path: Path) -> None:
    rank = 4
    products, _ = counted(tmp_path, LLAMA, Texts(256, 64, True), "--lora.rank", str(rank))
    query, key = HIDDEN * HIDDEN, HIDDEN * HIDDEN * KEY_HEADS // HEADS
    layer = 2 * query + 2 * key + 3 * HIDDEN * MLP
    added = rank * (2 * 2 * HIDDEN + 2 * (HIDDEN + HIDDEN * KEY_HEADS // HEADS) + 3 * (HIDDEN + MLP))
    assert products == 256 * LAYERS * (4 * layer + 6 * added) + 256 * 4 * HIDDEN * VOCAB


def test_an_encoder_decoder_reads_each_text_on_its_side(tmp_path: Path) -> None:
    texts = Texts(256, 64, False, target_tokens=128, target_length=32)
    products, attention = counted(tmp_path, T5, texts, "--task.max_target_length", "32")
    inner = HEADS * 8
    encoder = 2 * (4 * HIDDEN * inner + 3 * HIDDEN * MLP)
    of_text = encoder + 3 * 2 * HIDDEN * inner  # and the keys and values that the decoder's layers look at
    of_answer = 3 * (4 * HIDDEN * inner + 2 * HIDDEN * inner + 3 * HIDDEN * MLP) + HIDDEN * VOCAB
    assert products == 6 * (256 * of_text + 128 * of_answer)
    pairs = 2 * 256 * 64 + 3 * 128 * (16 + 64)
    assert attention == 12 * inner * pairs
