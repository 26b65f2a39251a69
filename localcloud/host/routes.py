"""Route templates of HTTP triggers, as ASP.NET Core has them: `topics/{day?}`, `runs/{id:int}`, `files/{*path}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from localcloud.host.app import HostedFunction
from localcloud.host.errors import HostError

_CONSTRAINTS = {
    "int": r"-?\d+",
    "long": r"-?\d+",
    "decimal": r"-?\d+(\.\d+)?",
    "double": r"-?\d+(\.\d+)?([eE][-+]?\d+)?",
    "float": r"-?\d+(\.\d+)?([eE][-+]?\d+)?",
    "bool": r"(?i:true|false)",
    "alpha": r"[A-Za-z]*",
    "guid": r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "datetime": r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[-+]\d\d:\d\d)?)?",
    "required": r".+",
}
_LENGTHS = {"length": "{0},{1}", "minlength": "{0},", "maxlength": "0,{0}"}
_PARAMETER = re.compile(
    r"(?P<rest>\*{0,2})(?P<name>\w+)(?P<constraints>(?::[^:=?]+)*)(?P<default>=[^?]*)?(?P<optional>\??)"
)


@dataclass(frozen=True)
class Route:
    """One HTTP function's way in. `rank` orders them: literal segments first, then parameters, then rests."""

    function: HostedFunction
    methods: frozenset[str]
    pattern: re.Pattern[str]
    defaults: Mapping[str, str]
    rank: tuple[int, ...]

    @classmethod
    def of(cls, function: HostedFunction, prefix: str) -> Route:
        """Raises HostError for a template that cannot be read."""
        template = str(function.trigger.get("route") or function.name)
        expression, defaults, rank = "", {}, []
        for segment in "/".join(part for part in (prefix, template.strip("/")) if part).split("/"):
            if "{" not in segment:
                expression += "/" + re.escape(segment)
                rank.append(0)
                continue
            parameter = _PARAMETER.fullmatch(segment[1:-1]) if segment.endswith("}") else None
            if parameter is None:
                raise HostError(f"function {function.name}: route {template!r} has a segment {segment!r}")
            value = _value_pattern(function.name, parameter)
            group = f"/(?P<{parameter['name']}>{value})"
            may_miss = parameter["optional"] or parameter["default"] or parameter["rest"]
            expression += f"(?:{group})?" if may_miss else group
            if parameter["default"]:
                defaults[parameter["name"]] = parameter["default"][1:]
            rank.append(2 if parameter["rest"] else 1)
        return cls(
            function=function,
            methods=frozenset(str(method).upper() for method in function.trigger.get("methods", ())),
            pattern=re.compile(expression + "/?", re.IGNORECASE),
            defaults=defaults,
            rank=tuple(rank),
        )

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The route's values for an undecoded path, or None. Another method does not match, as in Azure (404)."""
        if self.methods and method not in self.methods:
            return None
        found = self.pattern.fullmatch(path)
        if found is None:
            return None
        given = {name: unquote(value) for name, value in found.groupdict().items() if value}
        return {**self.defaults, **given}


def _value_pattern(function: str, parameter: re.Match[str]) -> str:
    conditions = ""
    for constraint in parameter["constraints"].split(":")[1:]:
        conditions += f"(?={_constraint(function, constraint)}(?:/|$))"
    return conditions + (".*" if parameter["rest"] else "[^/]+")


def _constraint(function: str, text: str) -> Any:
    name, _, arguments = text.partition("(")
    values = [value.strip() for value in arguments.removesuffix(")").split(",")]
    if name == "regex":
        return f"(?:{arguments.removesuffix(')').removeprefix('^').removesuffix('$')})"
    if name in _LENGTHS:
        return "[^/]{" + _LENGTHS[name].format(values[0], values[-1]) + "}"
    if name not in _CONSTRAINTS:
        raise HostError(f"function {function}: the local host has no route constraint {name!r}")
    return _CONSTRAINTS[name]
