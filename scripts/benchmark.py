"""Measurements that print their formulas: `python scripts/benchmark.py COMMAND [--option value ...]`.

Each command is one function with the defaults of its options in `COMMANDS`. What is compared is compared in one run.
"""

import argparse
import functools
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_data import data, store
from benchmark_serve import serve
from flax import nnx
from transformers import BertConfig

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import build_backbone, load_backbone, load_head
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.distributed.mesh import make_mesh, parameter_sharding
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.inference.decoding import Decoder
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.ranking.index import ItemIndex
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.tasks.base import Model

MB = 1e6


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The median time of a call in seconds, after a call that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


# ---------------------------------------------------------------- loss


def plain_loss(hidden: jax.Array, table: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    logits = jnp.einsum("rlh,vh->rlv", hidden, table, preferred_element_type=jnp.float32)
    return jnp.sum(losses.cross_entropy(logits, labels) * weights)


def loss(rows: int, length: int, width: int, vocab: int, small: int, repeats: int) -> None:
    """Loss and gradients over a vocabulary: all logits at once against chunks."""
    kinds = {"plain": plain_loss, "chunked": losses.linear_cross_entropy}
    steps = {name: jax.jit(jax.value_and_grad(function, (0, 1))) for name, function in kinds.items()}
    place = (rows, length)
    shapes = ((*place, width), (vocab, width), place, place)
    types = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    print(f"{rows} x {length} tokens, hidden size {width}, vocabulary {vocab}, float32, {jax.default_backend()}")
    print(f"all logits = 4 bytes x rows x length x vocab = {4 * rows * length * vocab / MB:,.0f} MB")
    print("memory = temporaries of value_and_grad by hidden and table (XLA's memory analysis)")
    for name, step in steps.items():
        memory: Any = step.lower(*arguments).compile().memory_analysis()
        print(f"  {name:8} {memory.temp_size_in_bytes / MB:10,.0f} MB")

    length, width, vocab = length // small, width // small, vocab // small
    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((rows, length, width), (vocab, width)))
    labels = jnp.asarray(rng.integers(0, vocab, (rows, length)), jnp.int32)
    print(f"time = median of {repeats} calls at {rows} x {length} tokens, hidden size {width}, vocabulary {vocab}")
    for share in (1.0, 0.15):
        weights = jnp.asarray(rng.random((rows, length)) < share, jnp.float32)
        for name, step in steps.items():
            took = seconds(functools.partial(step, hidden, table, labels, weights), repeats)
            print(f"  {share:4.0%} of positions have weight  {name:8} {took * 1e3:10,.1f} ms")


# ---------------------------------------------------------------- loading and writing


def resident(what: str) -> int:
    """Resident memory of this process in bytes: "VmRSS" now, "VmHWM" the peak since `reset_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def reset_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def make_checkpoint(folder: str, layers: int, width: int, vocab: int, dtype: str, shard_mb: int) -> None:
    """A random BERT."""
    sizes: dict[str, Any] = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=8)
    config = BertConfig(vocab_size=vocab, num_hidden_layers=layers, max_position_embeddings=128, **sizes)
    backbone = build_backbone(config, rngs=nnx.Rngs(0))
    save_pretrained(folder, backbone, config, dtype=dtype, max_shard_bytes=shard_mb * 1_000_000)


def in_another_process(function: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
    """Calls a function of this file several times in a process of its own, whose memory is freed afterwards."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(function, calls)


def loading(layers: int, width: int, vocab: int, dtype: str, devices: int, shard_mb: int) -> None:
    """Host memory for reading a checkpoint onto CPU devices, sharded, and for writing it."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh(MeshConfig(fsdp=devices))

    def load(folder: str) -> nnx.Module:
        return load_backbone(
            folder, rngs=nnx.Rngs(0), shardings=lambda _, shape, axes: parameter_sharding(mesh, shape, axes)
        ).module

    with tempfile.TemporaryDirectory() as root:
        tiny, large, out = (f"{root}/{name}" for name in ("tiny", "large", "out"))
        sizes = ((tiny, 2, 32, 64), (large, layers, width, vocab))
        in_another_process(make_checkpoint, [(*size, dtype, shard_mb) for size in sizes])
        files = list(Path(large).glob("*.safetensors"))
        print(f"{len(files)} files, {sum(f.stat().st_size for f in files) / MB:,.0f} MB in {dtype}; {devices} devices")

        load(tiny)  # loads the code
        reset_peak()
        before, start = resident("VmRSS"), time.perf_counter()
        module = load(large)
        took, peak = time.perf_counter() - start, resident("VmHWM")
        shards = [[s.data.nbytes for s in x.addressable_shards] for x in jax.tree.leaves(nnx.state(module))]
        total, largest = sum(map(sum, shards)), max(map(max, shards))
        extra = peak - before - total
        print(f"reading {took:.1f} s; largest slice = a device's part of a (stacked) parameter: {largest / MB:,.1f} MB")
        print(f"  peak resident - resident before - parameters ({total / MB:,.1f} MB) = {extra / MB:,.1f} MB")
        print(f"  = {extra / largest:.2f} largest slices")

        config = read_config(Path(large))
        save_pretrained(out, module, config, dtype=dtype, max_shard_bytes=shard_mb * 1_000_000)  # compiles
        reset_peak()
        before, start = resident("VmRSS"), time.perf_counter()
        save_pretrained(out, module, config, dtype=dtype, max_shard_bytes=shard_mb * 1_000_000)
        took, peak = time.perf_counter() - start, resident("VmHWM")
        largest = 4 * vocab * width
        print(f"writing {took:.1f} s; largest tensor in float32 = {largest / MB:,.1f} MB")
        print(f"  peak resident - resident before = {(peak - before) / MB:,.1f} MB")
        print(f"  = {(peak - before) / largest:.2f} largest tensors")


# ---------------------------------------------------------------- generation


def generation(
    width: int, layers: int, heads: int, vocab: int, rows: int, prompt: int, new: int, threads: int, rounds: int
) -> None:
    """Greedy generation by a random Llama on a CPU: ours and transformers.generate, alternating in each round."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(threads)
    sizes: dict[str, Any] = dict(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers)
    groups: dict[str, Any] = dict(num_attention_heads=heads, num_key_value_heads=heads // 2)
    ids: dict[str, Any] = dict(vocab_size=vocab, eos_token_id=None, pad_token_id=0)  # no answer ends early
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(max_position_embeddings=prompt + new, **sizes, **groups, **ids)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        loaded = load_backbone(folder, rngs=nnx.Rngs(0))
        build = functools.partial(build_head, loaded.config, "lm", vocab)
        head, _ = load_head(folder, "lm", lambda key: build(rngs=nnx.Rngs(params=key)), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(Model(loaded.module, head))
    params = nnx.to_pure_dict(state)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    decoder = Decoder(graphdef, mesh, TokenRules(), max_length=prompt + new, encoder_decoder=False)
    asked = np.random.default_rng(0).integers(1, vocab, (rows, prompt)).astype(np.int32)

    def ours(new: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=new, batch_size=rows)
        answers = dict(decoder.answer(params, list(asked), config))
        return [answers[row].tokens for row in range(rows)]

    def others(new: int) -> list[list[int]]:
        tokens = torch.tensor(asked).long()
        out = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new)
        return out[:, prompt:].tolist()

    print(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.0f} M parameters, float32, {threads} threads of torch")
    same = ours(new) == others(new)  # also compiles
    print(f"{rows} prompts of {prompt} tokens, {new} new tokens each, greedy; equal tokens: {'yes' if same else 'NO'}")
    ours(1)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, function in (("ours", ours), ("transformers", others)):
            for count in (1, new):
                start = time.perf_counter()
                function(count)
                times.setdefault(f"{name} {count}", []).append(time.perf_counter() - start)
    median = {name: float(np.median(each)) for name, each in times.items()}
    print(f"tokens/s = {rows} x {new} / median time of whole answers in {rounds} rounds")
    print(f"ms per step = (median time of {new} tokens - median time of 1) / {new - 1}")
    for name in ("ours", "transformers"):
        whole, first = median[f"{name} {new}"], median[f"{name} 1"]
        print(f"  {name:12} {rows * new / whole:8,.0f} tokens/s {(whole - first) / (new - 1) * 1e3:8,.1f} ms per step")


# ---------------------------------------------------------------- retrieval


def numpy_search(vectors: np.ndarray, queries: np.ndarray, k: int, block: int) -> np.ndarray:
    """NumPy's search by blocked product, argpartition and merge: item numbers [q, k], best first."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    items = np.full((len(queries), k), -1)
    for start in range(0, len(vectors), block):
        scores = queries @ vectors[start : start + block].T
        inside = np.argpartition(scores, -min(k, scores.shape[1]), axis=1)[:, -k:]
        together = np.concatenate([best, np.take_along_axis(scores, inside, 1)], axis=1)
        numbers = np.concatenate([items, start + inside], axis=1)
        order = np.argsort(-together, axis=1, kind="stable")[:, :k]
        best, items = np.take_along_axis(together, order, 1), np.take_along_axis(numbers, order, 1)
    return items


def retrieval(items: int, width: int, queries: int, k: int, rounds: int) -> None:
    """The k best of many items by inner product: ours, NumPy and faiss (if installed), alternating in each round."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((items, width), np.float32)
    asked = rng.standard_normal((queries, width), np.float32)
    print(f"{items:,} items x {width} float32 = {vectors.nbytes / MB:,.0f} MB, {queries} queries, k = {k}")
    reset_peak()
    before = resident("VmRSS")
    index = ItemIndex(vectors)
    found = {"ours": index.search(asked, k)[0]}  # also compiles
    print(f"ours, memory = peak resident - resident before (vectors) = {(resident('VmHWM') - before) / MB:,.0f} MB")
    searches: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: index.search(asked, k)[0],
        "NumPy": lambda: numpy_search(vectors, asked, k, block=16_384),
    }
    try:
        import faiss
    except ImportError:
        print("faiss is not installed: `pip install faiss-cpu` to compare with it")
    else:
        flat = faiss.IndexFlatIP(width)
        flat.add(vectors)
        searches["faiss"] = lambda: flat.search(asked, k)[1]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            start = time.perf_counter(), time.process_time()
            found[name] = search()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    print(f"queries/s = {queries} / median time in {rounds} rounds (slowest to fastest round)")
    print("CPU s = median total time of all threads, more reliable on a busy machine")
    for name, each in times.items():
        wall, work = np.median(each, axis=0)
        slow, fast = (queries / pick(each)[0] for pick in (max, min))
        same = np.mean(found[name] == found["ours"])
        print(
            f"  {name:6} {queries / wall:8,.1f} queries/s ({slow:,.1f} to {fast:,.1f}), {work:.2f} CPU s; "
            f"{same:.3%} of its results equal ours"
        )


# ---------------------------------------------------------------- predictions


def vector_width() -> str:
    """The widest vector instructions of the processor (Linux)."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    found = [name for name in ("avx512_bf16", "avx512_vnni", "avx512f", "avx2") if name in flags]
    return found[0] if found else "unknown"


def ragged_texts(count: int, seed: int) -> list[str]:
    """Texts of 2 to 200 words, most of them short."""
    rng = np.random.default_rng(seed)
    words = "the a film was good bad dull bright long short about people war love music and with very old new".split()
    sizes = np.clip(rng.lognormal(3.0, 0.9, count), 2, 200).astype(int)
    return [" ".join(rng.choice(words, size)) for size in sizes]


def predict(backbone: str, texts: int, batch: int, threads: int, rounds: int) -> None:
    """Classification of ragged texts by a tuned run, beside transformers' pipeline on the exported folder."""
    import torch
    from transformers import pipeline

    from instructrec_jax.answering.exporting import export
    from instructrec_jax.files import write_jsonl
    from instructrec_jax.runs.run import Run
    from instructrec_jax.train import train

    torch.set_num_threads(threads)
    asked = ragged_texts(texts, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"instruction": t, "output": ("a", "b", "c")[n % 3]} for n, t in enumerate(ragged_texts(32, 0))]
        write_jsonl(f"{folder}/train.jsonl", rows)
        source = f"[{{path: {folder}/train.jsonl}}]"
        settings = ["--run_dir", f"{folder}/run", "--steps", "1", "--backbone.path", backbone, "--data.train", source]
        train(parse(Config, [*settings, "--task.type", "classification", "--data.max_length", "256"], default=None))
        export(Path(f"{folder}/run"), Path(f"{folder}/hf"), format="hf")
        run = Run.open(f"{folder}/run")
        asker = run.asker(many=True)
        examples = [asker.example({"instruction": text}, "benchmark") for text in asked]
        theirs = pipeline("text-classification", f"{folder}/hf", device="cpu", dtype=torch.float32)
        kinds: dict[str, Callable[[], list[Any]]] = {
            "ours": lambda: asker.answers(examples)[0],
            "pipeline": lambda: theirs(asked, batch_size=batch),
        }
        found = {name: function() for name, function in kinds.items()}  # also compiles
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, function in kinds.items():
                start = time.perf_counter()
                found[name] = function()
                times[name].append(time.perf_counter() - start)
    same = np.mean([a.label == b["label"] for a, b in zip(found["ours"], found["pipeline"], strict=True)])
    print(f"{texts:,} texts, {backbone}, {threads} threads, {vector_width()}; the pipeline's batch size is {batch}")
    print(
        f"texts/s = {texts:,} / median time in {rounds} rounds, tokenization included; {same:.2%} of labels are equal"
    )
    for name, each in times.items():
        print(
            f"  {name:8} {texts / np.median(each):8,.0f} texts/s ({texts / max(each):,.0f} to {texts / min(each):,.0f})"
        )
    ratios = np.array(times["pipeline"]) / np.array(times["ours"])
    print(f"ours / pipeline = median over rounds of time(pipeline) / time(ours) = {np.median(ratios):.2f}")


COMMANDS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "loss": (loss, dict(rows=4, length=2048, width=1024, vocab=32_000, small=4, repeats=5)),
    "loading": (loading, dict(layers=24, width=512, vocab=30_000, dtype="float32", devices=1, shard_mb=100)),
    "generation": (
        generation,
        dict(width=512, layers=8, heads=8, vocab=32_000, rows=8, prompt=64, new=64, threads=2, rounds=5),
    ),
    "retrieval": (retrieval, dict(items=1_000_000, width=384, queries=256, k=10, rounds=3)),
    "data": (data, dict(model="HuggingFaceTB/SmolLM2-135M-Instruct", rows=200_000, compared=20_000, length=1024)),
    "store": (store, dict(rows=200_000, reads=50_000)),
    "serve": (
        serve,
        dict(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            encoder="sentence-transformers/all-MiniLM-L6-v2",
            clients=16,
            requests=32,
            texts=800,
            new=64,
            many=10_000,
            port=8123,
        ),
    ),
    "predict": (
        predict,
        dict(backbone="sentence-transformers/all-MiniLM-L6-v2", texts=2000, batch=32, threads=2, rounds=5),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (function, defaults) in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        for option, default in defaults.items():
            flag = "--" + option.replace("_", "-")
            command.add_argument(flag, type=type(default), default=default, help=f"default: {default}")
    options = vars(parser.parse_args())
    COMMANDS[options.pop("command")][0](**options)


if __name__ == "__main__":
    main()
