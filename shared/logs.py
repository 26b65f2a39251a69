"""What other people's libraries may log."""

import logging


def quiet_vendors() -> None:
    """Let the SDKs log what needs a person, and no line for each call.

    azure: INFO is a line for every storage call. databricks.sdk: WARNING is a line for every workspace that has no host
    metadata, which all on Azure lack.
    """
    logging.getLogger("azure").setLevel(logging.WARNING)
    logging.getLogger("databricks.sdk").setLevel(logging.ERROR)
