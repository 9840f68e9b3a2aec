"""The commands `data` and `store` of scripts/benchmark.py: preparing instructions, and reading what was prepared."""

import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MB = 1e6


# ---------------------------------------------------------------- what is prepared


def write_instructions(path: Path, rows: int, seed: int = 0) -> None:
    """Instructions of made-up words with the frequencies of a language (Zipf), about 900 bytes each."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "b d f g h k l m n p r s t v z ch sh tr".split() for b in "a e i o u ai ou".split()]
    vocabulary = ["".join(rng.choice(syllables, 1 + n % 3)) for n in range(30_000)]
    shares = 1 / np.arange(1, len(vocabulary) + 1)
    shares /= shares.sum()
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, rows, 10_000):
            words = rng.choice(vocabulary, (min(10_000, rows - first), 160), p=shares)
            lengths = np.minimum(rng.lognormal(4.6, 0.5, len(words)).astype(int) + 10, 140)
            for line, length in zip(words, lengths, strict=True):
                asked, said = " ".join(line[:20]), " ".join(line[20 : 20 + length])
                file.write(json.dumps({"instruction": f"{asked}?", "input": "", "output": f"{said}."}) + "\n")


def conversation(record: dict[str, str]) -> list[dict[str, str]]:
    asked = record["instruction"] + (f"\n{record['input']}" if record["input"] else "")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]


# ---------------------------------------------------------------- who prepares


def ours(path: str, model: str, length: int) -> str:
    """The start of a training up to its first batch."""
    from transformers import AutoTokenizer

    from instructrec_jax.runs.config import load
    from instructrec_jax.runs.data import RunData
    from instructrec_jax.runs.model import backbone_folder, open_task

    AutoTokenizer.from_pretrained(model)  # imports are not measured, here as in `by_map`
    task = {"task.type": "language_model", "backbone.path": model, "run_dir": "unused"}
    data = {"data.train": [path], "data.batch_rows": 8, "data.max_length": length, "data.truncate": "right"}
    config = load({**task, **data})
    began = time.perf_counter()
    sources = RunData(config)
    made = open_task(sources.config, backbone_folder(model))
    batches = sources.training(made, 1)
    next(batches.batches(0, 1, None))
    return f"{time.perf_counter() - began:.1f} s to the first batch; {batches.describe()}"


def by_map(path: str, model: str, length: int, passes: int) -> str:
    """`datasets.map` with two processes; with two passes, as TRL's SFTTrainer tokenizes prompts and completions."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def tokens(turns: list[dict[str, str]], **options: bool) -> list[int]:
        made: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)
        return list(made["input_ids"])

    def once(record: dict[str, str]) -> dict[str, list[int]]:
        return {"input_ids": tokens(conversation(record))[:length]}

    def twice(record: dict[str, str]) -> dict[str, list[int]]:
        turns = conversation(record)
        prompt, whole = tokens(turns[:1], add_generation_prompt=True), tokens(turns)
        mask = [0] * len(prompt) + [1] * (len(whole) - len(prompt))
        return {"input_ids": whole[:length], "completion_mask": mask[:length]}

    began = time.perf_counter()
    table = datasets.load_dataset("json", data_files=path, split="train", cache_dir=f"{path}.cache{passes}")
    table.map(once if passes == 1 else twice, num_proc=2, remove_columns=table.column_names)
    return f"{time.perf_counter() - began:.1f} s; {len(table):,} examples"


# ---------------------------------------------------------------- measured from outside


def tree(process: int) -> Iterator[int]:
    """A process and its descendants."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from tree(int(child))


def anonymous(process: int) -> int:
    """Resident bytes that no file backs."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


class Watch:
    """Peaks of resident memory without mapped files: of this process, and with all its workers."""

    def __enter__(self) -> "Watch":
        self.own = self.all = 0
        self._going = True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self._going:
            try:
                each = [anonymous(process) for process in tree(os.getpid())]
            except OSError:  # a process ended
                continue
            self.own, self.all = max(self.own, each[0]), max(self.all, sum(each))
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()


def measured(pipe: Any, function: Callable[..., str], arguments: tuple[Any, ...]) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    import instructrec_jax.runs.data
    import instructrec_jax.tasks  # noqa: F401  imports are not measured

    before = anonymous(os.getpid())
    with Watch() as watch:
        said = function(*arguments)
    pipe.send((said, before, watch.own, watch.all))


def cpu_seconds() -> float:
    """Of all processes that have ended, workers included: other load of the machine changes it less than seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(name: str, function: Callable[..., str], *arguments: Any) -> None:
    """Calls a function in a process of its own and prints what it took."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measured, args=(there, function, arguments))
    began, used = time.perf_counter(), cpu_seconds()
    process.start()
    there.close()
    said, before, own, whole = here.recv()
    process.join()
    memory = f"memory {own / MB:,.0f} MB, with workers {whole / MB:,.0f} MB ({before / MB:,.0f} MB after imports)"
    print(
        f"{name:34} {said}\n{'':34} {memory}; {time.perf_counter() - began:.1f} s with imports, "
        f"{cpu_seconds() - used:.1f} CPU-seconds",
        flush=True,
    )


def data(model: str, rows: int, compared: int, length: int) -> None:
    """Preparing instructions: first start, next start, and `datasets.map` with the same tokenizer and template."""
    with tempfile.TemporaryDirectory() as folder:
        path, few = Path(folder) / "all.jsonl", Path(folder) / "few" / "few.jsonl"
        few.parent.mkdir()
        write_instructions(path, rows)
        with path.open(encoding="utf-8") as whole, few.open("w", encoding="utf-8") as part:
            part.writelines(line for line, _ in zip(whole, range(compared), strict=False))
        size = path.stat().st_size / MB
        print(f"{rows:,} instructions, {size:,.0f} MB of JSON lines; tokenizer and template of {model}")
        print("memory = peak of RssAnon + RssShmem, sampled from outside; packing plan and first batch included")
        run("ours, first start", ours, str(path), model, length)
        run("ours, next start", ours, str(path), model, length)
        stored = sum(file.stat().st_size for file in path.parent.glob(".instructrec/*/*"))
        print(f"{'stored':34} {stored / MB:,.0f} MB")
        print(f"\nthe first {compared:,} of them, two processes each")
        run("ours", ours, str(few), model, length)
        run("datasets.map, text only", by_map, str(few), model, length, 1)
        run("datasets.map, prompt and completion", by_map, str(few), model, length, 2)


# ---------------------------------------------------------------- formats of a store


def store(rows: int, reads: int) -> None:
    """Tokenized records in Arrow files and in ArrayRecord files: size, sequential and random reads."""
    import pyarrow as pa
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5, 0.6, rows).astype(int) + 10, 1024)
    records = [rng.integers(0, 40_000, length).astype(np.uint16).tobytes() for length in lengths]
    order = rng.integers(0, rows, reads)
    with tempfile.TemporaryDirectory() as folder:
        arrow, options = Path(folder) / "a.arrow", {"group_size:1": "group_size:1", "default": ""}
        batch = pa.record_batch([pa.array(records, pa.large_binary())], ["record"])
        with pa.ipc.new_file(str(arrow), batch.schema) as writer:
            writer.write_batch(batch)
        column = pa.ipc.open_file(pa.memory_map(str(arrow))).get_batch(0).column(0)
        sources: dict[str, tuple[int, Callable[[int], Any]]] = {
            "Arrow": (arrow.stat().st_size, lambda n: column[n].as_py())
        }
        for name, option in options.items():
            path = f"{folder}/{len(sources)}.arrayrecord"
            output = ArrayRecordWriter(path, option)
            for record in records:
                output.write(record)
            output.close()
            source = ArrayRecordDataSource(path)
            sources[f"ArrayRecord, {name}"] = (Path(path).stat().st_size, source.__getitem__)
        print(f"{rows:,} records, {sum(map(len, records)) / MB:,.0f} MB of tokens")
        print("µs = time / records read one at a time, files in the page cache")
        for name, (size, read) in sources.items():
            took = []
            for numbers in (range(min(rows, reads)), order.tolist()):
                began = time.perf_counter()
                for number in numbers:
                    read(number)
                took.append((time.perf_counter() - began) / len(numbers) * 1e6)
            print(f"{name:26} {size / MB:8,.0f} MB   sequential {took[0]:7.2f} µs   random {took[1]:7.2f} µs")
        shutil.rmtree(folder, ignore_errors=True)
