"""The modules that an entry point reaches, found in the sources: the imports of all used code, also inside functions.

A function counts as used if its name occurs in used code, in any meaning, so the result may have too many modules but
never too few. Imports for type checkers only do not count.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.places import PROJECT

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Code(NamedTuple):
    """The names and the imported modules in a function or, if `function` is empty, in the module outside functions."""

    function: str
    names: frozenset[str]
    imports: frozenset[str]


def modules_reached(entry: str) -> set[str]:
    """The modules, including those of other packages, that an entry point needs if all its functions are called."""
    found, names = {entry}, {code.function for code in _codes(entry)}
    while True:
        used = [code for module in found for code in _codes(module) if _is_used(code.function, names)]
        more_found = found.union(*(code.imports for code in used))
        more_names = names.union(*(code.names for code in used))
        if (more_found, more_names) == (found, names):
            return found
        found, names = more_found, more_names


def source_of(module: str) -> Path | None:
    """The file of a module of the project; None for a module of another package."""
    place = PROJECT.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _is_used(function: str, names: set[str]) -> bool:
    return not function or function in names or function.startswith("__")


@functools.cache
def _codes(module: str) -> list[Code]:
    source = source_of(module)
    if source is None:
        return []
    tree = ast.parse(source.read_text(encoding="utf-8"))
    functions = [node for node in _nodes(tree, into_functions=False) if isinstance(node, Function)]
    return [
        _code("", _nodes(tree, into_functions=False)),
        *(_code(function.name, _nodes(function, into_functions=True)) for function in functions),
    ]


def _nodes(tree: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    """The nodes below a node, except code for type checkers, and the bodies of functions only with `into_functions`."""
    is_for_checkers = isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)
    below = tree.orelse if isinstance(tree, ast.If) and is_for_checkers else ast.iter_child_nodes(tree)
    for node in below:
        yield node
        if into_functions or not isinstance(node, Function):
            yield from _nodes(node, into_functions=into_functions)
        else:  # defaults and decorators run at the definition
            for part in (node.args, *node.decorator_list):
                yield from (part, *_nodes(part, into_functions=False))


def _code(function: str, nodes: Iterator[ast.AST]) -> Code:
    names, imports = set(), set()
    for node in nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                names.add(name)
            case ast.Import(names=aliases):
                imports |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {alias.name for alias in aliases}
                inner = {alias.name: f"{module}.{alias.name}" for alias in aliases}
                imports |= {below if source_of(below) else module for below in inner.values()}
    return Code(function, frozenset(names), frozenset(imports))
