"""Blob paths, blob trigger messages, Event Grid events, and message encodings."""

import base64
import json
import re
from typing import Any

import pytest

from localcloud.host.blobs import BlobFunction, BlobMessage, BlobPath, created_blobs
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


def event(subject: str, kind: str = "Microsoft.Storage.BlobCreated") -> dict[str, Any]:
    return {"eventType": kind, "subject": subject, "data": {"eTag": '"0x2"', "api": "PutBlob"}}


def test_only_events_of_created_blobs_below_the_path_count() -> None:
    item = BlobFunction.of(hosted(print, {"type": "blobTrigger", "path": "posts/in/{name}", "source": "EventGrid"}))
    prefix = "/blobServices/default/containers"
    found = list(
        created_blobs(
            [
                event(f"{prefix}/posts/blobs/in/a b/c"),
                event(f"{prefix}/posts/blobs/out/a"),
                event(f"{prefix}/other/blobs/in/a"),
                event(f"{prefix}/posts/blobs/in/gone", "Microsoft.Storage.BlobDeleted"),
                event("/somewhere"),
            ],
            item,
        )
    )
    assert item.by_events
    assert found == [BlobMessage("Host.Functions.f", "posts", "in/a b/c", "0x2")]
    with pytest.raises(ValueError, match="Event Grid"):
        list(created_blobs({"type": "cloud event"}, item))


def test_message_bodies_are_decoded_in_both_encodings() -> None:
    assert decode_body(base64.b64encode(b"\xffbytes").decode(), "base64") == b"\xffbytes"
    assert decode_body("plain é", "none") == "plain é".encode()
    for text in ("not base 64!", "abc", '{"a": 1}'):
        with pytest.raises(ValueError, match="messageEncoding"):
            decode_body(text, "base64")
