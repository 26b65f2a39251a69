"""Runs a command that cannot outlive its caller: `python leash.py SIGNAL SECONDS USER INPUT COMMAND [ARGUMENT …]`.

Standard input is one end of a socket pair; the caller keeps the other end. When the caller closes it, or the kernel
does because the caller was killed, the command gets SIGNAL and, SECONDS later, the rest of its process group gets
SIGKILL. The watching process ends last, and with it this end of the pair.

Unlike PR_SET_PDEATHSIG, this needs no Linux-only call, works from any thread and survives a change of user. The command
replaces this process, so its pid, return code and output are its own.

USER is the numeric user and group the command runs as, or "-" for the caller's. INPUT is the number of an open file
descriptor that becomes the command's standard input, or "-" for an empty one. Run with `python -I -S` (10 ms).
"""

import os
import signal
import sys
import time


def main() -> None:
    signal_name, seconds, user, given, *command = sys.argv[1:]
    source = os.open(os.devnull, os.O_RDONLY) if given == "-" else int(given)
    os.setsid()
    command_pid = os.getpid()
    if os.fork() == 0:
        os.close(source)
        keep_watch(command_pid, signal.Signals[signal_name], float(seconds))
    os.dup2(source, 0)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # inherited files stay open in the watching process only
    if user != "-":
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    os.execvp(command[0], command)


def keep_watch(command_pid: int, polite: signal.Signals, seconds: float) -> None:
    """In a separate process of the command's group, wait for the end of standard input; then end the group."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    while os.read(0, 1024):
        continue
    deadline = time.monotonic() + seconds
    if os.getppid() == command_pid:
        os.kill(command_pid, polite)
    while os.getppid() == command_pid and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(command_pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
