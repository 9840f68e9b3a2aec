"""Random requests of every kind that the service answers, made of a seed: `requests(models, 100)` -> (path, body)."""

import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from helpers import SUBJECTS
from tiny_runs import WORDS

Body = dict[str, Any]
GENRES = ["war", "love"]  # of the items of `tests/service/test_every_kind.py`
ITEMS, ENTITIES = 12, 500


def requests(models: Mapping[str, str], count: int, seed: int = 0) -> Iterator[tuple[str, Body]]:
    """`count` requests; each is made of the seed and its number alone.

    Args:
      models: name of a served model -> its kind, one of `KINDS`.
    """
    names = sorted(models)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(names)
        path, body = rng.choice(KINDS[models[name]])(rng, number)
        yield path, body | {"model": name} | ({"exact": True} if path != "/watch" and rng.random() < 0.1 else {})


def text(rng: random.Random, most: int = 25) -> str:
    """Up to `most` words, short ones more often; now and then too many for any run."""
    return " ".join(rng.choices(WORDS, k=200 if rng.random() < 0.01 else 1 + int(most * rng.random() ** 2)))


def texts(rng: random.Random, most: int = 40) -> list[str]:
    return [text(rng) for _ in range(1 + int(most * rng.random() ** 3))]


def embeddings(rng: random.Random, number: int) -> tuple[str, Body]:
    body: Body = {"input": rng.choice([text, texts])(rng)}
    return "/v1/embeddings", body | ({"encoding_format": "base64"} if rng.random() < 0.3 else {})


def rerank(rng: random.Random, number: int) -> tuple[str, Body]:
    documents = list(dict.fromkeys(text(rng, 8) for _ in range(rng.randint(1, 20))))
    body: Body = {"query": text(rng, 8), "documents": documents}
    return "/rerank", body | ({"top_n": rng.randint(1, 5), "return_documents": True} if rng.random() < 0.3 else {})


def classify(rng: random.Random, number: int) -> tuple[str, Body]:
    record: Body = {"instruction": text(rng), "input": text(rng, 10)}
    return "/classify", {"input": rng.choice([text(rng), texts(rng), record, [record] * rng.randint(1, 9)])}


def answers(rng: random.Random, number: int) -> tuple[str, Body]:
    """Questions about a text."""
    records = [{"instruction": text(rng, 6), "input": text(rng, 60)} for _ in range(rng.randint(1, 6))]
    return "/classify", {"input": rng.choice([records, records[0]])}


def choices(rng: random.Random, number: int) -> tuple[str, Body]:
    records = [
        {"instruction": text(rng, 8), "candidates": rng.sample(SUBJECTS, rng.randint(2, len(SUBJECTS)))}
        for _ in range(rng.randint(1, 4))
    ]
    return "/classify", {"input": records}


def subtasks(rng: random.Random, number: int) -> tuple[str, Body]:
    tasks = ["classification", "token_classification", "regression"]
    return "/classify", {"input": [{"instruction": each, "task": rng.choice(tasks)} for each in texts(rng, 9)]}


def _wish(rng: random.Random, most: int) -> Body:
    items = [f"id:item-{n}" for n in rng.sample(range(ITEMS), rng.randint(0, 9))]
    wish: Body = {"instruction": text(rng, 10), "k": rng.randint(1, most)}
    if rng.random() < 0.7:
        wish["history"] = items
    if rng.random() < 0.3:
        wish["exclude"] = [f"id:item-{rng.randrange(ITEMS)}"]
    if rng.random() < 0.4:
        wish["where"] = [rng.choice([f"genre={rng.choice(GENRES)}", f"year>={rng.randint(1990, 2003)}"])]
    return wish


def recommend(rng: random.Random, number: int) -> tuple[str, Body]:
    body: Body = _wish(rng, ITEMS)
    if rng.random() < 0.3:
        body = {"requests": [_wish(rng, 5) for _ in range(rng.randint(1, 6))]}
    return "/recommend", body | {"include_seen": rng.random() < 0.5, "evidence": rng.random() < 0.5}


def assist(rng: random.Random, number: int) -> tuple[str, Body]:
    words = f"{text(rng)} {rng.randint(1000, 9999)} monday"
    return "/assist", {"input": rng.choice([words, text(rng), texts(rng, 9)])}


def watch(rng: random.Random, number: int) -> tuple[str, Body]:
    began = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    records = [
        {"text": text(rng), "entity": f"e{number % ENTITIES}", "time": (began + timedelta(seconds=n)).isoformat()}
        for n in range(rng.randint(1, 6))
    ]
    return "/watch", {"input": rng.choice([records, records[0]])}


def _sampling(rng: random.Random) -> Body:
    body: Body = {"max_tokens": rng.randint(1, 12), "n": rng.choice([1, 1, 1, 2, 3]), "stream": rng.random() < 0.3}
    for name, value in {
        "temperature": rng.choice([0.0, 0.7, 1.5]),
        "top_p": rng.uniform(0.1, 1),
        "top_k": rng.randint(1, 30),
        "min_p": rng.uniform(0, 0.3),
        "repetition_penalty": rng.uniform(1, 1.5),
        "seed": rng.randrange(2**31),
        "stop": rng.sample(WORDS, 2),
    }.items():
        if rng.random() < 0.3:
            body[name] = value
    return body


def completions(rng: random.Random, number: int) -> tuple[str, Body]:
    asked = {"prompt": rng.choice([text(rng, 50), texts(rng, 3)])}
    return "/v1/completions", asked | _sampling(rng) | ({"logprobs": rng.randint(0, 5)} if rng.random() < 0.3 else {})


def chat(rng: random.Random, number: int) -> tuple[str, Body]:
    roles = [("user", "assistant")[turn % 2] for turn in range(rng.choice([1, 1, 3]))]
    asked = {"messages": [{"role": role, "content": text(rng, 20)} for role in roles]}
    more = {"logprobs": True, "top_logprobs": rng.randint(0, 5)} if rng.random() < 0.3 else {}
    return "/v1/chat/completions", asked | _sampling(rng) | more


# What a kind of model answers.
KINDS: Mapping[str, list[Callable[[random.Random, int], tuple[str, Body]]]] = {
    "encoder": [embeddings, rerank],
    "retrieval": [embeddings, rerank, recommend],
    "sequence": [recommend],
    "reranker": [embeddings, rerank, recommend],
    "language_model_ranking": [recommend],
    "classification": [embeddings, rerank, classify],
    "desk": [classify, assist],
    "news": [classify, watch],
    "span": [answers],
    "extractive_summarization": [answers],
    "labels": [classify],
    "options": [choices, rerank],
    "multitask": [subtasks],
    "writer": [chat, completions],
    "pair": [completions],
}
