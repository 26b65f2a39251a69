"""Parameters of a job, as its task hands them over: one `--name value` for each, checked together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from shared.errors import BadInput


class JobArguments(BaseModel):
    """A job's parameters. Each field is an option; its underscores become dashes."""

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """From `--lake-root …` and so on. Raises BadInput that names every missing, unknown or invalid one."""
        parser = argparse.ArgumentParser(prog=cls.__name__, add_help=False, exit_on_error=False)
        for name in cls.model_fields:
            parser.add_argument(_option(name))
        try:
            found, unknown = parser.parse_known_args(list(arguments))
        except argparse.ArgumentError as error:
            raise BadInput(str(error)) from error
        faults = [f"{word} is no parameter" for word in unknown if word.startswith("--")]
        given = {name: value for name, value in vars(found).items() if value is not None}
        try:
            parameters = cls.model_validate(given)
        except ValidationError as error:
            faults += [_fault(fault) for fault in error.errors()]
            raise BadInput("; ".join(faults)) from error
        if faults:
            raise BadInput("; ".join(faults))
        return parameters

    @classmethod
    def of_notebook(cls, databricks: Any, arguments: Sequence[str]) -> Self:
        """In a notebook on Databricks from widgets, one for each field, which it makes; elsewhere from `arguments`.

        `databricks` is the notebook's `dbutils`, None elsewhere. Raises BadInput like `from_arguments`.
        """
        if databricks is None:
            return cls.from_arguments(arguments)
        for name, field in cls.model_fields.items():
            databricks.widgets.text(name, "" if field.is_required() else str(field.default))
        given = {name: databricks.widgets.get(name) for name in cls.model_fields}
        return cls.from_arguments([f"{_option(name)}={value}" for name, value in given.items() if value])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _fault(fault: object) -> str:
    loc, kind, said, value = (fault[name] for name in ("loc", "type", "msg", "input"))  # type: ignore[index]
    option = _option(str(loc[0]))
    return f"{option} is missing" if kind == "missing" else f"{option} {value}: {said}"
