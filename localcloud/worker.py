"""A Python interpreter that runs one module after another, so that only the first one waits for imports.

`python -m localcloud.worker MODULE…` imports the modules and calls `warm_up` of those that have one. Standard input is
a socket that delivers orders, each a line of JSON: `{"log": FILE, "module": NAME, "arguments": [TEXT…]}`. An order
runs like `python -m NAME TEXT…`, with both output streams in FILE. The answer is its exit code, also a line of JSON.
When the socket is closed, the worker exits.

Every run starts with the same state: arguments, environment, working folder, logging, warnings, signal handlers and
import path are restored after each. Threads and processes cannot be restored: if a run leaves one behind, or an exit
handler, the worker exits with the run's code and without an answer.
"""

import atexit
import gc
import io
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

PROC = Path("/proc")
"""Where Linux lists its processes; all other systems have `ps`."""


def main(modules: list[str]) -> None:
    orders = _orders()
    for name in modules:
        getattr(import_module(name), "warm_up", lambda: None)()
    gc.freeze()  # else the garbage collector would spend 80 ms on the imported objects after every run
    own_outputs, own_processes = (os.dup(1), os.dup(2)), _processes()
    with orders, orders.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            order = json.loads(line)
            _send_outputs_to(order["log"])
            code, left = _run(order["module"], order["arguments"], own_processes)
            if left:
                os.write(own_outputs[1], f"{order['module']} left {', '.join(left)}: this is the end\n".encode())
                sys.exit(code)
            for own, output in zip(own_outputs, (1, 2), strict=True):
                os.dup2(own, output)
            orders.sendall(f"{code}\n".encode())


def _orders() -> socket.socket:
    """The socket from standard input; runs get an empty standard input instead."""
    orders = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return orders


def _send_outputs_to(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _run(module: str, arguments: list[str], processes: set[int]) -> tuple[int, list[str]]:
    """Run a module; returns its exit code and what it left behind. If it left something, no state is restored.

    `processes` are those of this group that existed before the run.
    """
    threads, at_exit = set(threading.enumerate()), atexit._ncallbacks()
    with ExitStack() as put_back:
        for kept in (_process_state, _interpreter_state, _logging_state, warnings.catch_warnings):
            put_back.enter_context(kept())
        sys.argv = [module, *arguments]
        sys.stdout, sys.stderr = _text_output(1, "strict"), _text_output(2, "backslashreplace")
        code = _exit_code(module)
        left = [
            *(f"the thread {thread.name}" for thread in set(threading.enumerate()) - threads),
            *(f"the process {number}" for number in _processes() - processes),
            *(["exit handlers"] if atexit._ncallbacks() != at_exit else []),
        ]
        if left:
            put_back.pop_all()
            return code, left
    gc.collect()
    if "pyarrow" in sys.modules:
        from shared.memory import give_back_memory

        give_back_memory()
    return code, []


def _processes() -> set[int]:
    """The living processes of this process group; runs start their processes in it."""
    if not (PROC / "self" / "stat").exists():
        with subprocess.Popen(["ps", "-A", "-o", "pid=,pgid=,state="], stdout=subprocess.PIPE, text=True) as shown:
            lines = [line.split() for line in shown.communicate()[0].splitlines()]
        return {int(pid) for pid, group, state in lines if _is_one(group, state)} - {shown.pid}
    found = set()
    for process in PROC.glob("[0-9]*"):
        try:
            state, _, group, *_ = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended meanwhile
            continue
        if _is_one(group, state):
            found.add(int(process.name))
    return found


def _is_one(group: str, state: str) -> bool:
    return int(group) == os.getpgrp() and not state.startswith("Z")


def _exit_code(module: str) -> int:
    preloaded = sys.modules.pop(module, None)  # runpy warns about a loaded module
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 an interpreter prints any exception and exits
        traceback.print_exc()
        return 1
    finally:
        if preloaded:
            sys.modules[module] = preloaded
    return 0


def _text_output(descriptor: int, errors: str) -> io.TextIOWrapper:
    """An unbuffered output stream."""
    return io.TextIOWrapper(
        io.FileIO(descriptor, "w", closefd=False), encoding="utf-8", errors=errors, write_through=True
    )


@contextmanager
def _process_state() -> Iterator[None]:
    environment, folder, mask = dict(os.environ), Path.cwd(), os.umask(0o022)
    os.umask(mask)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(mask)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@contextmanager
def _interpreter_state() -> Iterator[None]:
    names = ("argv", "stdin", "stdout", "stderr", "excepthook", "displayhook")
    values = {name: getattr(sys, name) for name in names}
    path = list(sys.path)
    yield
    for name, value in values.items():
        setattr(sys, name, value)
    sys.path[:] = path


@contextmanager
def _logging_state() -> Iterator[None]:
    before = {logger: _logger_state(logger) for logger in _loggers()}
    disabled = logging.root.manager.disable
    yield
    for logger in _loggers():
        level, propagate, is_disabled, handlers, filters = before.get(logger, (logging.NOTSET, True, False, [], []))
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.propagate, logger.disabled = propagate, is_disabled
        logger.setLevel(level)
    logging.disable(disabled)


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _logger_state(logger: logging.Logger) -> tuple[int, bool, bool, list[logging.Handler], list[Any]]:
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters)


if __name__ == "__main__":
    main(sys.argv[1:])
