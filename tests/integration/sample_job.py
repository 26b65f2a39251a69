"""The job of the tests of the Databricks stand-in: prints its parameters, and ends as they say."""

import argparse
import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path


def world() -> dict[str, object]:
    """The state of the process that a run finds."""
    return {
        "environment": os.environ.get("SAMPLE_LEFT"),
        "folder": str(Path.cwd()),
        "handlers": len(logging.root.handlers),
        "level": logging.root.level,
        "level of a logger": logging.getLogger("sample").level,
        "import path": sys.path[:1],
        "warnings": len(warnings.filters),
        "signal": str(signal.getsignal(signal.SIGUSR1)),
        "name": __name__,
        "module": "tests.integration.sample_job" in sys.modules,
        "module's own": hasattr(sys.modules["__main__"], "left"),
    }


def change_the_world() -> None:
    """Change all of this state."""
    os.environ["SAMPLE_LEFT"] = "1"
    os.chdir("/")
    logging.basicConfig(level=logging.DEBUG, filename=os.devnull)
    logging.getLogger("sample").setLevel(logging.CRITICAL)
    sys.path.insert(0, "/nowhere")
    warnings.simplefilter("error")
    signal.signal(signal.SIGUSR1, lambda *_: None)
    globals()["left"] = True
    sys.stdout.close()


def speak_later() -> None:
    time.sleep(0.3)
    os.write(1, b"the thread's last words\n")


parser = argparse.ArgumentParser()
parser.add_argument("--say", default="")
parser.add_argument("--exit-code", type=int, default=0)
parser.add_argument("--sleep-seconds", type=float, default=0)
parser.add_argument("--child-pid-file", type=Path)
parser.add_argument("--describe", choices=["pid", "world"])
parser.add_argument("--leave", choices=["thread", "exit handler", "another world"])
parser.add_argument("--die", choices=["exit", "kill"])
given = parser.parse_args()

sys.stdout.write(f"said: {given.say}\nlake: {os.environ.get('LAKE_FILE_SYSTEM')}\n")
sys.stdout.flush()
if given.describe:
    sys.stdout.write(f"{os.getpid() if given.describe == 'pid' else json.dumps(world())}\n")
if given.child_pid_file:
    child = subprocess.Popen(["sleep", "600"])
    given.child_pid_file.write_text(str(child.pid))
if given.leave == "thread":
    threading.Thread(target=speak_later).start()
if given.leave == "exit handler":
    atexit.register(os.write, 1, b"the handler's last words\n")
if given.die == "exit":
    os._exit(5)
if given.die == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(given.sleep_seconds)
if given.leave == "another world":
    change_the_world()
if given.exit_code:
    os.write(2, b"ValueError: on request\n")
sys.exit(given.exit_code)
