"""The verb: what a step takes of chips that are not there."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from instructrec_jax import assemble
from instructrec_jax.backbones.config import BackboneConfig
from instructrec_jax.config import Config
from instructrec_jax.data.config import DataConfig
from instructrec_jax.distributed.mesh import MeshConfig, make_mesh
from instructrec_jax.plan import main, plan
from instructrec_jax.planning.chips import CHIPS
from instructrec_jax.planning.flops import product_parameters, step_flops
from instructrec_jax.planning.report import what_to_change
from instructrec_jax.planning.search import choices
from instructrec_jax.planning.step import named_architectures
from instructrec_jax.tasks import LanguageModelConfig

ROOT = Path(__file__).parents[1]


def settings(network: Path | str, **mesh: Any) -> Config:
    return Config(
        backbone=BackboneConfig(str(network), dtype="float32"),
        task=LanguageModelConfig(template="plain"),
        data=DataConfig(batch_size=None, batch_rows=16, max_length=64),
        mesh=MeshConfig(**mesh),
    )


@pytest.fixture(scope="module")
def found(language_models: dict[str, Path]) -> Any:
    return plan(settings(language_models["llama"], data=1, fsdp=8), "cpu:8")


def test_bytes_of_a_chip_are_those_of_the_arrays(found: Any, language_models: dict[str, Path]) -> None:
    config = settings(language_models["llama"], data=1, fsdp=8)
    task = assemble.open_task(config, language_models["llama"])
    model = assemble.load_model(config, task, language_models["llama"], make_mesh(config.mesh))
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model.params))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert found.parameters == own < whole / 7
    assert 2 * own <= found.optimizer < 2 * own + 100
    assert found.peak >= 3 * own + found.temporaries
    assert found.mesh == {"data": 1, "fsdp": 8, "context": 1, "tensor": 1} and found.tokens == 16 * 64
    assert found.collectives.sizes["all-gather"] > 0
    assert found.seconds == {} and found.fits  # nobody says what a virtual device can do


def test_flops_are_those_of_the_formula(found: Any, language_models: dict[str, Path]) -> None:
    """Counted by hand from config.json."""
    c = json.loads((language_models["llama"] / "config.json").read_text())
    hidden, heads, groups = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    dim = c.get("head_dim") or hidden // heads
    layer = hidden * dim * (2 * heads + 2 * groups) + 3 * hidden * c["intermediate_size"]
    matrices = c["num_hidden_layers"] * layer + hidden * c["vocab_size"]  # the output, tied or not
    attention = 12 * c["num_hidden_layers"] * heads * dim * 64 / 2
    assert found.model_flops * 8 == pytest.approx((6 * matrices + attention) * 16 * 64)


def test_the_formula_agrees_with_the_compiler_where_nothing_is_scanned() -> None:
    """Two layers of products written out: XLA counts 2 FLOP for each multiply and add, forward and backward."""
    params = {"backbone": {"a": {"kernel": np.zeros((32, 64))}, "b": {"kernel": np.zeros((64, 16))}}, "head": {}}

    def loss(p: Any, x: Any) -> Any:
        return ((x @ p["backbone"]["a"]["kernel"]) @ p["backbone"]["b"]["kernel"]).sum()

    x = np.zeros((128, 32))
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x).compile()
    ours = step_flops(params, lambda path: False, _NoAttention(), 128, 1, causal=False)
    assert program.cost_analysis()["flops"] == pytest.approx(ours, rel=0.05)
    frozen = product_parameters(params, lambda path: "a/" in path, tied=False)
    assert frozen == (64 * 16, 32 * 64)


class _NoAttention:
    hidden_size, num_hidden_layers, num_attention_heads, tie_word_embeddings = 1, 0, 1, False


def test_seventy_billion_parameters_take_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"llama2-7b", "llama3-8b", "llama3-70b", "t5-3b", "minilm-l6"} <= set(named_architectures())
    config = settings("llama3-70b", data=1, fsdp=8)
    from instructrec_jax.planning.step import planning_folder

    with planning_folder("llama3-70b") as (folder, stands_in):
        assert stands_in
        task = assemble.open_task(config, folder)
        model = assemble.abstract_model(config, task, folder, make_mesh(config.mesh))
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.params)]
    assert sum(sizes) == pytest.approx(70.55e9, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5x:2x2"], "is a chip and how many lie in each direction"),
        (["--topology", "cpu:99"], "xla_force_host_platform_device_count=99"),
        (["--topology", "cpu:8", "--slices", "0"], "--slices must be at least 1"),
        (["--topology", "cpu:4", "--slices", "2"], "dcn_data"),
        (["--topology", "cpu:8", "--mesh.fsdp", "3"], r"mesh.fsdp \(3\)"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([*arguments, "--backbone.path", "minilm-l6", "--task.type", "masked_lm"])


def test_slices_are_the_outer_part(language_models: dict[str, Path]) -> None:
    found = plan(settings(language_models["llama"], dcn_data=2, fsdp=4), "cpu:4", slices=2)
    assert found.mesh["data"] == 2 and found.mesh["fsdp"] == 4 and found.chips == 8
    assert 0 < found.between_slices < sum(found.collectives.sent.values())


def test_advice_names_settings(found: Any) -> None:
    big = replace(found, peak=10**12, temporaries=9 * 10**11, chip=CHIPS["v5e"])
    assert not big.fits
    advice = what_to_change(big, settings("llama2-7b"))
    assert advice[0].startswith("--backbone.remat attention") and any("--accumulation 2" in line for line in advice)


def test_the_search_tries_meshes_and_remat() -> None:
    tried = list(choices(settings("llama2-7b"), 8, 1))
    assert {(c.mesh.data, c.mesh.fsdp, c.mesh.tensor) for _, c in tried} >= {(1, 8, 1), (1, 4, 2), (2, 4, 1), (8, 1, 1)}
    assert {c.backbone.remat for _, c in tried} == {"none", "dots", "full"}


def test_the_command_line(language_models: dict[str, Path]) -> None:
    """In a process of its own: it makes room for the virtual devices by itself."""
    options = ["--backbone.path", str(language_models["llama"]), "--backbone.dtype", "float32"]
    sizes = ["--data.batch_size", "null", "--data.batch_rows", "8", "--data.max_length", "64"]
    command = [sys.executable, "-m", "instructrec_jax.plan", "--topology", "cpu:4", *options, *sizes]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for text in ("cpu:4: 4 chips, mesh data 4", "parameters", "peak", "model TFLOP", "all-reduce"):
        assert text in done.stdout, done.stdout


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra plan (libtpu)")
def test_a_step_for_a_tpu_uses_the_splash_kernel(language_models: dict[str, Path]) -> None:
    """Compiled for four chips that are not there, with rows split over them."""
    from instructrec_jax.planning.chips import topology_devices
    from instructrec_jax.planning.step import compile_step

    config = settings(language_models["llama"], data=1, fsdp="auto")
    config = replace(config, data=replace(config.data, max_length=128))
    mesh = make_mesh(config.mesh, list(topology_devices("v5e:2x2", 1)))
    step = compile_step(config, language_models["llama"], mesh)
    assert "splash" in step.compiled.as_text()
    own = sum(
        int(np.prod(where.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, where in zip(jax.tree.leaves(step.state), jax.tree.leaves(step.shardings), strict=True)
    )
    assert step.compiled.memory_analysis().alias_size_in_bytes >= own  # donated
