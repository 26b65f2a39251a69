"""What the Databricks stand-in runs in its tests: says what it was given, and ends as it is told."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--say", default="")
parser.add_argument("--exit-code", type=int, default=0)
parser.add_argument("--sleep-seconds", type=float, default=0)
parser.add_argument("--child-pid-file", type=Path)
given = parser.parse_args()

sys.stdout.write(f"said: {given.say}\nlake: {os.environ.get('LAKE_FILE_SYSTEM')}\n")
sys.stdout.flush()
if given.child_pid_file:
    child = subprocess.Popen(["sleep", "600"])
    given.child_pid_file.write_text(str(child.pid))
time.sleep(given.sleep_seconds)
if given.exit_code:
    sys.stderr.write("ValueError: as told\n")
sys.exit(given.exit_code)
