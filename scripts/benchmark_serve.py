"""The command `serve` of scripts/benchmark.py: the service under load, beside straightforward services.

`python scripts/benchmark_serve.py generate|encode FOLDER PORT` is such a service: FastAPI, and PyTorch behind a lock.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

WORDS = (
    "the a river market engine cloud teacher garden letter winter music number island paper storm bridge doctor window "
    "explain compare describe list write how why when which between against about under over small quick quiet bright"
).split()
SERVER = {"ours": [sys.executable, "-m", "instructrec_jax.serve"], "theirs": [sys.executable, __file__]}


def asked(number: int, words: int) -> str:
    """A made-up question: the same for the same number."""
    state = number * 2654435761 % 2**32
    found = []
    for _ in range(words):
        state = (1664525 * state + 1013904223) % 2**32
        found.append(WORDS[state >> 16 & 31])
    return " ".join(found).capitalize() + "?"


# ---------------------------------------------------------------- straightforward services


def generating(folder: str) -> Any:
    """Chat completions by transformers' generate, one at a time."""
    import torch
    from fastapi import FastAPI, Request
    from transformers import AutoModelForCausalLM, AutoTokenizer

    app, lock = FastAPI(), threading.Lock()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(messages: Any, new: int) -> dict[str, object]:
        options = {"return_tensors": "pt", "return_dict": True, "add_generation_prompt": True}
        prompt = tokenizer.apply_chat_template(messages, **options)
        with lock, torch.inference_mode():
            tokens = model.generate(**prompt, max_new_tokens=new, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": len(tokens)}}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, object]:
        from starlette.concurrency import run_in_threadpool

        body = await request.json()
        return await run_in_threadpool(answer, body["messages"], body["max_tokens"])

    return app


def encoding(folder: str) -> Any:
    """Embeddings by sentence-transformers, one request at a time."""
    from fastapi import FastAPI, Request
    from sentence_transformers import SentenceTransformer
    from starlette.concurrency import run_in_threadpool

    app, lock = FastAPI(), threading.Lock()
    model = SentenceTransformer(folder, device="cpu")

    def vectors(texts: Any) -> dict[str, object]:
        with lock:
            found = model.encode(texts)
        return {"data": [{"embedding": each.tolist()} for each in found], "usage": {}}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> dict[str, object]:
        return await run_in_threadpool(vectors, (await request.json())["input"])

    return app


# ---------------------------------------------------------------- a server process


@contextmanager
def served(who: str, *arguments: object, port: int) -> Iterator[tuple[str, int]]:
    """Starts a service and waits until it is ready; yields its address and process."""
    command = [*SERVER[who], *map(str, arguments), *(["--port", str(port)] if who == "ours" else [str(port)])]
    path, log = f"http://127.0.0.1:{port}", Path(f"serve_{who}.log")
    ready = f"{path}/ready" if who == "ours" else f"{path}/openapi.json"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        began = time.perf_counter()
        while not answers(ready):
            if process.poll() is not None or time.perf_counter() - began > 600:
                raise RuntimeError(f"the service did not start; see {log}")
            time.sleep(0.1)
        print(f"{who:8} ready after {time.perf_counter() - began:.1f} s")
        yield path, process.pid
    finally:
        process.terminate()
        process.wait(60)
        log.unlink()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def resident(process: int) -> float:
    """MB"""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


# ---------------------------------------------------------------- clients


@dataclass(frozen=True)
class Took:
    """One request: seconds until the first piece and until the end, and how much came (tokens, texts)."""

    first: float
    whole: float
    amount: int


Ask = Callable[[httpx.Client, str, int], Took]


def load(
    url: str, clients: int, requests: int, ask: Callable[[httpx.Client, str, int], Took]
) -> tuple[float, list[Took]]:
    """(seconds, what each request took): so many clients, each of which asks again as soon as it is answered."""
    numbers, found, lock = iter(range(requests)), [], threading.Lock()

    def client() -> None:
        with httpx.Client(timeout=600) as http:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                found.append(ask(http, url, number))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) != requests:
        raise RuntimeError("a request failed")
    return time.perf_counter() - began, found


def chat(new: int, stream: bool) -> Ask:
    def ask(http: httpx.Client, url: str, number: int) -> Took:
        body = {"messages": [{"role": "user", "content": asked(number, 12 + number % 30)}], "max_tokens": new}
        began, first, amount = time.perf_counter(), 0.0, 0
        if not stream:
            answer = http.post(f"{url}/v1/chat/completions", json=body).raise_for_status().json()
            whole = time.perf_counter() - began
            return Took(whole, whole, answer["usage"]["completion_tokens"])
        more = {"stream": True, "stream_options": {"include_usage": True}}
        with http.stream("POST", f"{url}/v1/chat/completions", json={**body, **more}) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - began
                amount = (event.get("usage") or {}).get("completion_tokens", amount)
        whole = time.perf_counter() - began
        return Took(first or whole, whole, amount)

    return ask


def embed(http: httpx.Client, url: str, number: int) -> Took:
    began = time.perf_counter()
    http.post(f"{url}/v1/embeddings", json={"input": asked(number, 8 + number % 40)}).raise_for_status()
    whole = time.perf_counter() - began
    return Took(whole, whole, 1)


def line(name: str, clients: int, took: tuple[float, list[Took]]) -> float:
    """Prints a row of the table; returns its throughput."""
    seconds, each = took
    rate = sum(one.amount for one in each) / seconds
    whole = statistics.quantiles([one.whole for one in each], n=100, method="inclusive")
    first = statistics.median(one.first for one in each)
    print(
        f"{name:28} {clients:7} {len(each):8} {rate:9.1f} {first:9.3f} "
        f"{statistics.median([one.whole for one in each]):8.3f} {whole[94]:8.3f} {whole[98]:8.3f}",
        flush=True,
    )
    return rate


def serve(model: str, encoder: str, clients: int, requests: int, texts: int, new: int, many: int, port: int) -> None:
    """The service with one client and with many, beside FastAPI + transformers or sentence-transformers + a lock."""
    print("rate = tokens (or texts) of all answers / seconds from the first request to the last answer")
    print("first = median seconds to the first piece of text; p50, p95, p99 = seconds to the whole answer")
    head = f"{'':28} {'clients':>7} {'requests':>8} {'rate/s':>9} {'first':>9} {'p50':>8} {'p95':>8} {'p99':>8}"
    if model:
        with served("ours", model, port=port) as (url, _):
            print(head)
            load(url, 2, 2, chat(8, True))
            one = line("chat, ours", 1, load(url, 1, max(4, requests // 4), chat(new, True)))
            all_ = line("chat, ours", clients, load(url, clients, requests, chat(new, True)))
        with served("theirs", "generate", model, port=port) as (url, _):
            load(url, 1, 1, chat(8, False))
            theirs = line(
                "chat, generate and a lock", clients, load(url, clients, max(4, requests // 4), chat(new, False))
            )
        print(f"{clients} clients / one client = {all_ / one:.2f}; ours / theirs = {all_ / theirs:.2f}")
    if encoder:
        with served("ours", encoder, port=port) as (url, process):
            print(head)
            load(url, 4, 50, embed)
            line("embeddings, ours", 1, load(url, 1, texts // 4, embed))
            ours = line("embeddings, ours", clients, load(url, clients, texts, embed))
            before = resident(process)
            load(url, clients, many, embed)
            print(f"memory before and after {many:,} requests: {before:,.0f} MB, {resident(process):,.0f} MB")
        with served("theirs", "encode", encoder, port=port) as (url, _):
            load(url, 4, 50, embed)
            theirs = line("sentence-transformers, a lock", clients, load(url, clients, texts, embed))
        print(f"ours / theirs = {ours / theirs:.2f}")


if __name__ == "__main__":
    import uvicorn

    kind, folder, at = sys.argv[1:]
    uvicorn.run({"generate": generating, "encode": encoding}[kind](folder), port=int(at), log_level="warning")
