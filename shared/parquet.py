"""Reading Parquet files that others wrote: what Arrow cannot read is raised as an error of `shared.errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import BadColumn, BadInput
from shared.logs import visible

if TYPE_CHECKING:
    from pathlib import Path

    from shared.errors import StackTopicsError


@contextmanager
def readable(path: Path | str, failure: type[StackTopicsError] = BadInput, way_out: str = "") -> Iterator[None]:
    """While the file at `path` is read: what Arrow cannot read is raised as `failure` that names it, as is a
    column that holds what it must not (`BadColumn`).

    Errors of the system, such as a disk that does not answer or memory that is not there, are no fault of the file.
    """
    import pyarrow as pa

    try:
        yield
    except MemoryError:
        raise
    except BadColumn as error:
        raise failure(f"{path}: {error}; {way_out}" if way_out else f"{path}: {error}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = f"{path} cannot be read as a Parquet file: {visible(' '.join(str(error).split()))}"
        raise failure(f"{said}; {way_out}" if way_out else said) from error
