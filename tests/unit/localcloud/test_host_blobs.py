"""Blob paths, blob trigger messages, Event Grid events, and message encodings."""

import base64
import json
import re
from typing import Any

import pytest

from localcloud.host.blobs import BlobFunction, BlobMessage, BlobPath, announced_blobs
from localcloud.host.errors import HostError
from localcloud.host.queues import decode_body
from tests.host_functions import hosted


@pytest.mark.parametrize(
    ("path", "blob", "expected"),
    [
        ("posts/{name}", "a/b.parquet", {"name": "a/b.parquet"}),
        ("posts/{name}.parquet", "a.parquet", {"name": "a"}),
        ("posts/{name}.parquet", "a.csv", None),
        ("posts/in/{file}.{extension}", "in/a.b.c", {"file": "a.b", "extension": "c"}),
        ("posts/in/{file}", "out/a", None),
        ("posts/{{x}}-{name}", "{x}-1", {"name": "1"}),
        ("posts", "any", {"blob": "any"}),
    ],
)
def test_blob_paths_are_matched(path: str, blob: str, expected: dict[str, str] | None) -> None:
    assert BlobPath.parse(path).match("posts", blob) == expected
    assert BlobPath.parse(path).match("other", blob) is None


def test_only_the_literal_start_of_a_path_is_used_for_listing() -> None:
    assert BlobPath.parse("posts/in/day-{name}.x").prefix == "in/day-"


@pytest.mark.parametrize("path", ["Posts/{name}", "{container}/x", "posts/{name", "posts/name}"])
def test_invalid_paths_are_refused(path: str) -> None:
    with pytest.raises(HostError, match=re.escape(repr(path))):
        BlobPath.parse(path)


def test_blob_messages_have_the_documented_format() -> None:
    message = BlobMessage("Host.Functions.land", "posts", "a.parquet", "0x1")
    document = json.loads(base64.b64decode(message.encode()))
    assert document == {
        "Type": "BlobTrigger",
        "FunctionId": "Host.Functions.land",
        "BlobType": "BlockBlob",
        "ContainerName": "posts",
        "BlobName": "a.parquet",
        "ETag": "0x1",
    }
    assert BlobMessage.decode(base64.b64decode(message.encode())) == message


def event(url: str | None, etag: str | None = "0x2", kind: str = "BlobCreated") -> dict[str, Any]:
    data = {"url": url, "eTag": etag, "blobType": "BlockBlob"}
    return {"eventType": f"Microsoft.Storage.{kind}", "data": {name: value for name, value in data.items() if value}}


def test_events_announce_blobs_with_a_bare_etag_whatever_their_type_and_path() -> None:
    """As the real listeners do: tests/integration/test_two_hosts.py compares."""
    item = BlobFunction.of(hosted(print, {"type": "blobTrigger", "path": "posts/in/{name}", "source": "EventGrid"}))
    account = "http://127.0.0.1:10000/devstoreaccount1"
    events = [
        event(f"{account}/posts/in/a%20b/c"),
        event(f"{account}/other/out/a", kind="BlobDeleted"),
        event(f"{account}/posts/in/quoted", '"0x2"'),
        event(f"{account}/posts/in/none", None),
    ]
    assert list(announced_blobs(events, item)) == [
        BlobMessage("Host.Functions.f", "posts", "in/a b/c", '"0x2"'),
        BlobMessage("Host.Functions.f", "other", "out/a", '"0x2"'),
    ]
    assert len(list(announced_blobs(events[0], item))) == 1
    for wrong in (event(None), {"type": "cloud event"}, "text", 3):
        with pytest.raises(ValueError, match="without url and blobType"):
            list(announced_blobs([wrong], item))


def test_message_bodies_are_decoded_in_both_encodings() -> None:
    assert decode_body(base64.b64encode(b"\xffbytes").decode(), "base64") == b"\xffbytes"
    assert decode_body("plain é", "none") == "plain é".encode()
    for text in ("not base 64!", "abc", '{"a": 1}'):
        with pytest.raises(ValueError, match="messageEncoding"):
            decode_body(text, "base64")
