"""Which modules an entry point reaches, found by reading the sources: what is imported by code that is used, in
functions too.

A function counts as used when its name occurs in code that is used, whatever it means there: rather too many than too
few. What only type checkers see does not count.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.places import PROJECT

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Code(NamedTuple):
    """What a function does or, where `function` is empty, the import of a module: the names that occur in it, and the
    modules that it imports."""

    function: str
    names: frozenset[str]
    imports: frozenset[str]


def modules_reached(entry: str) -> set[str]:
    """The modules, foreign ones included, that an entry point needs of which every function is called."""
    found, names = {entry}, {code.function for code in _codes(entry)}
    while True:
        used = [code for module in found for code in _codes(module) if _is_used(code.function, names)]
        more_found = found.union(*(code.imports for code in used))
        more_names = names.union(*(code.names for code in used))
        if (more_found, more_names) == (found, names):
            return found
        found, names = more_found, more_names


def source_of(module: str) -> Path | None:
    """The file of one of the project's modules; None for a foreign one."""
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
    """What stands below a node, for type checkers only excepted, and the insides of functions only if that is said."""
    is_for_checkers = isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)
    below = tree.orelse if isinstance(tree, ast.If) and is_for_checkers else ast.iter_child_nodes(tree)
    for node in below:
        yield node
        if into_functions or not isinstance(node, Function):
            yield from _nodes(node, into_functions=into_functions)
        else:  # what is run where it is defined
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
