"""All checks that need a GPU: `python scripts/gpu_checks.py --model FOLDER_OF_MINILM`.

    kernels    cuDNN's attention against plain attention, packed rows, forward and gradients, bfloat16
    training   tokens/s and MFU of a Llama (hidden 512, 8 layers, 4 x 512 tokens), with PyTorch's on the same card
    decoding   greedy tokens/s of the same network, 8 prompts

Only the folder's tokenizer is used. `--tiny` runs the same code with small sizes on any device. Exits with 1 if a check
fails. Without PyTorch, measures only ours and prints a note.
"""

import argparse
import functools
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_training import Work, flops, make_llama, open_ours, open_torch
from flax import nnx

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones import attention_kernels as kernels
from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.reading import load_backbone, load_head
from instructrec_jax.distributed.chips import peak_flops
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.inference.decoding import Decoder
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.tasks.base import Model

TOLERANCE = 0.03  # of bfloat16 against float32: 8 bits of mantissa, values around 1, sums of dozens of values


# ---------------------------------------------------------------- kernels


def check_kernels(length: int) -> bool:
    """Largest difference of attention with the chosen kernel in bfloat16 from plain attention in float32."""
    rng = np.random.default_rng(0)
    segments, positions = np.zeros((2, length), np.int32), np.zeros((2, length), np.int32)
    for row, ends in enumerate(([length // 3, length - 5], [length])):
        start = 0
        for number, end in enumerate(ends, 1):
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
            start = end
    shapes = [(2, length, heads, 64) for heads in (8, 4, 4)]
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    weights = jnp.asarray(rng.normal(size=shapes[0]), jnp.float32)

    def loss(options: dict[str, Any], *x: jax.Array) -> Any:
        y = attention(*x, segment_ids=jnp.asarray(segments), positions=jnp.asarray(positions), **options).astype(
            jnp.float32
        )
        return jnp.sum(y * weights), y

    good = True
    cases: tuple[dict[str, Any], ...] = ({}, {"causal": True}, {"causal": True, "window": length // 4})
    for options in cases:
        run = jax.jit(jax.value_and_grad(functools.partial(loss, options), (0, 1, 2), has_aux=True))
        low = [x.astype(jnp.bfloat16) for x in inputs]
        nothing: dict[str, Any] = {"own": True, "bias": None, "dropout": False, "soft_cap": None}
        chosen = kernels.choose(low[0], **nothing)
        (_, found), gradients = run(*low)
        with jax.default_matmul_precision("highest"):
            (_, expected), exact = run(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in inputs))
        worst = float(jnp.abs(found - expected).max())
        scaled = [
            float(jnp.abs(g.astype(jnp.float32) - e).max() / jnp.abs(e).max())
            for g, e in zip(gradients, exact, strict=True)
        ]
        fine = worst <= TOLERANCE and max(scaled) <= TOLERANCE
        good &= fine
        print(f"  {chosen:8} {options!s:36} output {worst:.4f}, gradients {max(scaled):.4f}  {'' if fine else 'WRONG'}")
    return good


# ---------------------------------------------------------------- training and decoding


def speed(steps: Iterator[tuple[float, int]], count: int) -> float:
    """Tokens/s of N steps, after three steps for compilation and warm-up."""
    for _ in range(3):
        next(steps)
    began, tokens = time.perf_counter(), 0
    for _ in range(count):
        tokens += next(steps)[1]
    return tokens / (time.perf_counter() - began)


def check_training(work: Work, steps: int) -> None:
    peak = peak_flops(jax.devices()[0])
    systems: dict[str, Callable[[Work], Iterator[tuple[float, int]]]] = {"ours": open_ours}
    if importlib.util.find_spec("torch") is None:
        print("  PyTorch is not installed: measuring only ours")
    else:
        systems["PyTorch"] = open_torch
    for name, open_system in systems.items():
        tokens = speed(open_system(work), steps)
        mfu = f", MFU {tokens * flops(work) / peak:.0%} of {peak / 1e12:.0f} TFLOP/s" if peak else ""
        print(f"  {name:8} {tokens:12,.0f} tokens/s{mfu}")


def check_decoding(folder: str, prompt: int, new: int, vocab: int) -> None:
    loaded = load_backbone(folder, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    build = functools.partial(build_head, loaded.config, "lm", vocab)
    head, _ = load_head(folder, "lm", lambda key: build(rngs=nnx.Rngs(params=key)), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(Model(loaded.module, head))
    decoder = Decoder(
        graphdef, make_mesh(MeshConfig(data=1), jax.devices()[:1]), TokenRules(), max_length=512, encoder_decoder=False
    )
    params = nnx.to_pure_dict(state)
    asked = list(np.random.default_rng(0).integers(1, vocab, (8, prompt)).astype(np.int32))
    config = GenerationConfig(max_new_tokens=new, batch_size=8)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        dict(decoder.answer(params, asked, config))
        times.append(time.perf_counter() - began)
    print(f"  ours     {8 * new / min(times[1:]):12,.0f} tokens/s   = 8 x {new} / the fastest of 3 whole answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of all-MiniLM-L6-v2, for its tokenizer")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on any device")
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform != "gpu" and not options.tiny:
        raise SystemExit(f"the device is {device.device_kind}, not a GPU: add --tiny to run small checks on it.")
    print(f"{device.device_kind}, jax {jax.__version__}")
    print(f"attention, bfloat16 against float32 (tolerance {TOLERANCE}; gradients relative to their maximum):")
    good = check_kernels(128 if options.tiny else 1024)
    with tempfile.TemporaryDirectory() as folder:
        make_llama(folder, options.model, layers=1 if options.tiny else 8)
        work = Work("decoder", folder, "", threads=2, steps=3, on_gpu=device.platform == "gpu")
        print("training, 4 x 512 tokens per step, AdamW; MFU = tokens/s x FLOP per token / peak FLOP/s:")
        check_training(work, steps=1 if options.tiny else 50)
        print("decoding:")
        check_decoding(folder, prompt=16 if options.tiny else 64, new=4 if options.tiny else 64, vocab=32_000)
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
