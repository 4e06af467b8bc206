"""What exceptions of libraries mean, as data: who must act, what is wrong, what to do.

Rows stand for error codes of S3, numbers of the operating system, classes and phrases;
`pipeline/store/faults.py` looks exceptions up. Pure.
"""

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import CapacityError, DataError, OpdError, StorageError

MEMORY = (
    "Lower batch_tokens of the stage, or train.micro_batch_tokens, and run the same command again: "
    "what is committed is kept"
)
LIMITS = (
    "Raise the limit (`ulimit -a` shows it; in a container, its settings) or end other processes, "
    "then run the same command again: what is committed is kept"
)
REACH = (
    "Check that the store is up and reachable (for s3://, AWS_ENDPOINT_URL) and run the same "
    "command again: nothing is half-written"
)
ACCESS = (
    "Check that you may read and write there (for s3://, the credentials AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY or a profile), then run the same command again: nothing is half-written"
)
MEND = "Fix this and re-run the same command: nothing is half-written"


@dataclass(frozen=True)
class Fault:
    """What an exception means."""

    reason: str
    """What is wrong, in words; empty where the exception's own words say it."""
    advice: str = MEND
    kind: type[OpdError] = StorageError
    passes: bool = False
    """Whether waiting may mend it."""
    disk: bool = False
    """Whether a local disk outside the store may have it, such as that of TMPDIR."""
    refused: bool = False
    """Whether someone who may do more would not have met it."""


def _refused(reason: str, advice: str = ACCESS) -> Fault:
    return Fault(reason, advice, refused=True)


def _passing(reason: str, advice: str = REACH) -> Fault:
    return Fault(reason, advice, passes=True)


def _disk(reason: str, *, passes: bool = False) -> Fault:
    return Fault(reason, passes=passes, disk=True)


NETWORK = _passing("")
_MEMORY = Fault("memory ran out", MEMORY, CapacityError)
_CREDENTIALS = _refused("no usable credentials were found")
_DAMAGED = Fault(
    "stored bytes cannot be read",
    "Restore the object; scores are made anew by `opd score --only-invalid`",
    DataError,
)
REGION = Fault(
    "the store will not accept it",
    "The bucket is in another region: set AWS_DEFAULT_REGION to that, or correct AWS_ENDPOINT_URL, "
    "and run the same command again: nothing is half-written",
)
_EXPIRED = _refused(
    "the session token has expired",
    "Get new credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or "
    "`aws sso login`), then run the same command again: nothing is half-written",
)

NUMBERS: Mapping[int, Fault] = {
    errno.ENOSPC: _disk("the disk is full"),
    errno.EDQUOT: _disk("the disk quota is used up"),
    errno.EFBIG: _disk("the file is larger than the file system or a limit allows"),
    errno.EROFS: _disk("the file system is read-only"),
    errno.EIO: _disk("the disk cannot be read or written", passes=True),
    errno.ENOTDIR: Fault("a part of the path is a file, not a folder"),
    errno.EISDIR: Fault("a folder stands where a file is expected"),
    errno.ELOOP: Fault("a symbolic link of the path leads round in a circle"),
    errno.ENAMETOOLONG: Fault("the path is too long"),
    errno.EOPNOTSUPP: Fault("the file system has no hard links, which a safe create needs"),
    errno.ENOSYS: Fault("the store or the file system lacks an operation that opd needs"),
    errno.EPERM: Fault("the operation is not permitted (or the file system has no hard links)"),
    errno.EXDEV: Fault("the path leads from one file system into another"),
    errno.EMLINK: Fault("a file has as many hard links as the file system allows"),
    errno.EACCES: _refused(""),
    errno.ESTALE: _passing("the file server forgot the file (stale handle)"),
    errno.EINTR: _passing("a signal interrupted it"),
    errno.EBUSY: _passing("it is in use"),
    errno.ETXTBSY: _passing("it is in use"),
    errno.ENODEV: _passing("the device is gone"),
    errno.ENXIO: _passing("the device is gone"),
    errno.ENOTCONN: _passing("the file system is not connected"),
    errno.EHOSTDOWN: NETWORK,
    errno.EHOSTUNREACH: NETWORK,
    errno.ENETUNREACH: NETWORK,
    errno.ENETDOWN: NETWORK,
    errno.ECONNREFUSED: NETWORK,
    errno.ECONNRESET: NETWORK,
    errno.ECONNABORTED: NETWORK,
    errno.ETIMEDOUT: NETWORK,
    errno.EPIPE: NETWORK,
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: Fault("this process has too many open files", LIMITS, CapacityError),
    errno.ENFILE: Fault("this machine has too many open files", LIMITS, CapacityError),
    errno.EAGAIN: Fault("no more processes or threads can be started", LIMITS, CapacityError, True),
    errno.EADDRNOTAVAIL: Fault("no network port is free", LIMITS, CapacityError, True),
}
"""Numbers of the operating system."""

OTHER = Fault("")
"""Any other number: a place of this machine that cannot be used."""

CODES: Mapping[str, Fault] = {
    **dict.fromkeys(("PermanentRedirect", "301", "307", "Redirect", "TemporaryRedirect"), REGION),
    "AuthorizationHeaderMalformed": REGION,
    "IllegalLocationConstraintException": REGION,
    "InvalidBucketName": Fault(
        "the store will not accept it", f"Correct the bucket's name in run.root. {MEND}"
    ),
    "NoSuchBucket": Fault("the bucket does not exist", f"Create it or correct run.root. {MEND}"),
    "KeyTooLongError": Fault("the path is too long"),
    "NotImplemented": Fault("the store lacks an operation that opd needs"),
    "XAmzContentSHA256Mismatch": _passing("the store got other bytes than were sent"),
    "BadDigest": _passing("the store got other bytes than were sent"),
    "QuotaExceeded": Fault("the store's quota is used up", disk=True),
    "InsufficientStorage": Fault("the store is full"),
    "507": Fault("the store is full"),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), _EXPIRED),
    "InvalidToken": _refused("the session token AWS_SESSION_TOKEN is not valid"),
    "InvalidAccessKeyId": _refused("the store does not know the access key AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": _refused(
        "the secret key AWS_SECRET_ACCESS_KEY is not that of the access key, or a proxy changes "
        "requests on their way"
    ),
    "AccessDenied": _refused("the credentials do not allow it (a policy of user or bucket)"),
    "AllAccessDisabled": _refused("the bucket is closed for everybody"),
    "AccountProblem": _refused("there is a problem with the store's account"),
    "403": _refused("the credentials are not valid or do not allow it"),
    "Forbidden": _refused("the credentials are not valid or do not allow it"),
    "401": _refused("the credentials are not valid"),
}
"""Error codes of S3; the rest pass, or are refusals by their class."""

CLASSES: Mapping[str, Fault] = {
    "builtins.MemoryError": _MEMORY,
    "torch.OutOfMemoryError": _MEMORY,
    "torch.cuda.OutOfMemoryError": _MEMORY,
    "botocore.exceptions.NoCredentialsError": _CREDENTIALS,
    "botocore.exceptions.PartialCredentialsError": _CREDENTIALS,
    "botocore.exceptions.CredentialRetrievalError": _CREDENTIALS,
    "botocore.exceptions.TokenRetrievalError": _EXPIRED,
    "botocore.exceptions.SSOError": _EXPIRED,
    "botocore.exceptions.ProfileNotFound": _refused("AWS_PROFILE names no known profile"),
    "botocore.exceptions.ConfigParseError": _refused("the AWS configuration file is not valid"),
    "botocore.exceptions.NoRegionError": REGION,
    "botocore.exceptions.InvalidRegionError": REGION,
    "botocore.exceptions.ParamValidationError": Fault("the store will not accept it"),
    "ssl.SSLCertVerificationError": Fault(
        "the server's certificate cannot be verified",
        "Check AWS_ENDPOINT_URL and this machine's clock; for a certificate of your own, name its "
        "authority with AWS_CA_BUNDLE. Then run the same command again: nothing is half-written",
    ),
    "ssl.SSLError": _passing(
        "the server and this machine do not agree on TLS",
        "Check AWS_ENDPOINT_URL: is it https:// where the server speaks http://? Then run the same "
        "command again: nothing is half-written",
    ),
    "socket.gaierror": _passing(
        "the server's name cannot be resolved",
        "Check the name in AWS_ENDPOINT_URL, the bucket's name, and this machine's DNS, then run "
        "the same command again: nothing is half-written",
    ),
}
"""Classes, by module and name; a class counts as each class that it is made from."""

BROAD: Mapping[str, Fault] = {
    "builtins.PermissionError": _refused(""),
    "builtins.TimeoutError": NETWORK,
    "builtins.ConnectionError": NETWORK,
    "botocore.exceptions.HTTPClientError": NETWORK,
    "botocore.exceptions.ResponseStreamingError": NETWORK,
    "botocore.exceptions.IncompleteReadError": NETWORK,
    "aiohttp.client_exceptions.ClientError": NETWORK,
    "fsspec.exceptions.FSTimeoutError": NETWORK,
    "concurrent.futures._base.CancelledError": NETWORK,
}
"""Classes that say little: they count where nothing else fits."""

DAMAGE: Mapping[str, Fault] = {
    "safetensors._safetensors_rust.SafetensorError": _DAMAGED,
    "pyarrow.lib.ArrowInvalid": _DAMAGED,
    "pickle.UnpicklingError": _DAMAGED,
    "_pickle.UnpicklingError": _DAMAGED,
    "zipfile.BadZipFile": _DAMAGED,
}
"""Classes of what reads formats: bytes that were stored and verified no more."""

PHRASES: Mapping[str, Fault] = {
    "PytorchStreamWriter failed": NUMBERS[errno.ENOSPC],
    "unexpected pos": NUMBERS[errno.ENOSPC],
    "PytorchStreamReader failed": _DAMAGED,
    "can't allocate memory": _MEMORY,
    "out of memory": _MEMORY,
    "can't start new thread": NUMBERS[errno.EAGAIN],
}
"""What libraries say that keep neither number nor class."""

WORDED = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""How libraries in Rust and C++ write a number of the operating system into their text."""
