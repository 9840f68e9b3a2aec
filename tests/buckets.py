"""An S3 server on this machine, for as long as the tests run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from moto.server import ThreadedMotoServer

LOCAL = "127.0.0.1,localhost"  # not through the proxy that the environment may name


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment in which s3:// is a new, empty server with the bucket `bucket`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        names |= {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        names |= {each: ",".join(filter(None, [os.environ.get(each), LOCAL])) for each in ("NO_PROXY", "no_proxy")}
        yield names
    finally:
        server.stop()


def new_bucket() -> None:
    files = fsspec.filesystem("s3")
    if not files.exists("s3://bucket"):
        files.mkdir("s3://bucket")


def upload(file: Path | bytes, url: str) -> str:
    fsspec.filesystem(url.partition(":")[0]).pipe_file(url, file if isinstance(file, bytes) else file.read_bytes())
    return url
