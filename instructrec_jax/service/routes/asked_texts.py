"""The bodies of /v1/chat/completions and /v1/completions: OpenAI's fields, and those of `generate`."""

import secrets
from typing import Literal

from pydantic import Field

from instructrec_jax.data.conversations import read_messages
from instructrec_jax.data.example import BadExample, Example, read_tools
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import NO_FILES, row_pictures
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.pictures import bad_picture
from instructrec_jax.service.routes.parts import Asked
from instructrec_jax.service.settings import LimitsConfig

MOST_TOP = 20  # the likeliest tokens that a request may ask for
# Fields of OpenAI's API that change an answer and are not implemented: only these values are accepted.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "auto", "none"),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "echo": (None, False),
}


class StreamOptions(Asked):
    include_usage: bool = False


class _Sampling(Asked):
    """The fields that both routes share.

    Decoding is greedy without `temperature`, as that of `generate`. Without `seed`, each sampled answer differs. With
    `exact`, an answer has the same bits whoever else asks.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    n: int = Field(1, ge=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    exact: bool = False
    user: str | None = None
    metadata: dict[str, object] | None = None
    store: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def config(self, new_tokens: int | None, limits: LimitsConfig) -> GenerationConfig:
        """The settings of the answers. Raises ServiceError (422) for a field that is refused or beyond a limit."""
        for name, allowed in NEUTRAL.items():
            if getattr(self, name, None) not in allowed:
                raise ServiceError(422, f"{name} is not implemented: leave it out.", param=name, code="unsupported")
        if self.n > limits.choices:
            raise ServiceError(
                422, f"n is {self.n}; at most {limits.choices} (limits.choices).", param="n", code="limit"
            )
        if new_tokens is not None and new_tokens > limits.new_tokens:
            message = f"max_tokens is {new_tokens:,}; at most {limits.new_tokens:,} (limits.new_tokens)."
            raise ServiceError(422, message, param="max_tokens", code="limit")
        if self.stream_options is not None and not self.stream:
            raise ServiceError(422, "stream_options needs stream: true.", param="stream_options", code="invalid")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 16:
            raise ServiceError(422, f"stop has {len(stop)} texts; at most 16.", param="stop", code="limit")
        temperature = 0.0 if self.temperature is None else self.temperature
        given = {name: getattr(self, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
        seed = secrets.randbits(32) if self.seed is None and temperature > 0 else self.seed or 0
        try:
            return GenerationConfig(
                max_new_tokens=limits.default_tokens if new_tokens is None else new_tokens,
                temperature=temperature,
                stop=stop,
                seed=seed % 2**32,
                **{
                    name: value
                    for name, value in given.items()
                    if value is not None and (temperature or name[-1] == "y")
                },
            )
        except ValueError as error:
            raise ServiceError(422, str(error), code="invalid") from None


class ChatRequest(_Sampling):
    """A conversation whose next turn is asked for. `enable_thinking` and the like go to the run's template.

    Messages may have parts with pictures, as data URIs:
    `{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}`.
    """

    messages: list[dict[str, object]] = Field(min_length=1)
    tools: list[dict[str, object]] | None = None
    tool_choice: object = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    response_format: dict[str, object] | None = None
    parallel_tool_calls: bool | None = None

    def apart(self) -> tuple[object, tuple[Picture, ...]]:
        """(the messages without the pictures of their parts; these). Raises ServiceError (422) naming a part."""
        try:
            return row_pictures({}, self.messages, NO_FILES)
        except BadExample as error:
            raise bad_picture(error) from None

    def example(self, messages: object, pictures: tuple[Picture, ...]) -> Example:
        """The conversation of (masked) messages. Raises ServiceError (422) naming a message that is not one."""
        try:
            turns = read_messages(messages, True, frozenset({"name", "refusal"}))
            return Example(messages=turns, instruction="", tools=read_tools(self.tools), images=pictures)
        except BadExample as error:
            message = f"{error.field}: {error.reason}."  # without the detail, which quotes what was said
            raise ServiceError(422, message, param=error.field, code="invalid") from None

    @property
    def top(self) -> int:
        """How many of the likeliest tokens are reported."""
        if self.top_logprobs and not self.logprobs:
            raise ServiceError(422, "top_logprobs needs logprobs: true.", param="top_logprobs", code="invalid")
        return self.top_logprobs or 0

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(_Sampling):
    """Texts to continue as they are, without the run's template."""

    prompt: str | list[str]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


Finish = Literal["stop", "length"]


def finish_reason(finish: str) -> Finish:
    """OpenAI's word for why an answer ended."""
    return "length" if finish == "length" else "stop"
