"""Azurite: Microsoft's emulator of the blob and queue services.

It also starts an unused table service on a free port, which cannot be disabled.
"""

from collections.abc import Callable
from pathlib import Path

from localcloud import tools
from localcloud.processes import LOCALHOST, Process, wait_until

ACCOUNT = "devstoreaccount1"
LISTENS = "Azurite {} service is successfully listening"
# The emulator's well-known key, the same on every machine: it protects nothing and is not a secret.
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def start(
    folder: Path,
    blob_port: int,
    queue_port: int,
    log: Path,
    hold: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Process:
    """Start it on the state in `folder` and return once both services answer; `LocalCloudError` if they do not.

    `tell` gets a sentence if something must be installed first.

    `--skipApiVersionCheck`: the newest SDKs request API versions that the emulator does not support yet.
    """
    options = {
        "--location": str(folder),
        "--blobHost": LOCALHOST,
        "--blobPort": str(blob_port),
        "--queueHost": LOCALHOST,
        "--queuePort": str(queue_port),
        "--tableHost": LOCALHOST,
        "--tablePort": "0",
    }
    switches = ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    command = [*tools.azurite_command(tell), *(word for option in options.items() for word in option), *switches]
    folder.mkdir(parents=True, exist_ok=True)
    process = Process("azurite", command, log, hold=hold)
    wait_until(lambda: all(process.says(LISTENS.format(service)) for service in ("Blob", "Queue")), process, seconds=30)
    return process


def connection_string(**endpoint_ports: int) -> str:
    """A storage connection string with one endpoint for each keyword, such as `Blob=10000`."""
    endpoints = "".join(f"{name}Endpoint={endpoint(port)};" for name, port in endpoint_ports.items())
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};{endpoints}"


def endpoint(port: int) -> str:
    """The account's URL on a port of this machine."""
    return f"http://{LOCALHOST}:{port}/{ACCOUNT}"
