"""A client for the signed calls that the local cloud makes to the Blob and Queue REST services, over aiohttp.

The Azure SDK would take 0.3 s to import, and seconds for a long listing.
Protocol: https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
"""

import base64
import email.utils
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlencode

from aiohttp import ClientSession
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from localcloud.azurite import ACCOUNT, ACCOUNT_KEY
from localcloud.sharedkey import authorization

API_VERSION = "2025-07-05"
DIRECTORY_MARK = "hdi_isfolder"
# Headers of a blob that are lost unless a new write repeats them.
CONTENT_HEADERS = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", "Cache-Control")
NOT_SIGNED_FOR = ("Content-Type", "Accept", "Accept-Encoding", "User-Agent")


class StorageError(Exception):
    """An error response of a storage service: HTTP status, error code and message."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message or code


@dataclass(frozen=True)
class Blob:
    """The properties of a blob. `modified` is an HTTP date, `etag` is in quotes."""

    name: str
    size: int
    etag: str
    modified: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        """Whether it stands for a directory, by the mark that Azure itself uses."""
        return self.metadata.get(DIRECTORY_MARK) == "true"


@dataclass(frozen=True)
class Answer:
    """A successful response with its whole body."""

    headers: CIMultiDictProxy[str]
    body: bytes


class StorageClient:
    """One storage service of the local account at `origin`, such as `http://127.0.0.1:10000`."""

    def __init__(self, session: ClientSession, origin: str) -> None:
        self._session = session
        self._origin = origin

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterable[bytes] | None = None,
        length: int = 0,
    ) -> Answer:
        """Send a signed request; `path` is below the account, `length` is the body's. Raises `StorageError`."""
        target = f"/{ACCOUNT}/{quote(path)}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        sent = {
            "x-ms-date": email.utils.formatdate(usegmt=True),
            "x-ms-version": API_VERSION,
            "Content-Length": str(length),
            **(headers or {}),
        }
        sent["Authorization"] = authorization(ACCOUNT, ACCOUNT_KEY, method, target, sent)
        url = URL(self._origin + target, encoded=True)
        async with self._session.request(
            method, url, headers=sent, data=body, skip_auto_headers=NOT_SIGNED_FOR, allow_redirects=False
        ) as response:
            content = await response.read()
            if response.status >= 400:
                raise StorageError(
                    response.status, response.headers.get("x-ms-error-code", ""), content.decode(errors="replace")
                )
            return Answer(response.headers, content)

    async def create(self, path: str, query: Mapping[str, str] | None = None) -> None:
        """Create a queue, or with `restype=container` a container, if it is missing."""
        try:
            await self.request("PUT", path, query)
        except StorageError as error:
            if error.status != 409:
                raise

    async def find(self, container: str, name: str) -> Blob | None:
        """The properties of a blob; None if it is missing. `StorageError` ContainerNotFound if its container is."""
        try:
            answer = await self.request("HEAD", f"{container}/{name}")
        except StorageError as error:
            if error.status == 404 and error.code != "ContainerNotFound":
                return None
            raise
        return _blob_of_headers(name, answer.headers)

    async def put_empty(
        self, container: str, name: str, metadata: Mapping[str, str], content_headers: Mapping[str, str]
    ) -> Blob:
        """Create or replace an empty blob."""
        headers = {"x-ms-blob-type": "BlockBlob", **_blob_headers(metadata, content_headers)}
        answer = await self.request("PUT", f"{container}/{name}", headers=headers)
        return _blob_of_headers(name, answer.headers)

    async def put_block(
        self, container: str, name: str, block_id: str, body: bytes | AsyncIterable[bytes], length: int
    ) -> None:
        """Stage one block, not visible until a block list names it."""
        query = {"comp": "block", "blockid": block_id}
        await self.request("PUT", f"{container}/{name}", query, body=body, length=length)

    async def blocks(self, container: str, name: str) -> dict[str, int]:
        """Id to size of all blocks; a staged one hides the committed one of the same id."""
        query = {"comp": "blocklist", "blocklisttype": "all"}
        answer = await self.request("GET", f"{container}/{name}", query)
        tree = ET.fromstring(answer.body)
        found = [*tree.iterfind("CommittedBlocks/Block"), *tree.iterfind("UncommittedBlocks/Block")]
        return {block.findtext("Name", ""): int(block.findtext("Size", "0")) for block in found}

    async def put_block_list(
        self,
        container: str,
        name: str,
        block_ids: list[str],
        metadata: Mapping[str, str],
        content_headers: Mapping[str, str],
    ) -> Blob:
        """Commit these blocks as the content of the blob; of two blocks with one id the staged one is taken."""
        entries = "".join(f"<Latest>{block_id}</Latest>" for block_id in block_ids)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{entries}</BlockList>'.encode()
        answer = await self.request(
            "PUT",
            f"{container}/{name}",
            {"comp": "blocklist"},
            _blob_headers(metadata, content_headers),
            body,
            len(body),
        )
        return _blob_of_headers(name, answer.headers)

    async def read(self, container: str, name: str) -> bytes:
        """All bytes of a blob."""
        return (await self.request("GET", f"{container}/{name}")).body

    async def copy(self, source_container: str, source: str, container: str, name: str) -> Blob:
        """Copy a blob with its metadata inside the account, which Azurite does synchronously, without reading it."""
        headers = {"x-ms-copy-source": f"{self._origin}/{ACCOUNT}/{quote(f'{source_container}/{source}')}"}
        answer = await self.request("PUT", f"{container}/{name}", headers=headers)
        if answer.headers["x-ms-copy-status"] != "success":
            raise StorageError(500, "InternalError", f"the copy is {answer.headers['x-ms-copy-status']}")
        return _blob_of_headers(name, answer.headers)

    async def delete(self, container: str, name: str) -> None:
        """Delete a blob. `StorageError` BlobNotFound if there is none."""
        await self.request("DELETE", f"{container}/{name}")

    async def set_metadata(self, container: str, name: str, metadata: Mapping[str, str]) -> Blob:
        """Replace the metadata of a blob."""
        headers = _blob_headers(metadata, {})
        answer = await self.request("PUT", f"{container}/{name}", {"comp": "metadata"}, headers)
        return _blob_of_headers(name, answer.headers)

    async def below(self, container: str, prefix: str, page: int = 5000) -> AsyncIterator[Blob]:
        """All blobs whose name begins with `prefix`, in the order of their names, `page` a request."""
        query = {"restype": "container", "comp": "list", "include": "metadata", "maxresults": str(page)}
        marker = ""
        while True:
            answer = await self.request("GET", container, {**query, "prefix": prefix, "marker": marker})
            tree = ET.fromstring(answer.body)
            for element in tree.iterfind("Blobs/Blob"):
                yield _blob_of_listing(element)
            marker = tree.findtext("NextMarker") or ""
            if not marker:
                return


async def create_places(blob_origin: str, queue_origin: str, containers: Iterable[str], queues: Iterable[str]) -> None:
    """Create missing containers and queues."""
    async with ClientSession() as session:
        blob_service, queue_service = StorageClient(session, blob_origin), StorageClient(session, queue_origin)
        for name in containers:
            await blob_service.create(name, {"restype": "container"})
        for name in queues:
            await queue_service.create(name)


def block_id(position: int) -> str:
    """The id of the block at a position of a file: so a block list contains the positions of its blocks."""
    return base64.b64encode(f"{position:020}".encode()).decode()


def _blob_headers(metadata: Mapping[str, str], content_headers: Mapping[str, str]) -> dict[str, str]:
    named = {f"x-ms-meta-{name}": value for name, value in metadata.items()}
    return named | {f"x-ms-blob-{name.lower()}": value for name, value in content_headers.items()}


def _blob_of_headers(name: str, headers: CIMultiDictProxy[str]) -> Blob:
    prefix = "x-ms-meta-"
    return Blob(
        name,
        int(headers.get("Content-Length", "0")),
        headers["ETag"],
        headers["Last-Modified"],
        CIMultiDict((key[len(prefix) :], value) for key, value in headers.items() if key.lower().startswith(prefix)),
        {key: headers[key] for key in CONTENT_HEADERS if key in headers},
    )


def _blob_of_listing(element: ET.Element) -> Blob:
    name = element.find("Name")
    assert name is not None
    text = name.text or ""
    metadata = element.find("Metadata")
    return Blob(
        unquote(text) if name.get("Encoded") == "true" else text,
        int(element.findtext("Properties/Content-Length", "0")),
        f'"{element.findtext("Properties/Etag", "").strip(chr(34))}"',
        element.findtext("Properties/Last-Modified", ""),
        {} if metadata is None else {child.tag: child.text or "" for child in metadata},
    )
