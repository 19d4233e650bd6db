"""How torch's threads wait for work: its OpenMP library reads the environment when it is loaded."""

import os
import sys
from collections.abc import Mapping

WAITING: Mapping[str, str] = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What commands set: threads that wait sleep, in place of spinning on a core that another program could use.

On two idle cores it costs nothing that shows; beside another program it nearly doubles the speed (docs/speed.md).
"""


def set_waiting() -> None:
    """Set how threads wait, unless the user has set something of the kind or torch is loaded already."""
    theirs = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"} & os.environ.keys()
    if not theirs and "torch" not in sys.modules:
        os.environ.update(WAITING)
