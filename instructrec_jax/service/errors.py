"""Errors of the service, in the form of OpenAI's API."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
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


def add_handlers(app: FastAPI) -> None:
    """Makes every error of an app an answer in this form; an unexpected one says nothing of the request."""

    @app.exception_handler(ServiceError)
    async def known(request: Request, error: ServiceError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return ServiceError(error.status_code, str(error.detail), headers=headers).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return ServiceError(500, "the service failed to answer; its log has the reason.", code="internal").response()


def _invalid(problems: Sequence[Mapping[str, Any]]) -> ServiceError:
    """The error of a request that does not fit its schema; of what was sent it names fields only."""
    first = problems[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
    message = f"{param}: {first['msg']}." if param else f"{first['msg']}."
    return ServiceError(422, message, param=param, code="invalid")
