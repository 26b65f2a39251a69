"""A run with an injected fault: `python -m localcloud.faulty fail`, or `hang`."""

import sys
import time


def main(fault: str) -> None:
    if fault == "hang":
        while True:
            time.sleep(3600)
    raise RuntimeError("failed, as asked for")


if __name__ == "__main__":
    main(sys.argv[1])
