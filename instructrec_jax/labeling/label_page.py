"""Asks a person for labels on a page in the browser, served to this machine alone.

Why not `service/`: this is one person's page for one session, and needs no extra. The address has a key, without which
nothing is answered, so neither other people on this machine nor other sites in the browser can read or label.
"""

import json
import secrets
from collections import deque
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Event, Lock, Thread
from urllib.parse import parse_qs, urlsplit

from instructrec_jax.labeling.questions import Questions

LARGEST = 10_000  # bytes of a request
NOTES = 20  # lines that the page keeps
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class LabelPage:
    """See `questions.Asker`. Serves until it is closed.

    Args:
      port: of 127.0.0.1; 0: any that is free.

    Raises ValueError where the port is taken.
    """

    def __init__(self, port: int):
        self.key = secrets.token_urlsafe(16)
        self.notes: deque[str] = deque(maxlen=NOTES)
        self.questions: Questions | None = None
        self.over = False
        self.lock = Lock()
        self.left = Event()  # all are answered, or the person quits
        self.told = Event()  # the page knows that the session is over
        try:
            self.server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--page {port}: {error}. Choose another port.") from error
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/?key={self.key}"
        print(f"label at {self.address}")

    def ask(self, questions: Questions) -> bool:
        """Asks until all are answered (True) or the person quits (False)."""
        with self.lock:
            self.questions = questions
        self.left.clear()
        if questions.next() is not None:
            self.left.wait()
        with self.lock:
            self.questions = None
        return questions.next() is None

    def say(self, text: str) -> None:
        """Prints a line, and shows it on the page."""
        print(text)
        self.notes.append(text)

    def close(self) -> None:
        """Tells the page that the session is over, and stops serving."""
        self.over = True
        self.told.wait(3)  # the page asks each second
        self.server.shutdown()
        self.server.server_close()

    def state(self) -> dict[str, object]:
        """What the page shows."""
        notes = list(self.notes)
        with self.lock:
            question = None if self.questions is None else self.questions.next()
            if self.questions is None or question is None:
                return {"state": "over" if self.over else "waiting", "notes": notes}
            return {"state": "asking", "notes": notes, "who": self.questions.who, **asdict(question)}

    def act(self, sent: dict[str, object]) -> str | None:
        """Does what the person asks for; what is wrong with it, None: nothing."""
        with self.lock:
            if self.questions is None:
                return "nothing is asked now"
            action = sent.get("action")
            if action == "undo":
                try:
                    return "nothing to undo" if self.questions.undo() is None else None
                except OSError as error:  # a full disk
                    return f"nothing was undone: {error}"
            if action == "quit":
                self.left.set()
                return None
            question = self.questions.next()
            if question is None or sent.get("number") != question.number:
                return "this text was answered in another window"
            if action not in ("label", "skip", "unsure"):
                return f"no action {action!r}"
            label = sent.get("label") if action == "label" else None
            try:
                self.questions.answer(question, action, label if label is None else str(label))
            except (OSError, ValueError) as error:  # a full disk; a label that there is not
                return f"the answer was not saved: {error}"
            if self.questions.next() is None:
                self.left.set()
            return None


def _handler(page: LabelPage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds that a silent connection keeps a thread

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if asked.path == "/" and self._knows(parse_qs(asked.query).get("key", [""])[0]):
                text = (files("instructrec_jax.labeling") / "templates" / "label.html").read_text("utf-8")
                self._send(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")
            elif asked.path == "/state" and self._knows(self.headers.get("X-Key", "")):
                self._send_state(None)
            else:
                self._refuse()

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if self.path != "/act" or not self._knows(self.headers.get("X-Key", "")):
                self._refuse()
                return
            if not size.isdecimal() or int(size) > LARGEST:
                self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"", "text/plain")
                return
            try:
                sent = json.loads(self.rfile.read(int(size)))
            except ValueError:
                sent = None
            self._send_state(page.act(sent) if isinstance(sent, dict) else "this is no JSON object")

        def _knows(self, key: str) -> bool:
            return secrets.compare_digest(key.encode(), page.key.encode())

        def _refuse(self) -> None:
            self._send(HTTPStatus.FORBIDDEN, b"Open the address that the command printed.", "text/plain")

        def _send_state(self, problem: str | None) -> None:
            state = page.state() | {"problem": problem}
            self._send(HTTPStatus.OK, json.dumps(state).encode(), "application/json")
            if state["state"] == "over":
                page.told.set()

        def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", POLICY),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: texts and keys stay out of logs."""

    return Handler
