"""Errors of the service, in the form of OpenAI's API."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructrec_jax.service.discretion import GAP, said_in, without_words, words_of_schema

logger = logging.getLogger(__name__)
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
}
REFUSALS = {
    404: "there is no such path; /openapi.json lists those that there are.",
    405: "this path has no such method; /openapi.json lists those that there are.",
}


class ServiceError(Exception):
    """An answer that is an error.

    Args:
      status: the HTTP status.
      message: what is wrong, and the remedy.
      param: the field of the request at fault.
      code: a short name for programs.
      headers: additional headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)

    def body(self) -> dict[str, dict[str, str | None]]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorForm(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorForm, "description": "The request is at fault; the message names the remedy."},
    "5XX": {"model": ErrorForm, "description": "The service is at fault, or not ready."},
}


class Contained:
    """An ASGI layer: a request that fails unexpectedly fails alone, says nothing of what was asked, and is logged."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise  # the server logs it and closes the connection, so that half an answer is not taken for a whole
            exchange = scope["state"]["exchange"]
            fields = {"request_id": exchange.request_id, "path": getattr(scope.get("route"), "path", "unknown")}
            logger.error("a request failed", exc_info=error, extra={"fields": fields})
            message = "the service failed to answer; its log has the reason under this X-Request-Id."
            await ServiceError(500, message, code="internal").response()(scope, receive, send)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            message = "the service shut down before the answer was there (drain_seconds): ask again."
            await ServiceError(503, message, code="closing", headers={"Retry-After": "5"}).response()(
                scope, receive, send
            )


def add_handlers(app: FastAPI) -> None:
    """Makes every error of an app an answer in this form, without what the caller said."""

    async def answer(request: Request, error: ServiceError) -> JSONResponse:
        known = _known_words(app)
        said = [*said_in(await request.body(), known), *request.query_params.values()]
        said += [str(value) for value in request.path_params.values()]
        error.message = without_words(error.message, said, known)
        return error.response()

    @app.exception_handler(ServiceError)
    async def known(request: Request, error: ServiceError) -> JSONResponse:
        return await answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await answer(request, _invalid(error.errors(), _known_words(app)))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = REFUSALS.get(error.status_code, f"{str(error.detail).rstrip('.')}.")
        return ServiceError(error.status_code, message, headers=error.headers).response()


def _known_words(app: FastAPI) -> set[str]:
    """Names of fields, their fixed values and the models."""
    if not hasattr(app.state, "words"):
        app.state.words = words_of_schema(app.openapi()) | set(app.state.service.models)
    words: set[str] = app.state.words
    return words


def _invalid(problems: Sequence[Mapping[str, Any]], known: Collection[str]) -> ServiceError:
    """The error of a request that does not fit its schema; of what was sent it names fields that there are."""
    first = problems[0]
    parts = [str(part) if isinstance(part, int) or part in known else GAP for part in first["loc"] if part != "body"]
    message = str(first["msg"]).rstrip(".")
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), sorted(known), 1)
        message = f"there is no such field; the nearest is {near[0]!r}" if near else "there is no such field"
    elif first["type"] == "missing":
        message = "this field is missing"
    param = ".".join(parts) or None
    return ServiceError(422, f"{param or 'body'}: {message}.", param=param, code="invalid")
