"""The engine answers as `Writer.write` does, whoever asks beside; it compiles nothing after its warm-up."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_networks
from tiny_networks import Network, prompts
from transformers import PreTrainedTokenizerBase

from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.writer import Writer
from instructrec_jax.service.engine import Engine, EngineSettings

SETTINGS = EngineSettings(slots=4, capacity=64, chunk=8, queue=400)
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.3, "seed": 5},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3, "seed": 11},
    {"stop": ("n", "q", "e")},
]


class World:
    """A network, its engine, and what `Writer.write` answers."""

    def __init__(self, net: Network, tokenizer: PreTrainedTokenizerBase, mesh: tuple[int, int, int] = (1, 1, 1)):
        decoder, self.params = net.decoder(mesh)
        self.writer = Writer(decoder, tokenizer)
        self.engine = Engine(self.writer, self.params, SETTINGS)
        self.engine.warm_up()

    def written(self, asked: list[np.ndarray], config: GenerationConfig) -> list[tuple[str, str, float]]:
        found = self.writer.write(self.params, asked, ["a prompt"] * len(asked), config)
        return [(a.text, a.finish, pytest.approx(a.log_probability, abs=1e-3)) for a in found]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    @cache
    def make(kind: str, mesh: tuple[int, int, int] = (1, 1, 1)) -> World:
        made.append(World(tiny_networks.make(kind, tmp_path_factory.mktemp(kind), 3), tokenizer, mesh))
        return made[-1]

    yield make
    for each in made:
        each.engine.close(drain=False)


def mixed(count: int, seed: int) -> list[tuple[np.ndarray, GenerationConfig, int]]:
    """(prompt, config, number) of requests of every kind."""
    rng = np.random.default_rng(seed)
    asked = prompts(count, seed, longest=31)  # one length bucket of `Writer.write`
    return [
        (
            prompt,
            GenerationConfig(max_new_tokens=int(rng.integers(1, 20)), batch_size=1, **WAYS[i % len(WAYS)]),
            int(rng.integers(3)),
        )
        for i, prompt in enumerate(asked)
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "t5", "bart"])
def test_each_of_many_gets_what_it_gets_alone(world: Callable[..., World], kind: str) -> None:
    """By `Writer.write`, as prompt `number` of several."""
    here, finishes = world(kind), set()
    requests = mixed(24, 1)
    streams = [here.engine.submit(prompt, config, number=number) for prompt, config, number in requests]
    for (prompt, config, number), stream in zip(requests, streams, strict=True):
        answer = stream.result()
        finishes.add(answer.finish)
        alone = here.written([prompt] * (number + 1), config)[number]
        assert (answer.text, answer.finish, answer.log_probability) == alone, config
    assert finishes == {"eos", "stop", "length"}
