"""The app module -> its functions, read from the app's own decorators as Microsoft's worker reads them."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import azure.functions as func
from azurefunctions.extensions.base import get_binding_registry as get_deferred_registry

from localcloud.host.config import parse_time_span
from localcloud.host.errors import HostError, NoFunctionsFound

TRIGGERS = ("timerTrigger", "blobTrigger", "queueTrigger", "httpTrigger")
_SETTING = re.compile(r"%([^%]+)%")


# Typed here once: the library's function has no annotations.
binding_registry: Callable[[], Any] = func.get_binding_registry


@dataclass(frozen=True)
class HostedFunction:
    """One function of the app.

    `bindings` are as the worker sends them to the host; `trigger` is the one that starts the function, with
    every %NAME% replaced by the setting. `parameter_type` is None where the parameter has no annotation;
    `deferred` says that the parameter is an SDK type such as BlobClient. `retry_delays` are the seconds to wait
    before each retry of the function's retry policy.
    """

    name: str
    call: Callable[..., Any]
    directory: Path
    bindings: tuple[Mapping[str, Any], ...]
    trigger: Mapping[str, Any]
    parameter_type: type | None
    deferred: bool
    wants_context: bool
    returns_value: bool
    retry_delays: tuple[float, ...] = ()
    disabled: bool = False

    @property
    def kind(self) -> str:
        return str(self.trigger["type"])

    @property
    def parameter(self) -> str:
        return str(self.trigger["name"])

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.call)

    @property
    def function_id(self) -> str:
        """The name under which blob messages, receipts and schedule status are kept."""
        return f"Host.Functions.{self.name}"


def load_functions(app_file: Path, environ: Mapping[str, str]) -> list[HostedFunction]:
    """Imports the app and indexes it.

    Raises NoFunctionsFound with the traceback when the import or the indexing fails, and HostError for what this
    host cannot run: a missing setting (all of them at once), an unknown trigger, an output binding.
    """
    try:
        functions = _function_app(_import_app(app_file)).get_functions()
    except (Exception, SystemExit) as error:
        raise NoFunctionsFound(
            f"No job functions found. {app_file.name} could not be indexed:\n{traceback.format_exc()}"
        ) from error
    if not functions:
        raise NoFunctionsFound(f"No job functions found. {app_file.name} declares none")
    missing = [line for function in functions for line in _missing_settings(function, environ)]
    if missing:
        raise HostError("settings are missing:\n  " + "\n  ".join(missing))
    return [_hosted(function, app_file.parent.resolve(), environ) for function in functions]


def _import_app(app_file: Path) -> ModuleType:
    if not app_file.is_file():
        raise FileNotFoundError(app_file)
    directory = str(app_file.parent.resolve())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return importlib.import_module(app_file.stem)


def _function_app(module: ModuleType) -> func.FunctionRegister:
    apps = [value for value in vars(module).values() if isinstance(value, func.FunctionRegister)]
    if len(apps) != 1:
        raise HostError(f"{module.__name__} must hold one function app at its top level, it holds {len(apps)}")
    return apps[0]


def _hosted(function: func.Function, directory: Path, environ: Mapping[str, str]) -> HostedFunction:
    name = str(function.get_function_name())
    declared = function.get_trigger()
    if declared is None or declared.type not in TRIGGERS:
        raise HostError(f"function {name}: the local host has no trigger {getattr(declared, 'type', None)!r}")
    for binding in function.get_bindings():
        if binding is not declared and binding.type != "http":
            raise HostError(f"function {name}: the local host has no binding {binding.type!r} ({binding.name})")

    call = function.get_user_function()
    hints = typing.get_type_hints(call)
    parameters = set(inspect.signature(call).parameters)
    bound = {binding.name for binding in function.get_bindings() if binding.name != "$return"}
    wants_context = "context" in parameters - bound
    if parameters - {"context"} != bound:
        raise HostError(f"function {name}: parameters {sorted(parameters)} do not match bindings {sorted(bound)}")

    parameter_type = hints.get(declared.name)
    deferred = get_deferred_registry().check_supported_type(parameter_type)
    bindings = _bindings_as_sent(function, declared.name, parameter_type, deferred)
    trigger = next(binding for binding in bindings if binding["name"] == declared.name)
    resolved = {key: _resolve(value, environ) for key, value in trigger.items()}
    hosted = HostedFunction(
        name=name,
        call=call,
        directory=directory,
        bindings=bindings,
        trigger=resolved,
        parameter_type=parameter_type,
        deferred=deferred,
        wants_context=wants_context,
        returns_value=any(binding.name == "$return" for binding in function.get_bindings()),
        retry_delays=_retry_delays(name, function.get_settings_dict("retry_policy")),
        disabled=environ.get(f"AzureWebJobs.{name}.Disabled", "").lower() in ("1", "true"),
    )
    _check_annotation(hosted)
    return hosted


def _bindings_as_sent(
    function: func.Function, parameter: str, parameter_type: type | None, deferred: bool
) -> tuple[Mapping[str, Any], ...]:
    """The worker asks the extension library when a parameter is an SDK type, because that adds `properties`."""
    if deferred:
        types = {parameter: SimpleNamespace(pytype=parameter_type)}
        raw, _ = get_deferred_registry().get_raw_bindings(function, types)
    else:
        raw = function.get_raw_bindings()
    return tuple(json.loads(text) for text in raw)


def _check_annotation(function: HostedFunction) -> None:
    if function.parameter_type is None or function.parameter_type in (str, bytes) or function.deferred:
        return
    converter = binding_registry().get(function.kind)
    if not converter.check_input_type_annotation(function.parameter_type):
        raise HostError(
            f"function {function.name}: {function.kind} {function.parameter!r} cannot be a "
            f"{function.parameter_type.__name__}"
        )


def _missing_settings(function: func.Function, environ: Mapping[str, str]) -> list[str]:
    return [
        f"{setting}: function {function.get_function_name()}, binding {binding.name}, {key} = {value!r}"
        for binding in function.get_bindings()
        for key, value in binding.get_dict_repr().items()
        if isinstance(value, str)
        for setting in _SETTING.findall(value)
        if setting not in environ
    ]


def _resolve(value: Any, environ: Mapping[str, str]) -> Any:
    return _SETTING.sub(lambda match: environ[match[1]], value) if isinstance(value, str) else value


def _retry_delays(name: str, policy: Mapping[str, Any] | None) -> tuple[float, ...]:
    if policy is None:
        return ()
    count = int(policy["max_retry_count"])
    if count < 0:
        raise HostError(f"function {name}: the local host does not retry for ever")
    if policy["strategy"] == "fixed_delay":
        return (_seconds(name, policy["delay_interval"]),) * count
    shortest, longest = _seconds(name, policy["minimum_interval"]), _seconds(name, policy["maximum_interval"])
    return tuple(min(shortest * 2**tried, longest) for tried in range(count))


def _seconds(name: str, text: object) -> float:
    return parse_time_span(text, f"function {name}: retry interval").total_seconds()
