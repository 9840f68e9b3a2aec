"""Posts notices to the addresses of the settings: in order, with retries, from threads of their own.

A notice is tried again after a timeout, a connection that fails, and the statuses 408, 425, 429 and 500 or more;
another answer than 2xx is final. Redirects are not followed: a notice goes where the settings say. A receiver that got
a notice and answered too late gets it again, with the same `id`, by which it tells the two apart.
"""

import hashlib
import hmac
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from http.client import HTTPException
from typing import IO
from urllib.parse import urlsplit

from instructrec_jax.service.alerts import Notice
from instructrec_jax.service.monitoring_settings import WebhookConfig

logger = logging.getLogger(__name__)
WAITING = 100  # notices per webhook; beyond, the oldest is dropped
AGAIN = (408, 425, 429)
SIGNATURE = "X-Instructrec-Signature"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> None:
        return None


class Webhook:
    """One address. Its thread starts with the first notice and ends with `close`.

    Attributes:
      counts: notices "sent" and "dropped".

    Raises ValueError if the variable with the secret is not set.
    """

    def __init__(self, config: WebhookConfig, number: int = 0):
        self.config = config
        self.name = f"monitoring.webhooks[{number}] ({urlsplit(config.url).hostname})"  # paths of webhooks are secrets
        self._secret = b""
        if config.secret_variable:
            self._secret = os.environ.get(config.secret_variable, "").encode()
            if not self._secret:
                raise ValueError(
                    f"monitoring.webhooks[{number}].secret_variable: the environment variable "
                    f"{config.secret_variable} is not set. Set it to the key of the signature."
                )
        self.counts: Counter[str] = Counter()
        self._waiting: deque[Notice] = deque()
        self._changed = threading.Condition()
        self._closing: float | None = None  # time at which the thread gives up
        self._thread: threading.Thread | None = None
        self._open = urllib.request.build_opener(_NoRedirects).open

    def send(self, notice: Notice) -> None:
        """Queues a notice."""
        with self._changed:
            if self._closing is not None:
                return self._drop(notice, "the service is shutting down")
            if len(self._waiting) >= WAITING:
                self._drop(self._waiting.popleft(), f"{WAITING} newer ones wait")
            self._waiting.append(notice)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, seconds: float = 5.0) -> None:
        """Sends what waits, for so long at most, and ends the thread."""
        with self._changed:
            self._closing = time.monotonic() + seconds
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds + self.config.timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and self._closing is None:
                    self._changed.wait()
                if not self._waiting:
                    return
                notice = self._waiting.popleft()
                late = self._closing is not None and time.monotonic() > self._closing
            problem = "the service is shutting down" if late else self._delivered(notice)
            if problem is None:
                self.counts["sent"] += 1
            else:
                self._drop(notice, problem)

    def _drop(self, notice: Notice, why: str) -> None:
        self.counts["dropped"] += 1
        logger.error("%s: dropped the notice %s (%s): %s.", self.name, notice["id"], notice["alert"], why)

    def _delivered(self, notice: Notice) -> str | None:
        """Tries to deliver a notice; returns why it cannot be, or None."""
        body = json.dumps(notice).encode()
        problem = ""
        for attempt in range(self.config.attempts):
            if attempt and not self._pause(self.config.backoff * 2 ** (attempt - 1)):
                return f"{problem}, and the service is shutting down"
            problem, final = self._post(body)
            if not problem:
                return None
            if final:
                return problem
            logger.warning("%s: try %d of %d: %s.", self.name, attempt + 1, self.config.attempts, problem)
        return f"{problem}, {self.config.attempts} times"

    def _pause(self, seconds: float) -> bool:
        """Waits; False if the service shuts down before."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                if self._closing is not None and self._closing < until:
                    return False
                self._changed.wait(left)
        return True

    def _post(self, body: bytes) -> tuple[str, bool]:
        """(what went wrong, or "", whether trying again is useless)."""
        headers = {"Content-Type": "application/json", "User-Agent": "instructrec_jax"}
        if self._secret:
            headers[SIGNATURE] = f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}"
        request = urllib.request.Request(self.config.url, body, headers, method="POST")
        try:
            with self._open(request, timeout=self.config.timeout) as answer:
                return ("", False) if 200 <= answer.status < 300 else (f"it answered {answer.status}", True)
        except urllib.error.HTTPError as error:
            error.close()
            return f"it answered {error.code}", error.code < 500 and error.code not in AGAIN
        except TimeoutError:
            return f"no answer within {self.config.timeout:g} s", False
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                return f"no connection within {self.config.timeout:g} s", False
            return f"the connection failed ({type(reason).__name__})", False
