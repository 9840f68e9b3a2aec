"""The life of the service: its address, its connections, and its end. (`instructrec_jax.service.connections` too)"""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import hostile
import jax
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI, Request, Response
from jax.experimental.compilation_cache import compilation_cache
from serving import Serving, key_file

from instructrec_jax.distributed.program_cache import keep_programs
from instructrec_jax.evaluation import predictor
from instructrec_jax.service.connections import protocol
from instructrec_jax.service.door import Door, Guarded
from instructrec_jax.service.errors import Contained
from instructrec_jax.service.exchange import Observed
from instructrec_jax.service.models import open_service
from instructrec_jax.service.server import Server, check_address, check_tls, listener
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig, read_settings

PATIENCE = 60.0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "myhost", ""])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(ValueError, match="serve keys add"):
        check_address(ServeConfig(host=host))
    check_address(ServeConfig(host=host, keys="keys.json"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_this_machine_needs_none(host: str) -> None:
    check_address(ServeConfig(host=host))


def test_settings_are_runs_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("models: [{path: a, name: b}]\ndrain_seconds: 5\ncors_origins: [https://x]\nlimits: {queue: 3}\n")
    config = read_settings(["runs/films", "--config_path", str(file), "--port", "0", "--log", "serve.log"])
    assert [(each.path, each.name) for each in config.models] == [("runs/films", ""), ("a", "b")]
    assert (config.port, config.drain_seconds, config.limits.queue, config.log) == (0, 5.0, 3, "serve.log")


def test_a_port_in_use_is_named() -> None:
    with listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} .*choose another --port"):
            listener("127.0.0.1", port)
    listener("127.0.0.1", port).close()  # at once
    with pytest.raises(OSError, match="check --host"):
        listener("no.such.host.invalid", 0)


def test_the_next_start_compiles_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "LADDER", (1,))
    monkeypatch.setattr(predictor, "TOKENS_PER_BATCH", 64)
    kept = {name: getattr(jax.config, name) for name in jax.config.values if "_cache_" in name}
    asked: Counter[str] = Counter()

    def start() -> Counter[str]:
        jax.clear_caches()
        asked.clear()
        service = open_service(ServeConfig(models=[ModelConfig(str(checkpoint))]))
        service.warm_up()
        service.close()
        assert service.ready
        return Counter(asked)

    jax.monitoring.register_event_listener(listen := lambda event, **kwargs: asked.update([event.rpartition("/")[2]]))
    try:
        keep_programs(tmp_path)
        compilation_cache.reset_cache()  # opens the new folder
        first, second = start(), start()
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for name, value in kept.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert first["cache_misses"] > 0
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == second["compile_requests_use_cache"] == first["compile_requests_use_cache"]


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    signed = made.add_extension(names, True).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    for file, secret in (
        ("key.pem", serialization.NoEncryption()),
        ("locked.pem", serialization.BestAvailableEncryption(b"x")),
    ):
        form = serialization.PrivateFormat.PKCS8
        (folder / file).write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_tls_files_are_checked(tls_files: tuple[str, str]) -> None:
    certificate, key = tls_files
    check_tls(ServeConfig())
    check_tls(ServeConfig(tls_certificate=certificate, tls_key=key))
    for bad, message in (
        (ServeConfig(tls_certificate=certificate), "belong together"),
        (ServeConfig(tls_certificate=certificate, tls_key="none.pem"), "cannot be used"),
        (ServeConfig(tls_certificate=certificate, tls_key=certificate), "cannot be used"),
        (ServeConfig(tls_certificate=certificate, tls_key=key.replace("key", "locked")), "has a password"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tls(bad)


# ------------------------------------------------------------------ connections, and the end


@contextmanager
def running(limits: LimitsConfig, drain: float = 30.0, tls: tuple[str, str] | None = None) -> Iterator[SimpleNamespace]:
    """The server around a small app, in a thread of its own."""
    app, door = FastAPI(), Door()

    @app.get("/health")
    async def health() -> str:
        return "alive"

    @app.get("/slow")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @app.post("/late")
    async def late(request: Request) -> str:
        return str(len(await request.body()))

    @app.get("/large")
    async def large() -> Response:
        return Response(b"a" * 50_000_000)

    app.add_middleware(Guarded, door=door)
    app.add_middleware(Contained)
    app.add_middleware(Observed, observers=[])
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), tls, strict=True)) if tls else {}
    config = uvicorn.Config(
        app, http=protocol(limits), ws="none", lifespan="off", log_config=None, loop="asyncio",
        h11_max_incomplete_event_size=16_384, timeout_graceful_shutdown=1, **files,
    )  # fmt: skip
    with listener("127.0.0.1", 0) as sock:
        server = Server(config, door, drain)
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield SimpleNamespace(port=sock.getsockname()[1], door=door, thread=thread, server=server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def asked(path: str) -> bytes:
    return hostile.written(hostile.Sent("GET", path))


def test_connections_that_wait_are_closed() -> None:
    with running(LimitsConfig(body_seconds=0.2, seconds=0.3, connections=2)) as world:
        for begun in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "):
            assert hostile.statuses(world.port, begun, PATIENCE) == []
        again = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert hostile.statuses(world.port, again + again + b"GET /he", PATIENCE) == [200, 200]
        with socket.create_connection(("127.0.0.1", world.port), PATIENCE) as unread:  # asks, and never reads
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.sendall(asked("/large"))
            while not world.server.server_state.connections:
                time.sleep(0.01)
            while world.server.server_state.connections:
                time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", world.port)), socket.create_connection(("127.0.0.1", world.port)):
            while len(world.server.server_state.connections) < 2:
                time.sleep(0.01)
            assert hostile.statuses(world.port, asked("/health"), PATIENCE) == []  # one too many
        while world.server.server_state.connections:
            time.sleep(0.01)
        assert hostile.statuses(world.port, asked("/health"), PATIENCE) == [200]


def test_what_is_no_http_is_answered_in_the_same_form() -> None:
    with running(LimitsConfig()) as world, socket.create_connection(("127.0.0.1", world.port), PATIENCE) as sock:
        long = asked("/health").replace(b"Host", b"X-Long: " + b"a" * 20_000 + b"\r\nHost")
        assert hostile.statuses(world.port, long, PATIENCE) in ([431], [400])  # in one piece, or in several
        sock.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        said = b""
        while part := sock.recv(65536):
            said += part
        torn = b"POST /late HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n"
        assert hostile.statuses(world.port, torn, PATIENCE) == [400]
        while world.door.inside:
            time.sleep(0.01)
        assert said.startswith(b"HTTP/1.1 400") and b"connection: close" in said
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_http"


def test_running_requests_end_and_new_ones_are_refused() -> None:
    with running(LimitsConfig()) as world, ThreadPoolExecutor() as pool:
        first = pool.submit(hostile.statuses, world.port, asked("/slow?seconds=1"), PATIENCE)
        while world.door.inside < 1:
            time.sleep(0.01)
        world.server.handle_exit(signal.SIGTERM, None)
        assert hostile.statuses(world.port, asked("/slow?seconds=0"), PATIENCE) == [503]
        assert hostile.statuses(world.port, asked("/health"), PATIENCE) == [200]
        assert first.result() == [200]
        world.thread.join(PATIENCE)
        assert not world.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            hostile.statuses(world.port, asked("/health"), PATIENCE)


def test_what_does_not_end_in_time_is_told_so() -> None:
    with running(LimitsConfig(), drain=0.1) as world, ThreadPoolExecutor() as pool:
        first = pool.submit(hostile.statuses, world.port, asked("/slow?seconds=600"), PATIENCE)
        while world.door.inside < 1:
            time.sleep(0.01)
        world.server.handle_exit(signal.SIGTERM, None)
        assert first.result() == [503]


def test_https(tls_files: tuple[str, str]) -> None:
    with running(LimitsConfig(), tls=tls_files) as world:
        trusted = ssl.create_default_context(cafile=tls_files[0])
        with socket.create_connection(("127.0.0.1", world.port), PATIENCE) as sock:
            with trusted.wrap_socket(sock, server_hostname="localhost") as secure:
                secure.sendall(asked("/health"))
                assert secure.recv(1000).startswith(b"HTTP/1.1 200")
        assert hostile.statuses(world.port, asked("/health"), PATIENCE) == []  # not without TLS


# ------------------------------------------------------------------ as a process


@pytest.mark.slow
def test_kill_and_restart_under_load(checkpoint: Path, tmp_path: Path) -> None:
    path, key = key_file(tmp_path)
    log = tmp_path / "serve.log"
    common = (str(checkpoint), "--keys", str(path), "--log", str(log), "--limits.seconds", "60")
    headers = [("Content-Type", "application/json"), ("Authorization", f"Bearer {key}")]
    ask = hostile.written(hostile.Sent("POST", "/v1/embeddings", b'{"input": ["love", "a good film"]}', headers))
    ending = threading.Event()

    def load(port: int) -> list[int]:
        found: list[int] = []
        while not ending.is_set():
            try:
                found += hostile.statuses(port, ask, PATIENCE) or [0]
            except (ConnectionRefusedError, ConnectionResetError):
                found.append(0)
                time.sleep(0.01)
        return found

    with ThreadPoolExecutor(4) as pool:
        with Serving(tmp_path / "logs", *common, log=log) as first:
            users = [pool.submit(load, first.port) for _ in range(4)]
            time.sleep(2)
            second = subprocess.run(
                [sys.executable, "-m", "instructrec_jax.serve", *common, "--port", str(first.port)],
                capture_output=True, text=True, timeout=PATIENCE * 3,
            )  # fmt: skip
            assert second.returncode == 2 and "another program listens there" in second.stderr
            os.kill(first.all[0].pid, signal.SIGKILL)
            first.all[0].wait()
            log.rename(tmp_path / "killed.log")
            with Serving(tmp_path / "logs", *common, "--port", str(first.port), log=log) as again:
                assert again.port == first.port
                deadline = time.monotonic() + PATIENCE
                while log.read_text().count('"status": 200') < 20 and time.monotonic() < deadline:
                    time.sleep(0.1)
                status = again.stop()
                ending.set()
        found = {each for user in users for each in user.result()}
    assert status == 0 and found <= {200, 503, 0} and 200 in found
    for file in (tmp_path / "killed.log", log):
        lines = [json.loads(line) for line in file.read_text().splitlines()]  # whole, also of the one that was killed
        requests = [line for line in lines if line["message"] == "request"]
        assert {line["key"] for line in requests if line["status"] == 200} == {"tester"}
    messages = [line["message"] for line in lines if line["message"] != "request"]
    assert messages[-1] == "stop" and {"start", "ready", "shutting down"} <= set(messages)
    assert not [line for line in lines if line["level"] == "error"]


def test_answers_do_not_wait_for_acknowledgments() -> None:
    with listener("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
