"""JSON lines of what the service does: names, counts and times, and never what a user said.

A library's message may quote a text, and so may an exception's. So once the service answers, a line has the message
of this package's service and of uvicorn only (both are constant, or name settings and files); of anything else it has
the place in the code. An exception is its type and its frames, without message and values.
"""

import json
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TextIO

from instructrec_jax.service.exchange import Exchange

logger = logging.getLogger(__name__)
SPEAKING = ("instructrec_jax.service", "uvicorn")  # loggers whose messages are known


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the fields given as `extra={"fields": {...}}`.

    Attributes:
      answering: whether requests come in; before that, all messages are about settings and files.
    """

    answering = False

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": time, "level": record.levelname.lower()}
        if not self.answering or record.name.startswith(SPEAKING):
            line["message"] = record.getMessage().strip()
        else:
            line["message"] = f"{record.name} at {Path(record.pathname).name}:{record.lineno}"
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = described(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True)


def described(error: BaseException) -> list[dict[str, object]]:
    """An exception and its causes: types and frames ("file:line function"), the innermost frame last."""
    found: list[dict[str, object]] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < 10:
        frames = traceback.extract_tb(cause.__traceback__)[-30:]
        places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        found.append({"type": type(cause).__name__, "frames": places})
        cause = cause.__cause__ or cause.__context__
    return found


def log_exchange(exchange: Exchange) -> None:
    """A line of a request that has ended: an observer."""
    fields = {
        "request_id": exchange.request_id,
        "method": exchange.method,
        "route": exchange.route,
        "key": exchange.key,
        "model": exchange.model,
        "status": exchange.status,
        "counts": dict(exchange.counts),
        "seconds": round(exchange.seconds, 6),
        "first": None if exchange.first is None else round(exchange.first, 6),
    }
    logger.info("request", extra={"fields": fields})


@contextmanager
def logs_to(path: str) -> Iterator[JsonLines]:
    """While the block runs, everything that is logged is a JSON line of a file; "": of stderr.

    The file is opened again when it was moved away, as by logrotate. Raises OSError if it cannot be written.
    """
    handler: logging.Handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    form = JsonLines()
    handler.setFormatter(form)
    root, own = logging.getLogger(), [logging.getLogger(name) for name in SPEAKING]
    levels = [each.level for each in own]
    level = root.level
    before = root.handlers, threading.excepthook, sys.unraisablehook, logging.raiseExceptions, warnings.showwarning
    root.handlers = [handler]
    root.setLevel(logging.WARNING)  # of whatever a package has made it
    for each in own:
        each.setLevel(logging.INFO)
    warnings.showwarning = _log_warning  # logging.captureWarnings does nothing where another has called it before
    logging.raiseExceptions = False  # a full disk: logging would print the record's values to stderr
    threading.excepthook = _log_thread
    sys.unraisablehook = _log_unraisable
    try:
        yield form
    finally:
        root.handlers, threading.excepthook, sys.unraisablehook, logging.raiseExceptions, warnings.showwarning = before
        for each, old in zip([root, *own], [level, *levels], strict=True):
            each.setLevel(old)
        handler.close()


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Without the message, which may quote a text."""
    logging.getLogger("py.warnings").warning("%s", category.__name__)


def _log_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None:
        logger.error("a thread ended", exc_info=found.exc_value)


def _log_unraisable(found: "sys.UnraisableHookArgs") -> None:
    if found.exc_value is not None:
        logger.error("an exception nobody could handle", exc_info=found.exc_value)
