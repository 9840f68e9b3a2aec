"""Training speed against PyTorch, one system at a time: `python scripts/benchmark_training.py WORKLOAD --data FILE`.

    encoder          classification by a MiniLM-like encoder: ragged texts, 32 per step; PyTorch pads to the longest
    encoder_fixed    the same on 32 x 128 tokens without padding
    decoder          Llama (hidden 512, 8 layers, heads 8/4, vocabulary 32,000) on 4 x 512 tokens without padding
    decoder_ragged   the same on ragged texts: ours packs rows of 512, PyTorch pads to the longest of a batch

FILE holds instructions (any format that data.train reads, alpaca's for instance). Each system lives in a process of its
own and works only while the other waits; a round is a few steps of each. Both start from the same weights, and the
first loss of both is printed: it must agree on equal batches.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.distributed.host_memory import keep_freed_memory, release_freed_memory  # jax is not imported yet

ROWS = {"encoder": 32, "encoder_fixed": 32, "decoder": 4, "decoder_ragged": 4}
LENGTH = {"encoder": 128, "encoder_fixed": 128, "decoder": 512, "decoder_ragged": 512}
LABELS = 10


@dataclass
class Work:
    """The workload of both systems."""

    workload: str
    folder: str  # HuggingFace checkpoint
    data: str  # instructions
    threads: int
    steps: int  # number of different steps, which then repeat
    on_gpu: bool = False  # products in bfloat16, parameters in float32

    @property
    def is_encoder(self) -> bool:
        return self.workload.startswith("encoder")

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return min(LENGTH[self.workload], self.config["max_position_embeddings"])

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((Path(self.folder) / "config.json").read_text())

    @property
    def ragged(self) -> bool:
        return self.workload in ("encoder", "decoder_ragged")

    @property
    def warm_up(self) -> int:
        """Steps until every batch shape is compiled: rows have one shape, examples several."""
        return 40 if self.workload == "encoder" else 1


# ---------------------------------------------------------------- ours


def our_config(work: Work) -> Any:
    from instructrec_jax.backbones.backbone_config import BackboneConfig
    from instructrec_jax.data.data_config import DataConfig
    from instructrec_jax.data.source_config import SourceConfig
    from instructrec_jax.runs.config import Config
    from instructrec_jax.tasks import ClassificationConfig, LanguageModelConfig
    from instructrec_jax.training.training_config import OptimizerConfig

    labels = [f"label {number}" for number in range(LABELS)]
    task: Any = ClassificationConfig(labels=labels) if work.is_encoder else LanguageModelConfig(template="plain")
    by_rows = work.workload == "decoder_ragged"
    return Config(
        backbone=BackboneConfig(work.folder, dtype="bfloat16" if work.on_gpu else "float32"),
        task=task,
        data=DataConfig(
            train=[SourceConfig(path=work.data)],
            batch_size=None if by_rows else ROWS[work.workload],
            batch_rows=ROWS[work.workload] if by_rows else None,
            max_length=work.length,
            truncate="right",
        ),
        optimizer=OptimizerConfig(learning_rate=2e-5, schedule="constant", warmup=0.0),
    )


def open_ours(work: Work) -> Iterator[tuple[float, int]]:
    """Runs one training step at a time, including packing and transfer: (loss, tokens without padding)."""

    from instructrec_jax.data.batch import BatchTexts, Text, end_to_end
    from instructrec_jax.data.loader import pack, to_devices
    from instructrec_jax.distributed.mesh import make_mesh
    from instructrec_jax.runs import data as run_data
    from instructrec_jax.runs import model as models
    from instructrec_jax.runs.setup import TrainingSetup
    from instructrec_jax.tasks.targets import TextTargets, TokenLabels

    config = our_config(work)
    folder = Path(work.folder)
    task, mesh = models.open_task(config, folder), make_mesh(config.mesh)
    setup = TrainingSetup.load(config, task, folder, mesh)
    state = setup.state
    rng = np.random.default_rng(0)

    def fixed(number: int) -> Any:
        tokens = fixed_tokens(work, number)
        texts = [Text(row) for row in tokens]
        if work.is_encoder:
            targets = rng.integers(0, LABELS, len(texts)).astype(np.int32)
            parts: BatchTexts = BatchTexts(texts, TextTargets(targets, np.ones(len(texts), np.float32)))
        else:
            labels = end_to_end([np.append(row[1:], 0) for row in tokens])
            supervised = end_to_end([np.append(np.ones(len(row) - 1), 0) for row in tokens])
            parts = BatchTexts(texts, TokenLabels(labels, supervised))
        return pack(parts, run_data.buckets(config), 1)

    batches = run_data.RunData(config).training(task, 1).batches(0, 10**6, None) if work.ragged else None
    previous = {name: 0.0 for name in ("loss", "weight")}
    number = 0
    while True:
        batch = fixed(number % work.steps) if batches is None else next(batches)
        state, sums = setup.step(state, to_devices(batch.batch, mesh))
        now = {name: float(sums[name]) for name in previous}
        yield (now["loss"] - previous["loss"]) / max(now["weight"] - previous["weight"], 1e-9), batch.tokens
        previous, number = now, number + 1


def input_speed(work: Work) -> float:
    """Examples/s of shuffling, packing and batching alone; tokenizing happens once, before."""
    from instructrec_jax.runs import data as run_data
    from instructrec_jax.runs import model as models

    config = our_config(work)
    task = models.open_task(config, Path(work.folder))
    data = run_data.RunData(config).training(task, 1)
    steps = 200
    batches = data.batches(0, steps, None)
    next(batches)
    began = time.perf_counter()
    for _ in batches:
        pass
    return (steps - 1) * len(data.encoded) / data.epoch_steps / (time.perf_counter() - began)


# ---------------------------------------------------------------- PyTorch


def open_torch(work: Work) -> Iterator[tuple[float, int]]:
    """The same steps with transformers and torch.optim.AdamW."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    if work.is_encoder:
        model = AutoModelForSequenceClassification.from_pretrained(work.folder, num_labels=LABELS)
    else:
        model = AutoModelForCausalLM.from_pretrained(work.folder)
    device = "cuda" if work.on_gpu else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    rng = np.random.default_rng(0)
    batches = ragged_tokens(work) if work.ragged else None
    number = 0
    while True:
        texts = fixed_tokens(work, number % work.steps) if batches is None else batches[number % len(batches)]
        longest = max(map(len, texts))
        tokens, mask = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], mask[row, : len(text)] = torch.tensor(np.asarray(text)).long(), 1
        if work.is_encoder:
            labels = torch.tensor(rng.integers(0, LABELS, len(texts)))
        else:
            labels = torch.where(mask > 0, tokens, -100)
        with torch.autocast(device, torch.bfloat16, enabled=work.on_gpu):
            inputs = {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}
            loss = model(**{name: x.to(device) for name, x in inputs.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield float(loss.detach()), int(mask.sum())
        number += 1


# ---------------------------------------------------------------- the texts of both systems


def fixed_tokens(work: Work, number: int) -> np.ndarray:
    """int32 [rows, length], depending on the step's number alone."""
    vocab, shape = work.config["vocab_size"], (ROWS[work.workload], work.length)
    return np.random.default_rng(number).integers(vocab // 30, vocab, shape).astype(np.int32)


def ragged_tokens(work: Work) -> list[list[np.ndarray]]:
    """Batches of texts in the order of our epochs, with our batches' average number of texts."""
    from instructrec_jax.runs import data as run_data
    from instructrec_jax.runs import model as models

    config = our_config(work)
    task = models.open_task(config, Path(work.folder))
    data = run_data.RunData(config).training(task, 1)
    texts = [e.text.tokens for e in data.encoded]
    size = ROWS[work.workload] if work.is_encoder else max(1, round(len(texts) / data.epoch_steps))
    order = np.random.default_rng(0).permutation(len(texts))
    return [[texts[i] for i in order[start : start + size]] for start in range(0, len(texts) - size + 1, size)]


# ---------------------------------------------------------------- processes


def matmul_speed(system: str, threads: int) -> float:
    """FLOP/s of a 4096 x 1024 x 4096 product in float32, the best of 5."""
    sizes = (4096, 1024), (1024, 4096)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(np.float32) for size in sizes)
    if system == "ours":
        import jax

        x, y, product = jax.numpy.asarray(a), jax.numpy.asarray(b), jax.jit(lambda x, y: x @ y)

        def run() -> None:
            product(x, y).block_until_ready()

    else:
        import torch

        torch.set_num_threads(threads)
        left, right = torch.tensor(a), torch.tensor(b)

        def run() -> None:
            left @ right

    run()
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return 2 * 4096 * 1024 * 4096 / best


def serve(pipe: Any, system: str, work: Work) -> None:
    """Process of one system: handles "matmul", "input" and a number of steps, until "stop"."""
    began = time.perf_counter()
    if system == "ours":
        keep_freed_memory()  # as in each verb

        import jax

        jax.config.update("jax_platforms", "cpu")
        import instructrec_jax.train  # noqa: F401 - timed
    else:
        import torch  # noqa: F401 - timed
        import transformers  # noqa: F401
    imported = time.perf_counter() - began
    steps = {"ours": open_ours, "PyTorch": open_torch}[system](work)
    first_loss, _ = next(steps)
    release_freed_memory()  # as in training after a new shape
    first_step = time.perf_counter() - began - imported
    pipe.send((imported, first_step, first_loss))
    while (request := pipe.recv()) != "stop":
        if request in ("matmul", "input"):
            pipe.send(matmul_speed(system, work.threads) if request == "matmul" else input_speed(work))
            release_freed_memory()
            continue
        began, tokens = time.perf_counter(), 0
        for _ in range(request):
            tokens += next(steps)[1]
        pipe.send((time.perf_counter() - began, tokens))
    lines = Path("/proc/self/status").read_text().splitlines()
    pipe.send(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024)


def make_llama(folder: str, tokenizer: str, layers: int = 8) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=512, num_hidden_layers=layers, intermediate_size=1536, vocab_size=32_000)
    groups: dict[str, Any] = dict(num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512)
    LlamaForCausalLM(LlamaConfig(**sizes, **groups)).save_pretrained(folder)
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.eos_token = words.sep_token  # a language model needs an end-of-sequence token
    words.save_pretrained(folder)


def flops(work: Work) -> float:
    """FLOP per token of a full row, forward and backward: 6 x parameters in products + 12 x layers x hidden x keys."""
    config = work.config
    hidden, layers, inner = (config[n] for n in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    if work.is_encoder:
        return 6 * layers * (4 * hidden**2 + 2 * hidden * inner) + 12 * layers * hidden * work.length
    share = config["num_key_value_heads"] / config["num_attention_heads"]
    matrices = layers * (hidden**2 * (2 + 2 * share) + 3 * hidden * inner) + hidden * config["vocab_size"]
    return 6 * matrices + 12 * layers * hidden * work.length / 2


def labeled(data: str, folder: str) -> str:
    """Writes a file of the instructions with labels by their number."""
    from instructrec_jax.data.source_config import SourceConfig
    from instructrec_jax.data.sources import open_sources

    source: Any = open_sources([SourceConfig(path=data)])
    path = Path(folder) / "labeled.jsonl"
    lines = [{"instruction": source[n].instruction, "output": f"label {n % LABELS}"} for n in range(len(source))]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=list(ROWS))
    parser.add_argument("--data", default="", help="file with instructions, for the ragged workloads")
    parser.add_argument("--model", required=True, help="folder of all-MiniLM-L6-v2; the decoder takes its tokenizer")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    options = parser.parse_args()
    if options.workload in ("encoder", "decoder_ragged") and not options.data:
        parser.error("--data is needed for ragged texts")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model
        if options.workload.startswith("decoder"):
            folder = f"{temporary}/llama"
            make_llama(folder, options.model)
        data = labeled(options.data, temporary) if options.workload == "encoder" else options.data
        compare(Work(options.workload, folder, data, options.threads, 3), options.rounds, options.steps)


def compare(work: Work, rounds: int, steps: int) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, {}
    for system in ("ours", "PyTorch"):
        pipes[system], other_end = context.Pipe()
        processes[system] = context.Process(target=serve, args=(other_end, system, work), daemon=True)
        processes[system].start()
        other_end.close()  # so that the pipe closes when the process ends
        imported, first, loss = pipes[system].recv()
        print(f"{system:8} import {imported:5.1f} s, set-up and first step {first:5.1f} s, first loss {loss:.4f}")
    ask = {system: lambda request, p=pipe: (p.send(request), p.recv())[1] for system, pipe in pipes.items()}
    speed = {system: ask[system]("matmul") for system in ask}
    ask["ours"](work.warm_up)  # compiles the shapes of ragged texts
    ask["PyTorch"](1)
    found: dict[str, list[tuple[float, int]]] = {system: [] for system in ask}
    for _ in range(rounds):
        for system in ask:
            found[system].append(ask[system](steps))
    rate = {system: np.array([tokens / took for took, tokens in each]) for system, each in found.items()}
    print(
        f"{work.workload}: tokens/s = tokens without padding / time, {rounds} rounds of {steps} steps; matmul = best of"
    )
    print("4096 x 1024 x 4096 in this run; share = tokens/s x FLOP per token of a full row / matmul")
    if work.ragged:
        print(f"our input pipeline alone: {ask['ours']('input'):,.0f} examples/s")
    for system, values in rate.items():
        tokens = np.median(values)
        share = f"{tokens * flops(work) / speed[system]:.0%} of the matmul" if not work.ragged else ""
        memory = ask[system]("stop") / 1e9
        print(f"  {system:8} {tokens:8,.0f} tokens/s  {share}  peak memory {memory:.1f} GB")
        processes[system].join()
    ratios = rate["ours"] / rate["PyTorch"]
    print(f"  ours / PyTorch: median {np.median(ratios):.2f}, rounds {' '.join(f'{r:.2f}' for r in ratios)}")


if __name__ == "__main__":
    main()
