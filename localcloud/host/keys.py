"""Access keys as Azure has them: master, default, the system key of blob events, and one a function."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KEYS_FILE = "host-keys.json"
BLOBS_EXTENSION = "blobs_extension"


@dataclass(frozen=True)
class HostKeys:
    """The keys of one app; `functions` by function name."""

    master: str
    default: str
    blobs_extension: str
    functions: dict[str, str]

    @classmethod
    def load(cls, path: Path, functions: Iterable[str]) -> HostKeys:
        """Reads the file, makes what is missing and writes it back, readable by its owner only."""
        stored = json.loads(path.read_text()) if path.exists() else {}
        keys = cls(
            master=stored.get("master") or _new_key(),
            default=stored.get("default") or _new_key(),
            blobs_extension=stored.get(BLOBS_EXTENSION) or _new_key(),
            functions={name: stored.get("functions", {}).get(name) or _new_key() for name in functions},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps(keys.__dict__, indent=2) + "\n")
        return keys

    def allow(self, level: str, presented: str, function: str = "") -> bool:
        """Whether a key opens a function of this authLevel (`anonymous`, `function` or `admin`)."""
        if level == "anonymous":
            return True
        accepted = [self.master]
        if level == "function":
            accepted += [self.default, self.functions[function]]
        return any(_same(key, presented) for key in accepted)

    def allow_system(self, presented: str) -> bool:
        """Whether a key opens the blob webhook."""
        return any(_same(key, presented) for key in (self.blobs_extension, self.master))


def _same(key: str, presented: str) -> bool:
    return hmac.compare_digest(key.encode(), presented.encode())


def _new_key() -> str:
    return secrets.token_urlsafe(40)
