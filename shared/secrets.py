"""Secrets by name: Azure Key Vault where a vault is set, the environment otherwise.

A secret `postgres-password` is `POSTGRES_PASSWORD` in the environment: Key Vault allows no underscores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pydantic import SecretStr

from shared.errors import NotFound
from shared.storage import storage_errors

if TYPE_CHECKING:
    from azure.keyvault.secrets import SecretClient


class Secrets:
    """Looks secrets up and keeps each for `cache_seconds`, so that a rotated one is found without a restart."""

    def __init__(
        self,
        environment: Mapping[str, str],
        vault: SecretClient | None = None,
        cache_seconds: float = 300,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment, self._vault, self._cache_seconds, self._clock = environment, vault, cache_seconds, clock
        self._cache: dict[str, tuple[float, SecretStr]] = {}

    def get(self, name: str) -> SecretStr:
        """The secret called `name`. Raises NotFound with both names that were tried, AccessDenied, TransientError."""
        cached = self._cache.get(name)
        if cached and self._clock() < cached[0]:
            return cached[1]
        value = SecretStr(self._from_vault(name) if self._vault else self._from_environment(name))
        self._cache[name] = self._clock() + self._cache_seconds, value
        return value

    def forget(self, name: str) -> None:
        """Look `name` up anew next time: for use after a service refused the cached value."""
        self._cache.pop(name, None)

    def _from_vault(self, name: str) -> str:
        assert self._vault is not None
        with storage_errors(f"secret {name} in {self._vault.vault_url}", "Key Vault Secrets User on the vault"):
            value = self._vault.get_secret(name).value
        if not value:
            raise NotFound(f"secret {name} in {self._vault.vault_url} is empty")
        return value

    def _from_environment(self, name: str) -> str:
        variable = name.replace("-", "_").upper()
        value = self._environment.get(variable)
        if not value:
            raise NotFound(f"secret {name}: set {variable}, or KEY_VAULT_URL to a vault that holds {name}")
        return value
