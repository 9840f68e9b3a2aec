"""Hostile requests for the service: made of a seed and the routes' own schemas, so new routes are attacked too."""

import json
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

TRICKS = [
    "", "\x00", "\u202e\u200d" * 50, "e\u0301" * 3000, "{{7*7}}", "{% for x in range(10**9) %}{{x}}{% endfor %}",
    "{{ ''.__class__.__mro__ }}", "${jndi:ldap://x}", "{0.__class__.__init__.__globals__}", "%s%n%x", "(a+)+$",
    "a" * 40 + "!", "^(([a-z])+.)+[A-Z]([a-z])+$", "../../../../etc/passwd", "file:///etc/passwd", "'; DROP TABLE x;--",
    "<script>alert(1)</script>", "[PAD][CLS][SEP][MASK]", "<|im_start|>system", "a" * 20_000, "\ud800", "🂡" * 500,
    "true", "null", "NaN", "1e999", "__proto__", "constructor", " " * 5000, "\n" * 2000, "x\r\nSet-Cookie: a=b",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**64), 10**400, 0.1, -0.0, 1e308, 5e-324, float("inf"), float("nan")]
PATHS = [
    "//",
    "/%00",
    "/..%2f..%2fetc/passwd",
    "/v1/../health",
    "/v1/%ff",
    "/" + "a" * 9000,
    "/health/",
    "/.git/config",
]


@dataclass(frozen=True)
class Route:
    """A method and a path of the service, and the schema of its body (None: it has none)."""

    method: str
    path: str
    schema: Any


@dataclass
class Sent:
    """A request as it is written."""

    method: str
    path: str
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)


def routes_of(openapi: dict[str, Any]) -> list[Route]:
    """All routes of an OpenAPI description."""
    found = []
    for path, methods in sorted(openapi["paths"].items()):
        for method, operation in sorted(methods.items()):
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            found.append(Route(method.upper(), path, _resolved(schema, openapi) if schema else None))
    return found


def _resolved(schema: Any, openapi: dict[str, Any], depth: int = 0) -> Any:
    if isinstance(schema, dict) and "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {} if depth > 8 else _resolved(openapi["components"]["schemas"][name], openapi, depth + 1)
    if isinstance(schema, dict):
        return {name: _resolved(part, openapi, depth) for name, part in schema.items()}
    return [_resolved(part, openapi, depth) for part in schema] if isinstance(schema, list) else schema


def fitting(schema: Any, rng: random.Random, text: str) -> Any:
    """A value of a schema, with `text` as its texts."""
    if "anyOf" in schema or "oneOf" in schema:
        return fitting(rng.choice(schema.get("anyOf") or schema["oneOf"]), rng, text)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        needed, parts = schema.get("required", []), schema.get("properties", {})
        names = [name for name in parts if name in needed or rng.random() < 0.4]
        return {name: fitting(parts[name], rng, text) for name in names}
    if kind == "array":
        return [fitting(schema.get("items", {}), rng, text) for _ in range(rng.choice([1, 2, 3]))]
    return {"integer": 1, "number": 0.5, "boolean": True, "null": None}.get(kind, text)


def requests(routes: list[Route], key: str, count: int, seed: int = 0) -> Iterator[Sent]:
    """Hostile requests; most have a key, as strangers do not come far."""
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        yield _request(rng.choice([*routes, *(each for each in routes if each.schema)]), key, rng)


def _request(route: Route, key: str, rng: random.Random) -> Sent:
    path = re.sub(r"\{\w+\}", lambda _: rng.choice(["x", "%7B%7D", "0", "a" * 300]), route.path)
    sent = Sent(route.method, path, headers=[("Content-Type", "application/json")])
    text = rng.choice([*TRICKS, "a good film", "war", "love"])
    body: Any = fitting(route.schema, rng, text) if route.schema is not None else {}
    for _ in range(rng.choice([0, 1, 1, 2])):
        body = _twisted(body, rng)
    sent.body = json.dumps(body).encode() if route.schema is not None or rng.random() < 0.3 else b""
    if rng.random() < 0.35:
        sent.body = _torn(sent.body, rng)
    if rng.random() < 0.08:
        sent.path = rng.choice(PATHS) + rng.choice(["", "?x=%00&y=" + "z" * 500])
    if rng.random() < 0.08:
        sent.method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
    header = f"Bearer {key}"
    if rng.random() < 0.15:
        header = rng.choice(
            ["Bearer", "Basic !!", "Bearer irj-0-0", f"Bearer {key[:-1]}", "Basic OmE=", "Digest x" * 99]
        )
    sent.headers.append(("Authorization", header))
    if rng.random() < 0.1:
        odd = [
            ("X-Request-Id", "${x}" * 99),
            ("Accept", "text/html"),
            ("Content-Type", "text/xml"),
            ("Cookie", "a" * 900),
        ]
        sent.headers.append(rng.choice([*odd, ("Content-Encoding", "gzip"), ("X-Forwarded-For", "' OR 1=1")]))
    return sent


def _twisted(body: Any, rng: random.Random) -> Any:
    """A value with one part replaced, left out, added or nested."""
    odd = rng.choice([*TRICKS, *NUMBERS, None, True, [], {}, [[]], {"a": {"b": []}}, ["a"] * 2000, [None], [1.5]])
    if isinstance(body, dict) and body and rng.random() < 0.85:
        name = rng.choice(sorted(body))
        how = rng.random()
        if how < 0.6:
            return {**body, name: odd if rng.random() < 0.6 else _twisted(body[name], rng)}
        if how < 0.8:
            return {other: value for other, value in body.items() if other != name}
        return {**body, rng.choice([*TRICKS[:12], "extra"]): odd}
    if isinstance(body, list) and body and rng.random() < 0.7:
        return [*body[1:], _twisted(body[0], rng)]
    return odd


def _torn(body: bytes, rng: random.Random) -> bytes:
    """Bytes that are hardly JSON."""
    deep = rng.choice([20, 40, 2000, 100_000])
    many = b"{" + b",".join(b'"k%d":1' % n for n in range(5000)) + b"}"
    choices = [
        *(body[: rng.randrange(len(body) + 1)], body + b"}", b"\xef\xbb\xbf" + body, b"\xff\xfe" + body, body * 3),
        *(b"[" * deep, b'{"a":' * deep, b"[" * deep + b"]" * deep, b'{"input":"a","input":"b"}', b"1" * 5000, b'"'),
        *(b'{"input": "' + b"\\ud83d" * 50 + b'"}', b"null", b" " * 10_000, b"a" * 3_000_000, rng.randbytes(200)),
        *(b"\x1f\x8b\x08\x00" + body, body.replace(b":", b"=", 1), many),
    ]
    return rng.choice(choices)


# ---------------------------------------------------------------- over a socket


def written(sent: Sent) -> bytes:
    """The request as HTTP/1.1, asking the server to close the connection after it."""
    path = sent.path.encode("ascii", "replace").replace(b" ", b"%20")
    lines = [b"%s %s HTTP/1.1" % (sent.method.encode(), path), b"Host: x", b"Connection: close"]
    lines += [f"{name}: {value}".encode("latin-1", "replace") for name, value in sent.headers]
    lines += [b"Content-Length: %d" % len(sent.body)] if sent.body else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + sent.body


def smuggled(sent: Sent, rng: random.Random) -> bytes:
    """The request, or several, with headers and framing that are wrong or ambiguous."""
    whole = written(sent)
    head, _, body = whole.partition(b"\r\n\r\n")
    bare = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    chunked = b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    kept = head.replace(b"Connection: close", b"Connection: keep-alive")
    other = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    return rng.choice(
        [
            head + chunked + chunks,
            bare + b"\r\nContent-Length: 6" + chunked + chunks,
            bare + b"\r\nContent-Length: 6" + chunked + b"0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
            bare + chunked + b"ffffffffffffffff\r\n" + body,
            bare + chunked + b"-5\r\n" + body + b"\r\n0\r\n\r\n",
            bare + chunked + b"zz\r\n",
            bare + chunked + b"5;" + b"x=" * 20_000 + b"\r\naaaaa\r\n0\r\n\r\n",
            bare + b"\r\nTransfer-Encoding: xchunked\r\n\r\n" + chunks,
            bare + b"\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + chunks,
            bare + b"\r\nTransfer-Encoding : chunked\r\n\r\n" + chunks,
            bare + b"\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\n" + body,
            bare + b"\r\nContent-Length: -5\r\n\r\n" + body,
            bare + b"\r\nContent-Length: +5\r\n\r\n" + body,
            bare + b"\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + body,
            head + b"\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
            head + b"".join(b"\r\nX-%d: a" % n for n in range(5000)) + b"\r\n\r\n" + body,
            head + b"\r\nX-Fold: a\r\n  Authorization: b\r\n\r\n" + body,
            head + b"\r\nHost: y\r\n\r\n" + body,
            head.replace(b"Host: x\r\n", b"") + b"\r\n\r\n" + body,
            head + b"\r\nX-Nul: a\x00b\r\n\r\n" + body,
            head + b"\r\nExpect: 100-continue\r\n\r\n" + body,
            head + b"\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n\r\n" + body,
            whole.replace(b"\r\n", b"\n"),
            whole.replace(b"HTTP/1.1", b"HTTP/9.9"),
            kept + b"\r\n\r\n" + body + whole,
            (kept + b"\r\n\r\n" + body) * 5 + other,
            kept + b"\r\n\r\n" + body + b"\x00\x01garbage\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(100),
            rng.randbytes(500) + b"\r\n\r\n",
            b"GET /health\r\n\r\n",
        ]
    )


def statuses(port: int, data: bytes, seconds: float, *, half: bool = False, slow: float = 0.0) -> list[int]:
    """What the service answers to bytes, until it closes the connection; [] for nothing.

    Args:
      half: close our side of the connection after the bytes.
      slow: wait so many seconds before the last byte.

    Raises TimeoutError if it neither answers nor closes within `seconds`.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        said = b""
        try:
            sock.sendall(data[:-1] if slow else data)
            if slow:
                sock.settimeout(slow)
                try:
                    said += sock.recv(65536)
                except TimeoutError:
                    pass
                sock.settimeout(seconds)
                sock.sendall(data[-1:])
            if half:
                with suppress(OSError):  # it closed before
                    sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it closed before it had read everything
        try:
            while part := sock.recv(65536):
                said += part
        except ConnectionResetError:
            pass
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", said) if each != b"100"]
