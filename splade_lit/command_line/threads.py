"""How torch's threads wait for work: its OpenMP library reads the environment when it is loaded."""

import os
import sys
from collections.abc import Mapping

WAITING: Mapping[str, str] = {}
"""What commands set, such as `{"GOMP_SPINCOUNT": "0"}`; nothing keeps the default, threads that spin for a while."""


def set_waiting(variables: Mapping[str, str] | None = None) -> None:
    """Set how threads wait, unless the user has set something of the kind or torch is loaded already.

    Args:
        variables: environment variables; `WAITING` if not given.
    """
    theirs = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"} & os.environ.keys()
    if not theirs and "torch" not in sys.modules:
        os.environ.update(WAITING if variables is None else variables)
