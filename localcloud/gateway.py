"""The lake gateway: ADLS Gen2 on top of Azurite, which has no `dfs` endpoint.

Files are block blobs. Directories are empty blobs with Azure's own mark, or are implied by the names below them. An
append stages a block named by its position; a flush commits the blocks up to a position. So the gateway keeps no state
that a restart could lose. Calls of the Blob service that the DataLake SDK sends to the same address (reads, properties,
file systems) are forwarded unchanged, so that their signature stays valid.

Writers take one lock for each file system, so conditions are checked and applied in one step. Readers take no lock: a
file is replaced atomically by one copy, but for a moment both names of a renamed file are visible.

Known differences from Azure: a directory is renamed or deleted file by file; the ETag changes with a rename; leases,
access control lists and Entra tokens are not supported (501, 403).
Protocol: https://learn.microsoft.com/rest/api/storageservices/data-lake-storage-gen2
"""

import asyncio
import base64
import hmac
import json
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

from localcloud.azurite import ACCOUNT, ACCOUNT_KEY
from localcloud.blobs import API_VERSION, DIRECTORY_MARK, NOT_SIGNED_FOR, Blob, StorageClient, StorageError, block_id
from localcloud.sharedkey import authorization

logger = logging.getLogger("localcloud.lake")

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}
LONGEST_PAGE = 5000
OWNED = {"owner": "$superuser", "group": "$superuser", "permissions": "rw-r-----"}


@dataclass(frozen=True)
class Place:
    """The target of a request: a path of a file system; "" is the file system's root."""

    file_system: str
    path: str

    @property
    def parent(self) -> str:
        """The directory it is in."""
        return self.path.rpartition("/")[0]


class Gateway:
    """The web application in front of the blob service at `origin`, such as `http://127.0.0.1:10000`."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Saves a look-up for each directory above a new file. An outdated entry is harmless: the directory is then
        # implied by the names below it.
        self._known_directories: set[Place] = set()

    def application(self) -> web.Application:
        """A new aiohttp application that serves every path."""
        app = web.Application(client_max_size=0)
        app.cleanup_ctx.append(self._session)
        app.router.add_route("*", "/{anything:.*}", self._answer)
        return app

    async def _session(self, _: web.Application) -> AsyncIterator[None]:
        # Node closes an idle connection after 5 s; released earlier, it is never closed during a request.
        connector = TCPConnector(limit=0, keepalive_timeout=3)
        async with ClientSession(connector=connector, auto_decompress=False, timeout=ClientTimeout(None)) as session:
            self._upstream = session
            self._blobs = StorageClient(session, self._origin)
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        operation = self._operation(request)
        if operation is None:
            return await self._pass_through(request)
        try:
            check_signature(request)
            return await operation(request, _place(request))
        except StorageError as error:
            logger.info("%s %s: %d %s", request.method, unquote(request.raw_path), error.status, error.code)
            return _error_response(request, _as_dfs(error))

    def _operation(self, request: web.Request) -> Callable[[web.Request, Place], Awaitable[web.StreamResponse]] | None:
        """The dfs operation of a request; None for a call of the Blob service."""
        query, path = request.query, _place(request).path
        action, resource = query.get("action"), query.get("resource")
        match request.method:
            case "PATCH":
                by_action = {"append": self._append, "flush": self._flush, "setProperties": self._set_properties}
                return by_action.get(action or "", _not_served)
            case "PUT" if path and "x-ms-rename-source" in request.headers:
                return self._rename
            case "PUT" if path and resource in ("file", "directory"):
                return self._create
            case "DELETE" if path and "comp" not in query and "snapshot" not in query:
                return self._delete
            case "GET" if resource == "filesystem":
                return self._list
            case "HEAD" if action in ("getStatus", "getAccessControl"):
                return self._status
            case _:
                return None

    async def _append(self, request: web.Request, place: Place) -> web.StreamResponse:
        await self._existing_file(place)
        position, length = _number(request, "position"), request.content_length or 0
        chunks = request.content.iter_chunked(1 << 18)
        await self._blobs.put_block(place.file_system, place.path, block_id(position), chunks, length)
        return _response(HTTPStatus.ACCEPTED)

    async def _flush(self, request: web.Request, place: Place) -> web.StreamResponse:
        position = _number(request, "position")
        async with self._writing(place):
            file = await self._existing_file(place)
            check_conditions(request.headers, file)
            ids = await self._contiguous_blocks(place, file, position)
            content_headers = {**file.content_headers, **_content_headers(request)}
            return _response(
                HTTPStatus.OK,
                await self._blobs.put_block_list(place.file_system, place.path, ids, file.metadata, content_headers),
            )

    async def _contiguous_blocks(self, place: Place, file: Blob, end: int) -> list[str]:
        """The ids of the blocks that make up the first `end` bytes; those of an abandoned upload are left out."""
        blocks = await self._blobs.blocks(place.file_system, place.path)
        if file.size and block_id(0) not in blocks:  # written through the Blob service, with other block names
            content = await self._blobs.read(place.file_system, place.path)
            await self._blobs.put_block(place.file_system, place.path, block_id(0), content, len(content))
            blocks = {**blocks, block_id(0): len(content)}
        ids: list[str] = []
        reached = 0
        while reached < end and block_id(reached) in blocks:
            ids.append(block_id(reached))
            reached += blocks[ids[-1]]
        if reached != end:
            raise StorageError(
                400,
                "InvalidFlushPosition",
                "The uploaded data is not contiguous or the position query parameter value is not equal to the length "
                "of the file after appending the uploaded data.",
            )
        return ids

    async def _create(self, request: web.Request, place: Place) -> web.StreamResponse:
        as_directory = request.query["resource"] == "directory"
        metadata = _properties(request) | ({DIRECTORY_MARK: "true"} if as_directory else {})
        async with self._writing(place):
            present = await self._find(place)
            check_conditions(request.headers, present)
            if present and present.is_directory != as_directory:
                raise StorageError(409, "PathAlreadyExists", "The path exists and is of the other kind.")
            await self._make_directories(place.file_system, place.parent)
            content_headers = {"Content-Type": "application/octet-stream", **_content_headers(request)}
            made = await self._blobs.put_empty(place.file_system, place.path, metadata, content_headers)
            return _response(HTTPStatus.CREATED, made)

    async def _make_directories(self, file_system: str, path: str) -> None:
        """Create a directory and those above it if missing. `StorageError` if one of them is a file."""
        place = Place(file_system, path)
        if not path or place in self._known_directories:
            return
        present = await self._blobs.find(file_system, path)
        if present and not present.is_directory:
            raise StorageError(409, "PathConflict", f"{path} is a file.")
        if not present:
            await self._make_directories(file_system, place.parent)
            await self._blobs.put_empty(file_system, path, {DIRECTORY_MARK: "true"}, {})
        self._known_directories.add(place)

    async def _set_properties(self, request: web.Request, place: Place) -> web.StreamResponse:
        async with self._writing(place):
            present = await self._existing(place)
            check_conditions(request.headers, present)
            metadata = _properties(request) | ({DIRECTORY_MARK: "true"} if present.is_directory else {})
            return _response(HTTPStatus.OK, await self._blobs.set_metadata(place.file_system, place.path, metadata))

    async def _rename(self, request: web.Request, target: Place) -> web.StreamResponse:
        source = _place_of(unquote(urlsplit(request.headers["x-ms-rename-source"]).path))
        async with self._writing(source, target):
            moved = await self._find(source)
            if moved is None:
                raise StorageError(404, "SourcePathNotFound", "The source path for a rename operation does not exist.")
            check_conditions(request.headers, moved, "x-ms-source-")
            replaced = await self._find(target)
            check_conditions(request.headers, replaced)
            if source == target:
                return _response(HTTPStatus.CREATED, moved)
            await self._check_target(source, target, moved, replaced)
            return _response(HTTPStatus.CREATED, await self._move(source, target, moved))

    async def _check_target(self, source: Place, target: Place, moved: Blob, replaced: Blob | None) -> None:
        """Raise `StorageError` if Azure would refuse the rename because of the target or its parent."""
        if target.file_system == source.file_system and f"{target.path}/".startswith(f"{source.path}/"):
            raise StorageError(409, "InvalidRenameSourcePath", "A directory cannot be moved into itself.")
        parent = Place(target.file_system, target.parent)
        above = await self._find(parent) if parent.path else None
        if parent.path and not (above and above.is_directory):
            raise StorageError(
                404, "RenameDestinationParentPathNotFound", "The parent directory of the destination does not exist."
            )
        if replaced and replaced.is_directory != moved.is_directory:
            raise StorageError(409, "PathAlreadyExists", "The destination exists and is of the other kind.")
        if replaced and replaced.is_directory and await self._has_content(target):
            raise StorageError(409, "PathAlreadyExists", "The destination is a directory that is not empty.")

    async def _move(self, source: Place, target: Place, moved: Blob) -> Blob:
        """Copy, then delete: a crash in between leaves both names; the file is never lost."""
        names = [blob.name async for blob in self._below(source)] if moved.is_directory else []
        copied: Blob | None = None
        if moved.etag:
            copied = await self._blobs.copy(source.file_system, source.path, target.file_system, target.path)
        for name in names:
            renamed = target.path + name[len(source.path) :]
            copied = await self._blobs.copy(source.file_system, name, target.file_system, renamed)
        await self._remove(source, names, with_own_blob=bool(moved.etag))
        assert copied is not None
        return copied

    async def _delete(self, request: web.Request, place: Place) -> web.StreamResponse:
        async with self._writing(place):
            present = await self._existing(place)
            check_conditions(request.headers, present)
            names = [blob.name async for blob in self._below(place)] if present.is_directory else []
            if names and request.query.get("recursive", "").lower() != "true":
                message = "The recursive query parameter value must be true to delete a non-empty directory."
                raise StorageError(409, "DirectoryNotEmpty", message)
            await self._remove(place, names, with_own_blob=bool(present.etag))
            return _response(HTTPStatus.OK)

    async def _remove(self, place: Place, names_below: list[str], with_own_blob: bool) -> None:
        """Delete the content of a directory, the deepest first, and then the path itself."""
        for name in reversed(names_below):
            await self._blobs.delete(place.file_system, name)
        if with_own_blob:
            await self._blobs.delete(place.file_system, place.path)
        gone = {Place(place.file_system, path) for path in (place.path, *names_below)}
        self._known_directories -= gone

    async def _status(self, _: web.Request, place: Place) -> web.StreamResponse:
        present = await self._existing(place) if place.path else None
        response = _response(HTTPStatus.OK, present)
        response.headers.update({f"x-ms-{name}": value for name, value in OWNED.items()})
        response.headers["x-ms-acl"] = "user::rw-,group::r--,other::---"
        response.headers["x-ms-resource-type"] = "directory" if present is None or present.is_directory else "file"
        return response

    async def _list(self, request: web.Request, place: Place) -> web.StreamResponse:
        query = request.query
        directory = Place(place.file_system, query.get("directory", "").strip("/"))
        recursive = query.get("recursive", "").lower() == "true"
        blobs = [blob async for blob in self._below(directory)]
        if not blobs and directory.path:
            await self._existing(directory)
        paths = paths_below(directory.path, blobs, recursive)
        after = base64.urlsafe_b64decode(query.get("continuation", "")).decode()
        names = sorted(name for name in paths if name > after)
        page_size = min(int(query.get("maxResults", LONGEST_PAGE)), LONGEST_PAGE)
        page = names[:page_size]
        response = _response(HTTPStatus.OK, body={"paths": [paths[name] for name in page]})
        if len(names) > page_size:
            response.headers["x-ms-continuation"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return response

    async def _pass_through(self, request: web.Request) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        async with self._upstream.request(
            request.method,
            URL(self._origin + request.raw_path, encoded=True),
            headers=headers,
            data=request.content if request.can_read_body else None,
            skip_auto_headers=NOT_SIGNED_FOR,  # a header that the client did not send would break its signature
            allow_redirects=False,
        ) as answer:
            if answer.status == HTTPStatus.NOT_FOUND and request.method == "HEAD":
                implied = await self._implied_directory(request)
                if implied is not None:
                    return implied
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            if request.method != "HEAD":
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            await response.write_eof()
            return response

    async def _implied_directory(self, request: web.Request) -> web.StreamResponse | None:
        """The properties of a directory that only the names below it imply. In Azure every directory exists."""
        place = _place(request)
        if not place.path or "comp" in request.query or not await self._has_content(place):
            return None
        response = _response(HTTPStatus.OK, _implied(place.path))
        response.headers[f"x-ms-meta-{DIRECTORY_MARK}"] = "true"
        return response

    @asynccontextmanager
    async def _writing(self, *places: Place) -> AsyncIterator[None]:
        """Hold the locks of these file systems; they are taken in a fixed order, so two renames cannot deadlock."""
        async with AsyncExitStack() as held:
            for file_system in sorted({place.file_system for place in places}):
                await held.enter_async_context(self._locks[file_system])
            yield

    async def _find(self, place: Place) -> Blob | None:
        found = await self._blobs.find(place.file_system, place.path)
        if found is None and await self._has_content(place):
            return _implied(place.path)
        return found

    async def _existing(self, place: Place) -> Blob:
        found = await self._find(place)
        if found is None:
            raise StorageError(404, "PathNotFound", "The specified path does not exist.")
        return found

    async def _existing_file(self, place: Place) -> Blob:
        found = await self._blobs.find(place.file_system, place.path)
        if found is None:
            raise StorageError(404, "PathNotFound", "The specified path does not exist.")
        if found.is_directory:
            raise StorageError(409, "PathConflict", "The path is a directory.")
        return found

    def _below(self, place: Place, page: int = LONGEST_PAGE) -> AsyncIterator[Blob]:
        return self._blobs.below(place.file_system, f"{place.path}/" if place.path else "", page)

    async def _has_content(self, place: Place) -> bool:
        return await anext(aiter(self._below(place, page=1)), None) is not None


def paths_below(directory: str, blobs: list[Blob], recursive: bool) -> dict[str, dict[str, str]]:
    """The listing of a directory, name to entry: files, marked directories, and implied directories.

    `blobs` are all blobs below the directory; "" is the root. Not recursive: only what is directly in the directory.
    """
    start = len(directory) + 1 if directory else 0
    found: dict[str, Blob] = {}
    for blob in blobs:
        cut = blob.name.find("/", start)
        while cut != -1:
            found.setdefault(blob.name[:cut], _implied(blob.name[:cut], blob.modified))
            cut = blob.name.find("/", cut + 1) if recursive else -1
        if recursive or "/" not in blob.name[start:]:
            found[blob.name] = blob
    return {name: _list_entry(blob) for name, blob in found.items()}


def check_signature(request: web.Request) -> None:
    """Raise `StorageError` 403 unless the request is signed with the account's key."""
    given = request.headers.get("Authorization", "")
    due = authorization(ACCOUNT, ACCOUNT_KEY, request.method, request.raw_path, request.headers)
    if not hmac.compare_digest(given.encode(), due.encode()):
        message = "Server failed to authenticate the request. The gateway takes SharedKey signatures only."
        raise StorageError(403, "AuthenticationFailed", message)


def check_conditions(headers: Mapping[str, str], present: Blob | None, prefix: str = "") -> None:
    """Raise `StorageError` 412, or 409 PathAlreadyExists, unless `present` meets a request's conditional headers.

    `present` is None if the path does not exist. `prefix` is "x-ms-source-" for the conditions on a rename's source.
    """
    failed = StorageError(412, "SourceConditionNotMet" if prefix else "ConditionNotMet", "A condition was not met.")
    if_match, if_none_match = headers.get(f"{prefix}If-Match"), headers.get(f"{prefix}If-None-Match")
    if if_match and (present is None or if_match not in ("*", present.etag)):
        raise failed
    if if_none_match and present is not None:
        if if_none_match == "*":
            raise StorageError(409, "PathAlreadyExists", "The specified path already exists.")
        if if_none_match == present.etag:
            raise failed
    since, until = headers.get(f"{prefix}If-Modified-Since"), headers.get(f"{prefix}If-Unmodified-Since")
    if since and present is not None and _date(present.modified) <= _date(since):
        raise failed
    if until and (present is None or _date(present.modified) > _date(until)):
        raise failed


def _date(text: str) -> datetime:
    return parsedate_to_datetime(text)


def _place(request: web.Request) -> Place:
    return _place_of(unquote(urlsplit(request.raw_path).path).removeprefix(f"/{ACCOUNT}"))


def _place_of(path: str) -> Place:
    file_system, _, inner = path.lstrip("/").partition("/")
    return Place(file_system, inner.rstrip("/"))


def _implied(path: str, modified: str = "Thu, 01 Jan 1970 00:00:00 GMT") -> Blob:
    """A directory without a blob: it has no ETag."""
    return Blob(path, 0, "", modified, {DIRECTORY_MARK: "true"})


def _list_entry(blob: Blob) -> dict[str, str]:
    entry = {
        "name": blob.name,
        "contentLength": str(blob.size),
        "lastModified": blob.modified,
        "etag": blob.etag.strip('"'),
        **OWNED,
    }
    return entry | ({"isDirectory": "true"} if blob.is_directory else {})


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not text.isdigit():
        raise StorageError(400, "InvalidQueryParameterValue", f"{name} must be a whole number.")
    return int(text)


def _properties(request: web.Request) -> dict[str, str]:
    """The user's metadata in a dfs request: `name=base64` pairs with commas between."""
    pairs = (pair.partition("=") for pair in request.headers.get("x-ms-properties", "").split(",") if pair)
    return {name.strip(): base64.b64decode(value).decode() for name, _, value in pairs}


def _content_headers(request: web.Request) -> dict[str, str]:
    names = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", "Cache-Control")
    return {name: request.headers[f"x-ms-{name}"] for name in names if f"x-ms-{name}" in request.headers}


async def _not_served(_: web.Request, __: Place) -> web.StreamResponse:
    raise StorageError(501, "NotImplemented", "The lake gateway does not serve this operation.")


def _as_dfs(error: StorageError) -> StorageError:
    """The dfs service's name for an error of the Blob service."""
    names = {
        "ContainerNotFound": ("FilesystemNotFound", "The specified filesystem does not exist."),
        "BlobNotFound": ("PathNotFound", "The specified path does not exist."),
    }
    code, message = names.get(error.code, (error.code, error.message))
    return StorageError(error.status, code, message)


def _error_response(request: web.Request, error: StorageError) -> web.Response:
    body = None if request.method == "HEAD" else {"error": {"code": error.code, "message": error.message}}
    response = _response(HTTPStatus(error.status), body=body)
    response.headers["x-ms-error-code"] = error.code
    return response


def _response(status: HTTPStatus, of: Blob | None = None, body: object = None) -> web.Response:
    headers = {"x-ms-request-id": str(uuid.uuid4()), "x-ms-version": API_VERSION}
    if of is not None:
        headers |= {"ETag": of.etag, "Last-Modified": of.modified}
    if body is None:
        return web.Response(status=status, headers=headers)
    return web.Response(status=status, headers=headers, text=json.dumps(body), content_type="application/json")
