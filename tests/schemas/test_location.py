"""What a text names: a path or a URL. Half a URL is neither, and no secret is repeated."""

import pytest

from schemas.location import parse_location


@pytest.mark.parametrize(
    ("text", "url", "is_local"),
    [
        ("store", "store", True),
        ("/data/a b?#", "/data/a b?#", True),
        ("data:v1/x", "data:v1/x", True),
        ("file:///data", "file:///data", True),
        ("file://localhost/data", "file:///data", True),
        ("s3://bucket", "s3://bucket", False),
        ("S3://bucket/a/b", "s3://bucket/a/b", False),
        ("s3://bucket/me@home/x", "s3://bucket/me@home/x", False),
        ("s3://arn:aws:s3:eu:1:accesspoint/x", "s3://arn:aws:s3:eu:1:accesspoint/x", False),
        ("memory://name/x", "memory://name/x", False),
    ],
)
def test_a_text_names_a_place(text: str, url: str, is_local: bool) -> None:
    found = parse_location(text)
    assert (found.url, found.is_local) == (url, is_local)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        (" \t", "it is empty"),
        ("a\0b", "NUL"),
        ("http://host/x", "scheme 'http' is not supported"),
        ("://x", "its scheme is not supported"),
        ("s3:/bucket", "half a URL"),
        ("file:x", "half a URL"),
        ("HTTPS:host", "half a URL"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://-b/x", "is no name of a bucket"),
        ("s3://bucket/a/../b", "no . and .."),
        ("file://relative/x", "three slashes"),
        ("file://", "three slashes"),
        ("file:///", "three slashes"),
        ("s3://bucket/a?versionId=1", "a user, a password or parameters"),
        ("s3://bucket/a#b", "a user, a password or parameters"),
    ],
)
def test_what_names_no_place_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_location(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://KEY:hunter2@bucket/x",
        "s3://KEY:hunter2/with/slash@bucket/x",
        "s3://hunter2@bucket",
        "s3:/KEY:hunter2@bucket",
        "s3://bucket/x?X-Amz-Signature=hunter2",
        "https://user:hunter2@host/x",
        "file://KEY:hunter2@host/x",
    ],
)
def test_a_secret_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_location(text)
    assert "hunter2" not in str(caught.value)
