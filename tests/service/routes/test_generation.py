"""Chat and text completions (instructrec_jax.service.routes.asked_texts, instructrec_jax.service.writer), asked by the
openai client and by curl."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from live_service import live

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.example import Example, Message
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.service.app import make_app
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.models import open_service
from instructrec_jax.service.privacy import Private
from instructrec_jax.service.routes.generation import Answers, events_of, wholes
from instructrec_jax.service.settings import EngineSettings, LimitsConfig, ModelConfig, ServeConfig
from instructrec_jax.service.stream import Stream

TEXTS = ["a good film about war", "bright music", "the old book is not dull", "space crime love", "new"]


@pytest.fixture(scope="module")
def world(language_models: dict[str, Path], checkpoint: Path) -> Iterator[SimpleNamespace]:
    models = [ModelConfig(str(language_models["llama"]), name="tiny"), ModelConfig(str(checkpoint), name="encoder")]
    limits = LimitsConfig(choices=3, new_tokens=40, default_tokens=12)
    config = ServeConfig(models=models, limits=limits, engine=EngineSettings(slots=4, capacity=256, chunk=32))
    app = make_app(open_service(config))
    with live(app) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield SimpleNamespace(url=url, client=client, model=LanguageModel(language_models["llama"]), app=app)


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_chat_is_what_generate_writes(world: SimpleNamespace) -> None:
    for text in TEXTS[:3]:
        answer = world.client.chat.completions.create(model="tiny", messages=turns(text), max_tokens=20)
        example = Example(instruction="", messages=(Message("user", text),))
        (expected,) = world.model.generate(example, GenerationConfig(max_new_tokens=20))
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == ("length" if expected.finish == "length" else "stop")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_text_is_continued_as_it_is_by_several_choices(world: SimpleNamespace) -> None:
    config = GenerationConfig(max_new_tokens=15, temperature=0.8, top_k=10, seed=7)
    answer = world.client.completions.create(
        model="tiny", prompt=TEXTS[0], max_tokens=15, temperature=0.8, seed=7, n=3, extra_body={"top_k": 10}
    )
    expected = world.model.generate([TEXTS[0]] * 3, config, raw=True)
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert len({choice.text for choice in answer.choices}) > 1


@pytest.mark.parametrize("stop", [None, ["dull"]])
def test_a_stream_says_what_the_whole_answer_says(world: SimpleNamespace, stop: list[str] | None) -> None:
    asked = dict(model="tiny", messages=turns(TEXTS[1]), max_tokens=30, temperature=1.5, seed=3, stop=stop)
    whole = world.client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2)
    said, tokens, usage = ["", ""], [0, 0], None
    stream = world.client.chat.completions.create(
        **asked, n=2, logprobs=True, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert said == [choice.message.content for choice in whole.choices]
    assert tokens == [len(choice.logprobs.content) for choice in whole.choices]
    assert usage == whole.usage or usage.completion_tokens == whole.usage.completion_tokens
    first = whole.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 2 and first.top_logprobs[0].logprob >= first.top_logprobs[1].logprob


def test_a_crowd_gets_what_each_gets_alone(world: SimpleNamespace) -> None:
    def ask(number: int) -> str:
        sampled = {"temperature": 1.2, "seed": number} if number % 2 else {}
        answer = world.client.completions.create(
            model="tiny",
            prompt=TEXTS[number % 5],
            max_tokens=5 + number % 20,
            **sampled,
            extra_body={"exact": number % 3 == 0},
        )
        return str(answer.choices[0].text)

    alone = [ask(number) for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("chat/completions", {"messages": []}, 422, "messages"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 422, "messages[0]"),
        ("chat/completions", {"messages": turns("a"), "n": 9}, 422, "limits.choices"),
        ("chat/completions", {"messages": turns("a"), "max_tokens": 41}, 422, "limits.new_tokens"),
        ("chat/completions", {"messages": turns("a"), "frequency_penalty": 1}, 422, "frequency_penalty"),
        ("chat/completions", {"messages": turns("a"), "temperature": -1}, 422, "temperature"),
        ("chat/completions", {"messages": turns("a"), "top_logprobs": 2}, 422, "logprobs"),
        ("chat/completions", {"messages": turns("a"), "model": "encoder"}, 400, "encoder"),
        ("chat/completions", {"messages": turns("a"), "tepmerature": 1}, 422, "temperature"),
        ("chat/completions", {"messages": turns("film " * 400)}, 422, "tokens"),
        ("completions", {"prompt": []}, 422, "prompt"),
        ("completions", {"prompt": [1, 2]}, 422, "prompt"),
        ("completions", {"prompt": ""}, 422, "prompt"),
        ("completions", {"prompt": "a", "echo": True}, 422, "echo"),
        ("completions", {"prompt": "a", "stop": [""]}, 422, "stop"),
    ],
)
def test_bad_requests(world: SimpleNamespace, path: str, body: dict[str, object], status: int, named: str) -> None:
    answer = httpx.post(f"{world.url}/v1/{path}", json={"model": "tiny"} | body)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]


def test_curl_reads_a_stream(world: SimpleNamespace) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "tiny", "messages": turns("a good film"), "max_tokens": 5, "stream": True})
    command = [curl, "-sN", f"{world.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"


def test_who_leaves_ends_all_choices(world: SimpleNamespace) -> None:
    cancelled: list[int] = []
    streams = [Stream(3, partial(cancelled.append, number)) for number in range(2)]
    answers = Answers("tiny", world.app.state.service.models["tiny"].writer, streams, True, False, 3, Private())

    async def leave() -> None:
        events = events_of(answers, False, 60.0, Exchange("r", "POST"))
        assert b"assistant" in await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert set(cancelled) == {0, 1}


def test_a_choice_that_fails_ends_the_others() -> None:
    cancelled: list[int] = []
    streams = [Stream(3, partial(cancelled.append, number)) for number in range(2)]
    streams[0].put(FloatingPointError("NaN"))
    with pytest.raises(FloatingPointError):
        asyncio.run(asyncio.wait_for(wholes(streams), 30))
    assert 1 in cancelled
