"""Written answers: `/v1/chat/completions` and `/v1/completions`, whole or as a stream of server-sent events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from instructrec_jax.data.batch import Text
from instructrec_jax.data.prompts import render
from instructrec_jax.service.batching import QueueFull
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.pictures import check_pictures
from instructrec_jax.service.privacy import Private
from instructrec_jax.service.routes.asked_texts import ChatRequest, CompletionRequest, finish_reason
from instructrec_jax.service.routes.parts import Hidden, Noted, Running, in_time, of_size, too_many
from instructrec_jax.service.stream import Piece, Stream
from instructrec_jax.service.writer import ServedWriter

router = APIRouter(tags=["generation"])
KEEP_ALIVE = 15.0  # seconds without a token after which a comment keeps proxies from closing the connection


@dataclass(frozen=True)
class Answers:
    """The streams that answer a request, and the form of what is sent.

    Attributes:
      chat: whether the form is that of a conversation, else that of a text.
      prompts: tokens of the prompts.
      logprobs: whether tokens and their log-probabilities are sent.
      offsets: per choice, the number of characters sent so far.
    """

    model: str
    writer: ServedWriter
    streams: list[Stream]
    chat: bool
    logprobs: bool
    prompts: int
    hidden: Private
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, int] = field(default_factory=dict)

    def document(self, choices: list[dict[str, object]], *, chunk: bool, **more: object) -> dict[str, object]:
        """A whole answer, or a chunk of it."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        head = {"id": name, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def choice(self, index: int, piece: Piece, *, chunk: bool) -> dict[str, object]:
        """A choice, or the next piece of one."""
        spoken: dict[str, object] = {"text": piece.text}
        if self.chat:
            content = {"content": piece.text} if chunk else {"role": "assistant", "content": piece.text}
            spoken = {"delta" if chunk else "message": content}
        logprobs = None
        if self.logprobs:
            logprobs = self._chat_logprobs(piece) if self.chat else self._text_logprobs(index, piece)
        finish = None if piece.finish is None else finish_reason(piece.finish)
        return {"index": index, **spoken, "logprobs": logprobs, "finish_reason": finish}

    def _chat_logprobs(self, piece: Piece) -> dict[str, object]:
        def entry(token: int, value: float) -> dict[str, object]:
            text = self.writer.token(token)
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        tops = piece.top or [[]] * len(piece.tokens)
        each = zip(piece.tokens, piece.log_probs, tops, strict=True)
        content = [entry(token, value) | {"top_logprobs": [entry(*one) for one in top]} for token, value, top in each]
        return {"content": content, "refusal": None}

    def _text_logprobs(self, index: int, piece: Piece) -> dict[str, object]:
        texts, start = [self.writer.token(token) for token in piece.tokens], self.offsets.get(index, 0)
        places = [start + sum(map(len, texts[:n])) for n in range(len(texts))]
        self.offsets[index] = start + sum(map(len, texts))
        tops = [{self.writer.token(token): value for token, value in top} for top in piece.top]
        return {
            "tokens": texts,
            "token_logprobs": piece.log_probs,
            "top_logprobs": tops or None,
            "text_offset": places,
        }

    def usage(self, written: int) -> dict[str, object]:
        """Counts of tokens; those of prompts that were computed before are among the prompts'."""
        cached = self.streams[0].cached_tokens
        return {
            "prompt_tokens": self.prompts,
            "completion_tokens": written,
            "total_tokens": self.prompts + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


@router.post("/v1/chat/completions")
async def chat(asked: ChatRequest, request: Request, service: Running, noted: Noted, hidden: Hidden) -> Response:
    """The next turn of a conversation, rendered with the run's template."""
    model = service.model(asked.model, "chat", noted)
    writer = model.writer
    check_pictures(asked.messages, service.config.limits, "messages", together=True)
    messages, pictures = asked.apart()
    example, new_tokens = asked.example(await hidden.mask(messages), pictures), asked.new_tokens
    prompts = await _tokenized(lambda: [writer.chat(example)])
    config = writer.fitted(asked.config(new_tokens, service.config.limits), prompts, new_tokens is not None)
    service.drift(model).answered(render(example))
    streams = _submitted(lambda: writer.submit(prompts, config, n=asked.n, exact=asked.exact, top=asked.top))
    answers = Answers(model.name, writer, streams, True, bool(asked.logprobs), _length(prompts), hidden)
    return await _sent(answers, asked, request, service, noted)


@router.post("/v1/completions")
async def complete(
    asked: CompletionRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> Response:
    """Continues texts as they are, without the run's template."""
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    of_size(texts, "prompt", "texts", service.config.limits.texts, "limits.texts")
    model = service.model(asked.model, "complete", noted)
    writer = model.writer
    texts = await hidden.mask(texts)
    prompts = await _tokenized(lambda: [writer.text(text) for text in texts])
    config = writer.fitted(asked.config(asked.max_tokens, service.config.limits), prompts, asked.max_tokens is not None)
    top = asked.logprobs or 0
    streams = _submitted(lambda: writer.submit(prompts, config, n=asked.n, exact=asked.exact, top=top))
    answers = Answers(model.name, writer, streams, False, asked.logprobs is not None, _length(prompts), hidden)
    return await _sent(answers, asked, request, service, noted)


def _length(prompts: Sequence[Text]) -> int:
    return sum(len(prompt.tokens) for prompt in prompts)


async def _tokenized(work: Callable[[], list[Text]]) -> list[Text]:
    """Tokens and pictures, computed beside the event loop, so that a long text or a large picture delays nobody."""
    try:
        return await asyncio.to_thread(work)
    except ValueError as error:
        raise ServiceError(422, str(error), code="invalid") from None


def _submitted(work: Callable[[], list[Stream]]) -> list[Stream]:
    try:
        return work()
    except QueueFull as error:
        raise too_many(error) from None
    except ValueError as error:
        raise ServiceError(422, str(error), code="invalid") from None


async def _sent(
    answers: Answers, asked: ChatRequest | CompletionRequest, request: Request, service: Running, noted: Exchange
) -> Response:
    noted.counts["prompt_tokens"] += answers.prompts
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = events_of(answers, with_usage, service.config.limits.seconds, noted)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    pieces = await in_time(service, request, wholes(answers.streams))
    written = sum(len(piece.tokens) for piece in pieces)
    noted.counts["completion_tokens"] += written
    pieces = [answers.hidden.pieces()(piece) for piece in pieces]
    choices = [answers.choice(index, piece, chunk=False) for index, piece in enumerate(pieces)]
    return JSONResponse(answers.document(choices, chunk=False, usage=answers.usage(written)))


async def wholes(streams: list[Stream]) -> list[Piece]:
    """The whole answers; where one fails or nobody waits any more, the others end after their step."""
    try:
        return await asyncio.gather(*map(_whole, streams))
    finally:
        for stream in streams:
            stream.cancel()  # nothing, for one that has ended


async def _whole(stream: Stream) -> Piece:
    pieces = [piece async for piece in stream]
    return Piece(
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.tokens],
        [value for piece in pieces for value in piece.log_probs],
        [top for piece in pieces for top in piece.top],
        pieces[-1].finish,
    )


# ---------------------------------------------------------------- server-sent events


async def events_of(answers: Answers, with_usage: bool, seconds: float, noted: Exchange) -> AsyncIterator[bytes]:
    """The chunks of an answer; closing the iterator (the client left) cancels what is not written yet."""
    arrived: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(n, stream, arrived)) for n, stream in enumerate(answers.streams)]
    ends, written, left = asyncio.get_running_loop().time() + seconds, 0, len(tasks)
    nothing = {"usage": None} if with_usage else {}
    restored = [answers.hidden.pieces() for _ in tasks]
    try:
        if answers.chat:
            first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            starts: list[dict[str, object]] = [{"index": n, **first} for n in range(left)]
            yield _event(answers.document(starts, chunk=True, **nothing))
        while left:
            remaining = ends - asyncio.get_running_loop().time()
            try:
                index, piece = await asyncio.wait_for(arrived.get(), min(KEEP_ALIVE, max(remaining, 0)))
            except TimeoutError:
                if remaining > KEEP_ALIVE:
                    yield b": waiting\n\n"
                    continue
                late = f"the answer took longer than {seconds:g} s (limits.seconds)."
                yield _event(ServiceError(504, late, code="timeout").body())
                return
            if isinstance(piece, Exception):
                yield _event(_failed(piece).body())
                return
            written += len(piece.tokens)
            left -= piece.finish is not None
            piece = restored[index](piece)
            if piece.text or piece.finish or (answers.logprobs and piece.tokens):
                yield _event(answers.document([answers.choice(index, piece, chunk=True)], chunk=True, **nothing))
        if with_usage:
            yield _event(answers.document([], chunk=True, usage=answers.usage(written)))
        yield b"data: [DONE]\n\n"
    finally:
        noted.counts["completion_tokens"] += written
        for task in tasks:
            task.cancel()
        for stream in answers.streams:
            stream.cancel()


async def _pump(index: int, stream: Stream, arrived: "asyncio.Queue[tuple[int, Piece | Exception]]") -> None:
    try:
        async for piece in stream:
            arrived.put_nowait((index, piece))
    except Exception as error:
        arrived.put_nowait((index, error))


def _failed(error: Exception) -> ServiceError:
    """What a client learns of a failure: the network's own, by name; anything else is in the log alone."""
    message = str(error) if isinstance(error, FloatingPointError) else "the service failed to answer."
    return ServiceError(500, message, code="internal")


def _event(document: object) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()
