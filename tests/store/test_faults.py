"""Each exception of a library ends in the class of the party who must act; all of them are real."""

import errno
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import botocore.exceptions  # type: ignore[import-untyped]  # it ships no types
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from pipeline.store.faults import fault_of, known_error
from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from schemas.errors import CapacityError, DataError, OpdError, StorageError
from schemas.faults import NUMBERS
from tests.conftest import UseS3
from tests.support.answers import AnswerServer
from tests.support.repository import REPOSITORY
from tests.support.servers import S3Account, free_port

IMPATIENT = StorageSection(retry_s=0.1, connect_timeout_s=0.5, read_timeout_s=1.0)
LIMIT_BYTES = 1 << 16

Write = Callable[[Path], object]


# --- a full disk, as each library meets it: files may not become larger than a limit ---


def many() -> torch.Tensor:
    return torch.zeros(LIMIT_BYTES)


WRITERS: dict[str, Write] = {
    "torch": lambda path: torch.save({"a": many()}, path),
    "safetensors": lambda path: safetensors.torch.save_file({"a": many()}, path),
    "pyarrow": lambda path: pq.write_table(
        pa.table({"a": [os.urandom(2 * LIMIT_BYTES)]}), str(path)
    ),
    "tokenizers": lambda path: big_tokenizer().save(str(path)),
    "python": lambda path: path.write_bytes(bytes(LIMIT_BYTES * 2)),
}


def big_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({f"word {number}": number for number in range(9000)}, "?"))


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """Let this process have less; Python ignores the signal that a file too large brings."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_whichever_library_writes(library: str, tmp_path: Path) -> None:
    with limited(resource.RLIMIT_FSIZE, LIMIT_BYTES), pytest.raises(Exception) as caught:  # noqa: B017, PT011 - each has its own
        WRITERS[library](tmp_path / "file")
    assert isinstance(known_error(caught.value), StorageError), caught.value
    found = fault_of(caught.value)
    assert found is not None and found.disk


# --- capacity ---


def too_much_memory() -> None:
    bytearray(1 << 62)


def too_much_torch() -> None:
    torch.empty(1 << 58)


def too_much_arrow() -> None:
    pa.allocate_buffer((1 << 62) - 64)


def too_many_files() -> None:
    held: list[int] = []
    try:
        with limited(resource.RLIMIT_NOFILE, 64):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for number in held:
            os.close(number)


@pytest.mark.parametrize(
    "exhaust", [too_much_memory, too_much_torch, too_much_arrow, too_many_files]
)
def test_what_runs_out_is_capacity(exhaust: Callable[[], None]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - each has its own
        exhaust()
    assert isinstance(known_error(caught.value), CapacityError), caught.value


NO_PROCESSES = """
import os, resource, subprocess, threading
from pipeline.store.faults import known_error
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for start in (lambda: subprocess.run(["true"]), threading.Thread(target=print).start):
    try:
        start()
    except Exception as error:
        print(type(known_error(error)).__name__)
"""


def test_processes_and_threads_that_cannot_start_are_capacity() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_PROCESSES], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.split() == ["CapacityError"] * 2, done.stderr


# --- formats ---


def damaged_safetensors(path: Path) -> None:
    safetensors.torch.load_file(path)


def damaged_parquet(path: Path) -> None:
    pq.read_table(path)


def damaged_torch(path: Path) -> None:
    torch.load(path)


@pytest.mark.parametrize("read", [damaged_safetensors, damaged_parquet, damaged_torch])
def test_bytes_that_no_format_has_are_damage(read: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - each has its own
        read(path)
    assert isinstance(known_error(caught.value), DataError), caught.value


# --- the operating system ---


@pytest.mark.parametrize("number", NUMBERS)
def test_each_number_of_the_table_ends_in_its_class(number: int) -> None:
    error = known_error(OSError(number, os.strerror(number)))
    assert isinstance(error, NUMBERS[number].kind)


def test_any_other_number_is_a_place_that_cannot_be_used() -> None:
    error = known_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone"))
    assert isinstance(error, StorageError)
    assert "/gone" in str(error)


def test_a_bug_is_none_of_the_table() -> None:
    for error in (ValueError("x"), KeyError("x"), TypeError("x"), RuntimeError("x"), EOFError()):
        assert known_error(error) is None, error


def test_a_cause_counts_and_one_that_was_hidden_does_not() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    behind, hidden = ValueError("x"), ValueError("x")
    behind.__cause__ = full
    hidden.__context__, hidden.__suppress_context__ = full, True
    assert isinstance(known_error(behind), StorageError)
    assert known_error(hidden) is None


# --- a store that refuses ---


def told(use_s3: UseS3, endpoint: str) -> str:
    """Return what is told when a record is read from an endpoint; its class is checked."""
    storage = Storage(use_s3(S3Account(endpoint)), IMPATIENT)
    with pytest.raises(OpdError) as caught:
        storage.get("key")
    assert type(caught.value) is StorageError
    return str(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("ExpiredToken", 400, "session token has expired"),
        ("InvalidToken", 400, "AWS_SESSION_TOKEN is not valid"),
        ("SignatureDoesNotMatch", 403, "AWS_SECRET_ACCESS_KEY is not that of"),
        ("InvalidAccessKeyId", 403, "does not know the access key"),
        ("AccessDenied", 403, "do not allow it"),
        ("NoSuchBucket", 404, "bucket does not exist"),
        ("InvalidBucketName", 400, "will not accept it"),
        ("PermanentRedirect", 301, "in another region: set AWS_DEFAULT_REGION to eu-north-1"),
        ("AuthorizationHeaderMalformed", 400, "in another region"),
        ("SlowDown", 503, "failed for 0 s"),
        ("SomethingNew", 418, "SomethingNew"),
        ("SomethingForbidden", 403, "was refused"),
    ],
)
def test_a_refusal_names_its_culprit(code: str, status: int, words: str, use_s3: UseS3) -> None:
    with AnswerServer(status, code, {"x-amz-bucket-region": "eu-north-1"}) as endpoint:
        assert words in told(use_s3, endpoint)


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "AccessDenied", "403"])
@pytest.mark.parametrize(
    ("minutes", "words"), [(-61, "61 minutes ahead of"), (45, "45 minutes behind")]
)
def test_a_clock_that_is_off_is_told_with_how_far(
    code: str, minutes: int, words: str, use_s3: UseS3
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    with AnswerServer(403, code, {"Date": date}) as endpoint:
        said = told(use_s3, endpoint)
    assert f"this machine's clock is {words} the server's" in said
    assert "AWS_SECRET" not in said


def test_a_certificate_that_cannot_be_verified_is_told(use_s3: UseS3, tmp_path: Path) -> None:
    with AnswerServer(200, "", {}, certificate=own_certificate(tmp_path)) as endpoint:
        assert "certificate cannot be verified" in told(use_s3, endpoint)


def test_a_server_without_tls_is_told(use_s3: UseS3) -> None:
    with AnswerServer(200, "", {}) as endpoint:
        said = told(use_s3, endpoint.replace("http://", "https://"))
    assert "is it https:// where the server speaks http://?" in said


def test_a_name_that_nobody_knows_is_told(use_s3: UseS3) -> None:
    assert "name cannot be resolved" in told(use_s3, "http://nowhere.invalid")


def test_a_port_where_nobody_listens_is_told(use_s3: UseS3) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    said = told(use_s3, endpoint)
    assert endpoint in said and "AWS_ENDPOINT_URL" in said


def test_an_endpoint_that_is_no_url_is_told(use_s3: UseS3) -> None:
    assert "not-a-url" in told(use_s3, "not-a-url")


def test_a_profile_that_is_not_there_is_told(
    use_s3: UseS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE" in told(use_s3, "http://127.0.0.1:9")


def test_a_server_that_never_answers_is_told(use_s3: UseS3) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "failed for 0 s" in told(use_s3, endpoint)


def own_certificate(folder: Path) -> Path:
    """Return a certificate that nobody vouches for, with its key."""
    path = folder / "own.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(path), "-nodes"]
    named = ["-subj", "/CN=127.0.0.1", "-days", "2", "-out", str(folder / "crt")]
    subprocess.run([*made, *named], check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "crt").read_text())
    return path


def test_botocore_says_what_the_table_expects() -> None:
    for name in ("NoCredentialsError", "ProfileNotFound", "SSOError", "HTTPClientError"):
        assert hasattr(botocore.exceptions, name)
    assert ssl.SSLCertVerificationError.__module__ == "ssl"
