"""The low-level functions that the compiled loops use."""

from typing import Any

import numba
import numpy as np
import pytest

from shared import compiled


@pytest.mark.parametrize("converts", [True, False])
def test_float16_is_converted_as_numpy_converts_it(converts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if converts and not compiled._converts_halves():
        pytest.skip("this processor cannot convert float16")
    monkeypatch.setattr(compiled, "_converts_halves", lambda: converts)
    # An intrinsic keeps the code of its first compilation, so each way of converting needs its own intrinsic.
    from_half: Any = numba.extending.intrinsic(lambda context, bits: compiled._from_half(context, bits))

    @numba.njit
    def convert(bits: np.ndarray, numbers: np.ndarray) -> None:
        for i in range(len(bits)):
            numbers[i] = from_half(bits[i])

    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[np.isfinite(every.view(np.float16))]
    numbers = np.empty(len(finite), np.float32)
    convert(finite, numbers)
    expected = finite.view(np.float16).astype(np.float32)
    assert (numbers.view(np.uint32) == expected.view(np.uint32)).all()
