"""The formula against counts made by hand from the sizes of the networks."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from helpers import Setup

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.data.loader import to_devices
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.planning import hlo
from instructrec_jax.planning.compiled_step import planning_folder, texts_of
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.training import flops
from instructrec_jax.training.flops import Texts
from instructrec_jax.training.state import merge_params

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
        found = flops.step_flops(model.params, model.is_frozen, read_config(folder), texts, tied=tied)
        return found.products, found.attention + found.attention_backward


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


# ---------------------------------------------------------------- against compiled programs


def counted_products(program: hlo.Program) -> float:
    """FLOP of all matrix products of a compiled program, loops multiplied out: 2 x result x what is summed over."""

    def inside(name: str) -> float:
        shapes = {i.name: i.shape for i in program.computations[name]}
        total = 0.0
        for i in program.computations[name]:
            if i.kind == "dot":
                contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
                assert contracted is not None
                sizes = dims(shapes[i.operands[0]])
                over = math.prod(sizes[int(n)] for n in contracted[1].split(",") if n)
                total += 2.0 * math.prod(dims(i.shape)) * over
            elif i.kind in ("fusion", "call", "custom-call") and (
                below := i.attribute("calls") or i.attribute("to_apply")
            ):
                total += inside(below)
            elif i.kind == "while":
                total += hlo.trips(i, program) * inside(i.attribute("body") or "")
            elif i.kind == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
                names = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
                names += [n for n in map(i.attribute, ("true_computation", "false_computation")) if n]
                total += max(map(inside, names), default=0.0)
        return total

    return inside(program.entry)


def dims(shape: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", shape)
    assert found is not None
    return [int(size) for size in found[1].split(",") if size]


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "remat": dict(remat="full"),
    "lora and remat": dict(lora=LoraConfig(rank=2), remat="full"),
    "qlora": dict(lora=LoraConfig(rank=2), quantize="nf4"),
    "last layer": dict(train_last=1),
    "head alone": dict(freeze=["^backbone/"]),
}


@pytest.mark.parametrize(
    ("network", "kind"), [*(("bert", kind) for kind in list(KINDS)[1:]), ("llama", "full"), ("llama", "lora and remat")]
)
def test_formulas_equal_what_is_compiled(
    checkpoint: Path, language_models: dict[str, Path], tmp_path: Path, network: str, kind: str
) -> None:
    folder = checkpoint if network == "bert" else language_models[network]
    setup = Setup("classification", folder, tmp_path, **KINDS[kind])
    batch = setup.batch()
    step: Any = setup.step
    program = hlo.parse(step.lower(setup.state, to_devices(batch, setup.mesh)).compile().as_text())
    params = merge_params(setup.state.params, setup.state.frozen)
    texts = texts_of(batch, setup.task)
    found = flops.step_flops(params, setup.model.is_frozen, read_config(folder), texts, tied=False)
    remat = KINDS[kind].get("remat", "none")
    # without a kernel for it, attention computes the half that a causal mask hides too
    attention = found.attention_with(remat) * (2 if texts.causal else 1)
    # The lowest trained layer needs no gradient of its input, where it is no part of a longer loop; and a pre-norm
    # layer does not repeat its last product for a gradient of LoRA alone.
    tolerance = {("bert", "last layer"): 0.07, ("llama", "lora and remat"): 0.04}.get((network, kind), 1e-6)
    assert counted_products(program) == pytest.approx(found.products_with(remat) + attention, rel=tolerance)
    assert found.model == pytest.approx(found.products + found.attention + found.attention_backward)


def test_how_a_kernel_is_stored_does_not_count(tmp_path: Path) -> None:
    settings = ("--lora.rank", "4", "--backbone.quantize")
    counts = [counted(tmp_path, LLAMA, Texts(256, 64, True), *settings, kind) for kind in ("none", "int8", "nf4")]
    assert counts[0] == counts[1] == counts[2]


def test_remat_repeats_the_forward_pass_alone() -> None:
    """So a third more in full tuning, and half more beside LoRA, where the backward pass is as long as the forward."""
    assert flops.Flops(2, 4, 0, 0, 0, 0).products_with("full") == pytest.approx(6 * 4 / 3)
    assert flops.Flops(2, 2, 0, 0, 0, 0).products_with("full") == pytest.approx(4 * 3 / 2)
    assert flops.Flops(2, 0, 0, 0, 0, 0).products_with("full") == 2  # nothing to differentiate
    assert flops.Flops(0, 0, 0, 0, 2, 4).attention_with("dots") == 8
    assert flops.Flops(0, 0, 0, 0, 2, 4).attention_with("none", kernel=True) == 9


@pytest.mark.parametrize("length", [1, 5, 16])
@pytest.mark.parametrize("reach", [1, 4, 30])
def test_windows_against_masks(length: int, reach: int) -> None:
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    both = np.abs(distance) <= reach
    assert flops.keys_seen(length, (reach, reach), causal=False) == pytest.approx(both.sum() / length)
    back = (distance >= 0) & (distance <= reach)
    seen = flops.keys_seen(length, (reach, 0), causal=True)
    # a triangle's cells without half of those on its edge
    assert seen == pytest.approx(back.sum() / length - 0.5 * min(reach + 1, length) / length)
    assert flops.keys_seen(length, None, causal=True) == length / 2
    assert flops.keys_seen(length, None, causal=False) == length


def test_windows_are_read_from_every_kind_of_config() -> None:
    small = dict(num_hidden_layers=4, hidden_size=32, num_attention_heads=4, vocab_size=64)
    mistral = transformers.MistralConfig(**small, sliding_window=8)
    assert flops.windows(mistral, 4) == [(7, 0)] * 4
    gemma = transformers.Gemma3TextConfig(
        **small, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
    )
    assert flops.windows(gemma, 4) == [(7, 0), None, (7, 0), None]
    modern = transformers.ModernBertConfig(**small, local_attention=8, global_attn_every_n_layers=3)
    assert flops.windows(modern, 4) == [None, (4, 4), (4, 4), None]
    assert flops.windows(transformers.LlamaConfig(**small), 4) == [None] * 4
    assert flops.windows(transformers.Qwen2Config(**small, sliding_window=8, use_sliding_window=False), 4) == [None] * 4


def test_a_head_on_vectors_that_were_made_before_counts_alone() -> None:
    params = {
        "backbone": {"layers": {"block0": {"kernel": np.zeros((2, 8, 8))}}},
        "head": {"output": {"kernel": np.zeros((8, 3))}},
    }
    texts = Texts(10, 5, False)
    found = flops.step_flops(params, lambda path: path.startswith("backbone/"), None, texts, tied=False, backbone=False)
    assert found.model == 4 * 10 * 24
