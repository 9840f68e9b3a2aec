"""The engine answers as `Writer.write` does, whoever asks beside; it compiles nothing after its warm-up."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_networks
from tiny_networks import Network, prompts, with_images
from transformers import PreTrainedTokenizerBase

from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.writer import Writer
from instructrec_jax.service.engine import Engine, QueueFull
from instructrec_jax.service.settings import EngineSettings
from instructrec_jax.service.stream import Piece, Stream

SETTINGS = EngineSettings(slots=4, capacity=64, chunk=8, queue=400)
SAMPLED = dict(temperature=1.5, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=11, max_new_tokens=19)
WAYS: list[dict[str, Any]] = [
    dict(max_new_tokens=12),
    dict(max_new_tokens=20, stop=("n", "q", "e")),
    SAMPLED,
    dict(max_new_tokens=5, temperature=1.3, seed=5),
]


class World:
    """A network, its engine, and what `Writer.write` answers."""

    def __init__(self, net: Network, tokenizer: PreTrainedTokenizerBase, mesh: tuple[int, int, int] = (1, 1, 1)):
        decoder, self.params = net.decoder(mesh)
        self.writer = Writer(decoder, tokenizer)
        self.engine: Any = Engine(self.writer, self.params, SETTINGS)
        self.engine.warm_up()

    def ask(self, prompt: np.ndarray, settings: dict[str, Any], **more: Any) -> Stream:
        stream: Stream = self.engine.submit(prompt, GenerationConfig(**settings), **more)
        return stream


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    @cache
    def make(kind: str, mesh: tuple[int, int, int] = (1, 1, 1)) -> World:
        kind, _, codes = kind.partition(", ")
        net = tiny_networks.make(kind, tmp_path_factory.mktemp(kind), 3, codes=bool(codes))
        made.append(World(net, tokenizer, mesh))
        return made[-1]

    yield make
    for each in made:
        each.engine.close(drain=False)


class Pixels(MediaReader):
    """A picture's bytes are its pixels."""

    def decode(self, picture: Picture) -> np.ndarray:
        return np.frombuffer(picture.read(), np.float32).reshape(self.shape)


def asked_of_images(seed: int, counts: list[int]) -> tuple[list[np.ndarray], list[RowImages], list[TextImages | None]]:
    """Prompts with numbers of images, as `Writer.write` and as the engine take them."""
    texts, images = with_images(prompts(len(counts), seed, longest=9), counts, 9, seed)
    read = Pixels((12, 12, 3), 9, 9)
    served = [
        TextImages([Picture.of(x.tobytes()) for x in each.pixels[0]], each.places[0], read) if count else None
        for each, count in zip(images, counts, strict=True)
    ]
    return texts, images, served


def bits(stream: Stream) -> tuple[list[int], list[float], str]:
    pieces = list(stream)
    return (
        [t for p in pieces for t in p.tokens],
        [x for p in pieces for x in p.log_probs],
        "".join(p.text for p in pieces),
    )


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "t5",
        "llama, int8 cache",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "gemma2", "bart", "t5, int8 cache")),
    ],
)
def test_each_of_many_gets_what_it_gets_alone(world: Callable[..., World], kind: str) -> None:
    """All ways at the same time in one engine; `Writer.write` answers one way at a time, and numbers its prompts."""
    here, finishes = world(kind), set()
    ways = WAYS[: 4 if kind.startswith("llama") else 3]
    asked = prompts(8, 1, longest=31)  # one length bucket of `Writer.write`
    streams = [(way, n, here.ask(p, WAYS[way], number=n)) for n, p in enumerate(asked) for way in range(len(ways))]
    answers = {(way, n): stream.result() for way, n, stream in streams}
    for way, settings in enumerate(ways):
        config, names = GenerationConfig(**settings), ["a prompt"] * len(asked)
        for n, alone in enumerate(here.writer.write(here.params, asked, names, config)):
            answer = answers[way, n]
            assert (answer.text, answer.finish) == (alone.text, alone.finish), settings
            assert answer.log_probability == pytest.approx(alone.log_probability, abs=1e-3)
            finishes.add(answer.finish)
    assert finishes == {"eos", "stop", "length"}


@pytest.mark.parametrize("kind", ["llava", "gemma3", "paligemma"])
def test_prompts_with_images_are_answered_as_alone(world: Callable[..., World], kind: str) -> None:
    """In a crowd, with and without images, whose chunks cut them; equal beginnings are known the second time."""
    here = world(kind)
    counts = [0, 1, 2, 1, 3, 0, 1, 2]
    texts, images, served = asked_of_images(3, counts)
    expected = here.writer.write(
        here.params, texts, ["a prompt"] * len(texts), GenerationConfig(max_new_tokens=8), images=images
    )
    for again in range(2):
        streams = [here.ask(p, dict(max_new_tokens=8), images=each) for p, each in zip(texts, served, strict=True)]
        for stream, alone in zip(streams, expected, strict=True):
            answer = stream.result()
            assert (answer.text, answer.finish) == (alone.text, alone.finish)
            assert answer.log_probability == pytest.approx(alone.log_probability, abs=1e-3)
        if kind == "llava":  # the others read prompts with pictures as a whole
            known = [stream.cached_tokens for stream in streams]
            assert not again or known == [8 * ((len(p) - 1) // 8) for p in texts]


def test_another_picture_is_another_beginning(world: Callable[..., World]) -> None:
    here = world("llava")
    (text,), _, (first,) = asked_of_images(5, [1])
    _, _, (other,) = asked_of_images(6, [1])
    assert first is not None and other is not None
    second = replace(first, pictures=other.pictures)
    answers = [bits(here.ask(text, dict(max_new_tokens=4), images=images)) for images in (first, second) * 2]
    assert answers[0] == answers[2] and answers[1] == answers[3]
    assert answers[0][1] != answers[1][1]


def test_exact_answers_about_pictures_have_the_same_bits(world: Callable[..., World]) -> None:
    for kind in ("llava", "gemma3"):
        here = world(kind)
        texts, _, served = asked_of_images(7, [1, 2, 0, 3])
        alone = [bits(here.ask(p, SAMPLED, exact=True, images=each)) for p, each in zip(texts, served, strict=True)]
        streams = [here.ask(p, SAMPLED, exact=True, images=each) for p, each in zip(texts * 3, served * 3, strict=True)]
        assert [bits(stream) for stream in streams] == alone * 3


def test_a_picture_that_went_bad_fails_its_request_alone(world: Callable[..., World]) -> None:
    here, way = world("llava"), dict(max_new_tokens=4)
    texts, _, served = asked_of_images(11, [1, 1])
    assert served[0] is not None
    gone = replace(served[0], pictures=[Picture("0" * 32, "/gone.png")])
    streams = [here.ask(p, way, images=each) for p, each in zip(texts, (gone, served[1]), strict=True)]
    with pytest.raises(ValueError, match="gone.png cannot be read"):
        streams[0].result()
    assert streams[1].result().finish in ("eos", "length")
    with pytest.raises(ValueError, match="reads no images"):
        world("llama").ask(texts[0], way, images=served[0])


def test_eight_devices_answer_as_one(world: Callable[..., World]) -> None:
    one, eight = world("llama"), world("llama", (2, 2, 2))
    for settings in WAYS[1:3]:
        asked = prompts(6, 4, longest=31)
        found = [[w.ask(p, settings, number=n) for n, p in enumerate(asked)] for w in (one, eight)]
        assert [bits(s)[::2] for s in found[0]] == [bits(s)[::2] for s in found[1]]


def test_exact_requests_get_the_same_bits_in_a_crowd(world: Callable[..., World]) -> None:
    """In whatever slot, and whether their prompt's beginning is known or computed."""
    here = world("llama")
    asked = prompts(5, 6, longest=31)
    for settings in (WAYS[0], SAMPLED):
        alone = [bits(here.ask(p, settings, exact=True)) for p in asked]
        crowd = [here.ask(p, WAYS[n % 4] | {"max_new_tokens": 25}) for n, p in enumerate(prompts(12, 7, longest=31))]
        beside = [here.ask(p, settings, exact=True) for p in asked]
        more = [here.ask(p, WAYS[n % 4]) for n, p in enumerate(prompts(12, 8, longest=31))]
        assert [bits(s) for s in beside] == alone
        assert all(s.result().text is not None for s in (*crowd, *more))


def test_a_known_prefix_is_not_computed_again(world: Callable[..., World]) -> None:
    here = world("gemma2")
    shared, ends = np.arange(10, 34, dtype=np.int32), prompts(3, 9, longest=6)
    texts = [np.concatenate([shared, end]) for end in ends]
    before = here.engine.stats()
    first = [bits(here.ask(p, WAYS[0], exact=True)) for p in texts]
    after = here.engine.stats()
    assert after.prefix_hits - before.prefix_hits == 2 * len(shared)
    assert after.prefix_misses - before.prefix_misses == sum(map(len, texts)) - 2 * len(shared)
    streams = [here.ask(p, WAYS[0], exact=True) for p in texts]
    assert [bits(s) for s in streams] == first
    assert [s.cached_tokens for s in streams] == [len(shared)] * 3
    blocks = here.engine._prefixes._blocks
    blocks.clear()
    assert [bits(here.ask(p, WAYS[0], exact=True)) for p in texts] == first


def endless(here: World) -> np.ndarray:
    """A prompt whose greedy answer does not end by itself."""
    for prompt in prompts(30, 5, longest=9):
        if here.ask(prompt, dict(max_new_tokens=40)).result().finish == "length":
            return prompt
    raise AssertionError("every answer ends")


def test_cancelling_costs_one_more_step_and_frees_the_slot(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world("llama")
    prompt, slots, steps = endless(here), here.engine._slots, []
    streams: list[Stream] = []

    def step(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            streams[0].cancel()
        return type(slots).step(slots, *arguments)

    monkeypatch.setattr(slots, "step", step)
    streams.append(here.ask(prompt, dict(max_new_tokens=40)))
    pieces = list(streams[0])
    assert pieces[-1].finish == "cancelled" and len(steps) == 4
    assert sum(len(piece.tokens) for piece in pieces) <= 4
    assert here.engine.stats().active == 0


def test_leaving_an_async_loop_cancels(world: Callable[..., World]) -> None:
    here = world("llama")
    prompt = endless(here)

    async def read(leave: bool) -> list[Piece]:
        pieces = []
        async with contextlib.aclosing(aiter(here.ask(prompt, dict(max_new_tokens=40)))) as stream:
            async for piece in stream:
                pieces.append(piece)
                if leave:
                    break
        return pieces

    async def both() -> tuple[list[Piece], list[Piece]]:
        return await asyncio.gather(read(True), read(False))

    left, whole = asyncio.run(both())
    assert len(left) == 1 and whole[-1].finish == "length"
    assert "".join(p.text for p in whole) == here.ask(prompt, dict(max_new_tokens=40)).result().text
    assert here.engine.stats().finished["cancelled"] >= 1


def test_nothing_compiles_after_the_warm_up(world: Callable[..., World]) -> None:
    for kind, count in (("llama", 220), ("t5", 80)):
        here, rng = world(kind), np.random.default_rng(2)
        with Compilations() as compilations:
            streams = []
            for n, prompt in enumerate(prompts(count, 3, longest=44)):
                settings = WAYS[n % 4] | {"max_new_tokens": int(rng.integers(1, 20)), "seed": n}
                more = {"exact": bool(rng.random() < 0.1), "top_logprobs": int(rng.integers(0, 3)), "number": n}
                streams.append(here.ask(prompt, settings, **more))
                if rng.random() < 0.1:
                    streams[-1].cancel()
            finishes = {stream.result().finish for stream in streams}
        assert compilations.count == 0
        assert finishes == {"eos", "stop", "length", "cancelled"}


def test_nothing_compiles_for_pictures(world: Callable[..., World]) -> None:
    for kind in ("llava", "gemma3", "paligemma"):
        here, counts = world(kind), [n % 4 for n in range(24)]
        texts, _, served = asked_of_images(13, counts)
        with Compilations() as compilations:
            way = dict(max_new_tokens=5, repetition_penalty=1.2)
            streams = [here.ask(p, way, images=each) for p, each in zip(texts, served, strict=True)]
            assert all(stream.result().finish in ("eos", "length") for stream in streams)
        assert compilations.count == 0, kind


def test_a_request_that_breaks_breaks_alone(world: Callable[..., World]) -> None:
    """Also for the next request in its slot: not a number times no attention is still not a number."""
    here = world("gpt2")
    slots, (short, long) = here.engine._slots, (np.full(4, 7, np.int32), np.arange(8, 38, dtype=np.int32))
    expected = bits(here.ask(short, dict(max_new_tokens=9)))
    table = here.params["backbone"]["position_embeddings"]["table"]
    damaged = here.params["backbone"] | {"position_embeddings": {"table": table.at[14].set(np.nan)}}
    slots.params = here.params | {"backbone": damaged}
    try:
        for prompt in (long, np.full(12, 9, np.int32)):  # NaN in a chunk of the prompt, and in a step
            broken = here.ask(prompt, dict(max_new_tokens=9, temperature=0.5))
            beside = [here.ask(short, dict(max_new_tokens=9)) for _ in range(4)]
            with pytest.raises(FloatingPointError, match="NaN"):
                broken.result()
            assert {tuple(bits(stream)[0]) for stream in beside} == {tuple(expected[0])}
    finally:
        slots.params = here.params
    assert here.engine.stats().finished["failed"] == 2
    assert [bits(here.ask(short, dict(max_new_tokens=9)))[0] for _ in range(4)] == [expected[0]] * 4


def test_likeliest_tokens(world: Callable[..., World]) -> None:
    pieces = list(world("bart").ask(prompts(1)[0], dict(max_new_tokens=6), top_logprobs=3))
    tops = [top for piece in pieces for top in piece.top]
    chosen = [(t, p) for piece in pieces for t, p in zip(piece.tokens, piece.log_probs, strict=True)]
    assert [(t, pytest.approx(p, abs=1e-6)) for t, p in chosen] == [top[0] for top in tops]
    assert all(len(top) == 3 and top[0][1] >= top[1][1] >= top[2][1] for top in tops)


def test_what_cannot_be_served_is_refused(world: Callable[..., World]) -> None:
    here = world("llama")
    one = prompts(1)[0]
    for prompt, settings, more, message in (
        (one, dict(beams=2), {}, "beam search"),
        (one[:0], {}, {}, "no tokens"),
        (np.full(60, 7), dict(max_new_tokens=5), {}, "64 tokens"),
        (one, dict(max_new_tokens=5), dict(top_logprobs=21), "top_logprobs"),
        (one, dict(max_new_tokens=5), dict(number=-1), "number"),
    ):
        with pytest.raises(ValueError, match=message):
            here.ask(prompt, settings, **more)


def test_a_full_queue_and_a_closed_engine(world: Callable[..., World]) -> None:
    here = world("llama")
    engine: Any = Engine(here.writer, here.params, EngineSettings(slots=1, capacity=32, chunk=8, queue=2))
    engine._slots = None  # broken on purpose: the first request that is taken up ends it
    engine._device.acquire()
    config = GenerationConfig(max_new_tokens=3)
    engine._each = 2.5  # seconds that an answer takes
    streams = [engine.submit(prompts(1)[0], config)]
    deadline = time.monotonic() + 10
    while engine.stats().active == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    streams += [engine.submit(prompts(1)[0], config) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests") as full:
        engine.submit(prompts(1)[0], config)
    assert full.value.seconds == 5
    engine._device.release()
    for stream in streams:
        with pytest.raises(RuntimeError, match="engine broke"):
            stream.result()
    with pytest.raises(RuntimeError, match="engine broke"):
        engine.submit(prompts(1)[0], config)
    engine.close()


def test_closing_lets_answers_end(world: Callable[..., World]) -> None:
    """The last test of its network: the engine is closed afterwards."""
    here = world("bart")
    streams = [here.ask(p, dict(max_new_tokens=10)) for p in prompts(9, 2)]
    here.engine.close()
    assert {stream.result().finish for stream in streams} <= {"eos", "length"}
    with pytest.raises(RuntimeError, match="closed"):
        here.ask(prompts(1)[0], dict(max_new_tokens=3))
