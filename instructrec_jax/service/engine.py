"""Answers many requests at a time: they join and leave between two decoding steps (continuous batching).

One thread works on the devices. In each round it reads at most one chunk, or one picture, of one prompt and chooses one
token for every answer under way, so a long prompt delays the others by a chunk at a time. (Prompts whose tokens attend
to later ones are read as a whole: those of PaliGemma, and those with pictures of Gemma 3.) Texts and stop sequences of
a step are dealt with while the devices compute the next.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

import jax
import numpy as np

from instructrec_jax.backbones.layers import Cache
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.inference.decoding import NOT_NUMBERS, Network, Parameters
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.slots import MOST_TOP, Chosen, Rows, Seen, Slots
from instructrec_jax.inference.text import AnswerText, TextStream
from instructrec_jax.inference.writer import Writer
from instructrec_jax.service.batching import QueueFull
from instructrec_jax.service.prefixes import Prefixes, prefix_keys
from instructrec_jax.service.settings import EngineSettings
from instructrec_jax.service.stream import Piece, Stream, Top

logger = logging.getLogger(__name__)


MOST_CAPACITY = 2048  # without a setting


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing, and what it has done since it was opened.

    Attributes:
      queued, active: requests that wait for a slot, and that have one.
      slots: maximum of `active`.
      steps: decoding steps.
      batch_fill: mean share of the slots that a step chose a token for.
      prompt_tokens, tokens: of prompts that were taken up, and chosen ones.
      prefix_hits, prefix_misses: prompts' tokens that were copied from a known prefix, and that were computed.
      finished: answers by their finish; "failed" has the others.
    """

    queued: int
    active: int
    slots: int
    steps: int
    batch_fill: float
    prompt_tokens: int
    tokens: int
    prefix_hits: int
    prefix_misses: int
    finished: dict[str, int]


@dataclass(eq=False)
class _Request:
    """A request and how far it is."""

    prompt: np.ndarray
    config: GenerationConfig
    number: int
    exact: bool
    top: int
    stream: Stream
    text: AnswerText
    pieces: TextStream
    row: int = -1  # -1: it waits for a slot, or has given it back
    read: int = 0  # tokens of the prompt in the slot
    last_read: int = 0  # number of the round that read its last chunk
    writing: bool = False  # its prompt is read
    keys: list[bytes] = field(default_factory=list)
    images: TextImages | None = None
    starts: list[int] = field(default_factory=list)  # first token of each picture
    viewed: int = 0  # pictures that are read, or in a known prefix
    seen: Seen | None = None  # what they gave
    whole: bool = False  # its prompt is read as a whole
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    shown: int = 0  # tokens of the pieces so far
    begun: float = 0.0  # when it got its slot
    cancelled: bool = False
    ended: bool = False


@dataclass
class _Counts:
    steps: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    finished: dict[str, int] = field(default_factory=dict)


class Engine(Generic[Network]):
    """Answers requests with a writer's network.

    Args:
      writer, params: of an `answering.language_model.LanguageModel`.
    """

    def __init__(self, writer: Writer[Network], params: Parameters, settings: EngineSettings | None = None):
        decoder, settings = writer.decoder, settings or EngineSettings()
        capacity = settings.capacity or MOST_CAPACITY
        self.capacity = min(decoder.max_length, capacity)
        self.writer, self.settings = writer, settings
        self._pair = decoder.encoder_decoder
        self._slots = Slots(decoder, params, slots=settings.slots, capacity=self.capacity, chunk=settings.chunk)
        self._sees, self._together = self._slots.sees, self._slots.together
        self._rows = Rows(settings.slots)
        self._prefixes = Prefixes(settings.prefix_bytes)
        self._free = list(range(settings.slots))
        self._queue: deque[_Request] = deque()
        self._active: list[_Request] = []  # in the order in which they were taken up
        self._unseen: list[tuple[_Request, str | None]] = []  # whose newest token's text is still to be looked at
        self._counts = _Counts()
        self._rounds = 0
        self._each = 0.0  # seconds that an answer took, lately
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()  # guards the queue and what says that there is something to do
        self._device = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- from any thread

    def submit(
        self,
        prompt: np.ndarray,
        config: GenerationConfig,
        *,
        number: int = 0,
        exact: bool = False,
        top_logprobs: int = 0,
        images: TextImages | None = None,
    ) -> Stream:
        """Asks for the answer to a prompt, int32 [tokens]: the one that `Writer.write` gives to prompt `number`.

        Args:
          config: without beams; `batch_size` has no meaning here.
          number: of the prompt, or of the choice, which samples differently from the others.
          exact: the same bits whoever asks beside: every step then computes all slots at full length.
          top_logprobs: how many of the likeliest tokens to report with each token.
          images: the pictures of the prompt.

        Raises:
          ValueError: the prompt is empty or too long, or the request cannot be served.
          QueueFull: too many requests wait.
          RuntimeError: the engine is closed.
        """
        prompt = np.asarray(prompt, np.int32)
        self._check(prompt, config, number, top_logprobs)
        tokenizer, rules = self.writer.tokenizer, self.writer.decoder.rules
        text = AnswerText(tokenizer, rules.eos, config.stop)
        stream = Stream(len(prompt), lambda: self._cancel(request))
        request = _Request(prompt, config, number, exact, top_logprobs, stream, text, TextStream(text, config.stop))
        self._note_images(request, images)
        if not self._pair and not request.whole:
            request.keys = prefix_keys(prompt[:-1], self.settings.chunk, self._digests(request))
        with self._changed:
            if self._failure is not None:
                raise RuntimeError(f"the engine broke: {self._failure}") from self._failure
            if self._closed:
                raise RuntimeError("the engine is closed.")
            if len(self._queue) >= self.settings.queue:
                wait = len(self._queue) * self._each / self.settings.slots
                raise QueueFull(f"{len(self._queue)} requests wait for this model already.", wait)
            self._queue.append(request)
            self._changed.notify_all()
        return stream

    def _note_images(self, request: _Request, images: TextImages | None) -> None:
        request.whole = self._together == "prompt" or (self._together == "image" and images is not None)
        if images is None:
            return
        if not self._sees:
            raise ValueError("the network reads no images beside words.")
        request.images, first = images, images.vectors * np.arange(len(images.pictures))
        request.starts = np.flatnonzero(np.isin(images.places, first)).tolist()

    def _digests(self, request: _Request) -> dict[int, str]:
        """The hash of each picture by its first token."""
        if request.images is None:
            return {}
        return {start: each.digest for start, each in zip(request.starts, request.images.pictures, strict=True)}

    def _check(self, prompt: np.ndarray, config: GenerationConfig, number: int, top: int) -> None:
        if config.beams > 1:
            raise ValueError(f"beam search (beams={config.beams}) is not served: set beams to 1.")
        if not 0 <= top <= MOST_TOP:
            raise ValueError(f"top_logprobs must be from 0 to {MOST_TOP}, but is {top}.")
        if not 0 <= number < 2**31:
            raise ValueError(f"a prompt's number must be from 0 to {2**31 - 1}, but is {number}.")
        self.writer.decoder.check([prompt], ["the prompt"], config)
        size = max(len(prompt), config.max_new_tokens) if self._pair else len(prompt) + config.max_new_tokens
        if size > self.capacity:
            raise ValueError(
                f"the prompt has {len(prompt):,} tokens and max_new_tokens is {config.max_new_tokens:,}, but a slot "
                f"has {self.capacity:,} tokens: shorten the prompt, lower max_new_tokens, or raise the capacity."
            )

    def _cancel(self, request: _Request) -> None:
        with self._changed:
            request.cancelled = True
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        with self._changed:
            c = self._counts
            return EngineStats(
                queued=len(self._queue),
                active=len(self._active),
                slots=self.settings.slots,
                steps=c.steps,
                batch_fill=c.rows / (c.steps * self.settings.slots) if c.steps else 0.0,
                prompt_tokens=c.prompt_tokens,
                tokens=c.tokens,
                prefix_hits=c.prefix_hits,
                prefix_misses=c.prefix_misses,
                finished=dict(c.finished),
            )

    def warm_up(self) -> None:
        """Compiles every program that a request can need. Raises RuntimeError if requests are under way."""
        with self._device:
            if self._active:
                raise RuntimeError("warm up the engine before the first request.")
            slots = self._slots
            if slots.sees:
                slots.see(slots.unseen, np.zeros(slots.image_shape, np.float32), 0)
            for length in () if self._pair or slots.together == "prompt" else slots.reads:
                offset = length - slots.chunk
                for size in slots.sizes:
                    slots.insert(0, slots.prefill(0, np.zeros(size, np.int32), offset)[0], offset)
            for length in slots.lengths if slots.together != "nothing" else ():
                slots.prefill_whole(0, np.zeros(length, np.int32))
            for length in slots.lengths:
                if self._pair:
                    slots.encode(0, np.zeros(length, np.int32))
                for count in slots.counts:
                    slots.step(self._rows.first(count), length)
            slots.remember(0, np.zeros(1, np.int32))
            slots.clear(0)
            jax.block_until_ready(slots.held)

    def close(self, *, drain: bool = True) -> None:
        """Takes no more requests and returns when those there are have ended; without `drain` they are cancelled."""
        with self._changed:
            self._closed = True
            if not drain:
                for request in (*self._queue, *self._active):
                    request.cancelled = True
            self._changed.notify_all()
        self._thread.join()

    # ---------------------------------------------------------------- in the engine's thread

    def _work(self) -> None:
        try:
            while self._take_up():
                with self._device:
                    self._round()
        except BaseException as error:  # whoever waits must hear of it, whatever it is
            logger.exception("the engine broke")
            with self._changed:
                self._failure = error
                waiting = [*self._queue, *self._active]
                self._queue.clear()
            for request in waiting:
                if not request.ended:
                    request.stream.put(RuntimeError(f"the engine broke: {error}"))

    def _take_up(self) -> bool:
        """Waits for something to do, ends what was cancelled, and gives free slots to requests. False: all is done."""
        with self._changed:
            while not (self._queue or self._active or self._unseen or self._closed):
                self._changed.wait()
            for request in [r for r in (*self._queue, *self._active) if r.cancelled]:
                self._end(request, "cancelled")
            taken = []
            while self._queue and self._free:
                request = self._queue.popleft()
                request.row = self._free.pop(0)  # the lowest: steps compute as few rows as possible
                request.begun = time.perf_counter()
                self._active.append(request)
                taken.append(request)
            for request in taken:
                self._counts.prompt_tokens += len(request.prompt)
        for request in taken:
            with self._device:
                self._begin(request)
        return bool(self._active or self._unseen or self._queue) or not self._closed

    def _begin(self, request: _Request) -> None:
        """Copies the longest known prefix into a request's slot."""
        row, slots = request.row, self._slots
        blocks = self._prefixes.find(request.keys)
        for number, block in enumerate(blocks):
            slots.insert(row, block, number * slots.chunk)
        request.read = request.stream.cached_tokens = len(blocks) * slots.chunk
        if request.images is not None:
            request.seen = Seen(slots.unseen.vectors, request.images.places)
            request.viewed = sum(start + request.images.vectors <= request.read for start in request.starts)
        if request.config.repetition_penalty != 1:
            start = self.writer.decoder.rules.start
            slots.remember(row, np.array([start]) if self._pair else request.prompt)
        self._counts.prefix_hits += request.read
        self._counts.prefix_misses += len(request.prompt) - request.read
        if not self._pair and not request.whole and request.read >= len(request.prompt) - 1:
            self._start(request)

    def _start(self, request: _Request) -> None:
        """The prompt is read: from the next step on, the request's row takes part."""
        start, request.writing = self.writer.decoder.rules.start, True
        if self._pair:
            assert start is not None
            where = {"last": start, "place": 0, "source": len(request.prompt)}
        else:
            where = {"last": int(request.prompt[-1]), "place": len(request.prompt) - 1}
        self._rows.set(request.row, request.config, numbers=request.number, top=request.top > 0, active=True, **where)

    def _round(self) -> None:
        """One chunk (or picture) of one prompt, one step for all answers, and the texts of the step before."""
        # the prompt that has waited longest for a chunk: a short one does not wait for all of a long one
        reading = min((r for r in self._active if not r.writing), key=lambda r: r.last_read, default=None)
        finish_reading = None if reading is None else self._read(reading)
        writing = [r for r in self._active if r.writing]
        chosen = self._step(writing) if writing else None
        unseen, self._unseen = self._unseen, []
        for request, finish in unseen:
            self._show(request, finish)
        if finish_reading is not None:
            finish_reading()
        if chosen is not None:
            self._take_tokens(writing, jax.device_get(chosen))

    def _read(self, request: _Request) -> Callable[[], None]:
        """Starts reading a prompt's next picture or chunk; the function that it returns waits for the result."""
        slots, row, offset = self._slots, request.row, request.read
        self._rounds += 1
        request.last_read = self._rounds
        block: Cache | None = None
        last = len(request.prompt) - 1  # which the first step reads
        end = len(request.prompt) if self._pair or request.whole else min(offset + slots.chunk, last)
        if request.images is not None and request.viewed < len(request.starts) and request.starts[request.viewed] < end:
            return self._view(request, request.images)
        if self._pair:
            whole = slots.encode(row, request.prompt)
        elif request.whole:  # with the last token, to which others attend; the first step computes the same of it again
            whole = slots.prefill_whole(row, request.prompt, request.seen)
        else:
            block, whole = slots.prefill(row, request.prompt[offset:end], offset, request.seen)

        def finish() -> None:
            request.read = end
            if not bool(np.asarray(whole)):
                self._fail(request)
            elif not request.ended:
                if block is not None and end == offset + slots.chunk:
                    self._prefixes.add(request.keys[offset // slots.chunk], block)
                if self._pair or end >= last:
                    self._start(request)

        return finish

    def _view(self, request: _Request, images: TextImages) -> Callable[[], None]:
        """Starts reading a prompt's next picture; a file that went bad fails its request alone."""
        assert request.seen is not None
        try:
            pixels = images.read(images.pictures[request.viewed])  # decoded and checked before it was submitted
        except ValueError as error:
            broken = error
            return lambda: self._fail(request, broken)
        request.seen = self._slots.see(request.seen, pixels, request.viewed)
        request.viewed += 1
        return lambda: None

    def _step(self, writing: list[_Request]) -> Chosen:
        """Starts a step of the requests that write."""
        slots = self._slots
        rows, places = [r.row for r in writing], self._rows.arrays["place"]
        count = slots.count_for(max(rows) + 1)
        longest = int(places[rows].max()) + 1
        if self._pair:
            longest = max(longest, int(self._rows.arrays["source"][rows].max()))
        length = slots.length_for(longest)
        if any(request.exact for request in writing):
            count, length = slots.counts[-1], slots.lengths[-1]
        self._counts.steps += 1
        self._counts.rows += len(writing)
        return slots.step(self._rows.first(count), length)

    def _take_tokens(self, writing: list[_Request], chosen: Chosen) -> None:
        """Notes the chosen tokens, so that the next step can start before their text is looked at."""
        arrays, eos = self._rows.arrays, self.writer.decoder.rules.eos
        for request in writing:
            row = request.row
            if request.ended:
                continue
            if chosen.broken[row]:
                self._fail(request)
                continue
            token = int(chosen.tokens[row])
            request.tokens.append(token)
            request.log_probs.append(float(chosen.log_probs[row]))
            if request.top:
                best = zip(chosen.top_tokens[row], chosen.top_log_probs[row], strict=True)
                request.tops.append([(int(t), float(p)) for t, p in best][: request.top])
            self._counts.tokens += 1
            arrays["last"][row] = token
            arrays["place"][row] += 1
            arrays["count"][row] += 1
            full = len(request.tokens) >= request.config.max_new_tokens
            finish = "eos" if token in eos else "length" if full else None
            if finish is not None:
                self._release(request)
            self._unseen.append((request, finish))

    def _show(self, request: _Request, finish: str | None) -> None:
        """Hands over the text that has become final, and ends the answer if it is complete."""
        if request.ended:
            return
        if request.text.stops(request.tokens):
            finish = "stop"
        if finish is not None:
            self._end(request, finish)
        elif piece := request.pieces.update(request.tokens):
            self._put(request, piece, None)

    def _put(self, request: _Request, text: str, finish: str | None) -> None:
        new = slice(request.shown, len(request.tokens))
        request.shown = len(request.tokens)
        request.stream.put(Piece(text, request.tokens[new], request.log_probs[new], request.tops[new], finish))

    def _end(self, request: _Request, finish: str) -> None:
        request.ended = True
        self._release(request)
        if finish != "cancelled":
            self._each += 0.2 * (time.perf_counter() - request.begun - self._each)
        self._count(finish)
        self._put(request, request.pieces.update(request.tokens, final=True), finish)

    def _fail(self, request: _Request, error: Exception | None = None) -> None:
        """A request whose logits are NaN, or that has another error; the others go on."""
        if request.ended:
            return
        request.ended = True
        self._slots.clear(request.row)
        self._release(request)
        self._count("failed")
        request.stream.put(error or FloatingPointError(NOT_NUMBERS))

    def _count(self, finish: str) -> None:
        with self._changed:
            self._counts.finished[finish] = self._counts.finished.get(finish, 0) + 1

    def _release(self, request: _Request) -> None:
        """Gives the slot back."""
        with self._changed:
            if request in self._queue:
                self._queue.remove(request)
            if request.row >= 0:
                self._rows.arrays["active"][request.row] = False
                self._free = sorted([*self._free, request.row])
                self._active.remove(request)
                request.row = -1
