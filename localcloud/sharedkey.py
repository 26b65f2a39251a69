"""The SharedKey signature of Azure Storage, for checking requests and for making them.

Protocol: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def authorization(account: str, key: str, method: str, target: str, headers: Mapping[str, str]) -> str:
    """The Authorization header of a request.

    `target` is the path and query as sent, percent-encoded; the host is not signed, so a gateway can forward a request.
    `key` is the account's key in base64.
    """
    lowered = {name.lower(): value.strip() for name, value in headers.items()}
    if lowered.get("content-length") == "0":
        del lowered["content-length"]
    parts = urlsplit(target)
    lines = [method, *(lowered.get(name, "") for name in SIGNED_HEADERS)]
    lines += [f"{name}:{lowered[name]}" for name in sorted(lowered) if name.startswith("x-ms-")]
    lines.append(f"/{account}{parts.path}")
    lines += [f"{name.lower()}:{value}" for name, value in sorted(parse_qsl(parts.query, keep_blank_values=True))]
    digest = hmac.new(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256).digest()
    return f"SharedKey {account}:{base64.b64encode(digest).decode()}"
