"""The keys of features, as the compiled loops make them."""

from __future__ import annotations

import numpy as np

from classify.model.text import _SALTS, Field, _hash


def key_of(token: str, field: Field) -> int:
    """The key of a lower-case word or joined form in a field that holds single tokens."""
    text = token.encode()
    return int(np.uint64(_hash(np.frombuffer(bytearray(text + bytes(8)), np.uint8), 0, len(text))) ^ _SALTS[field])
