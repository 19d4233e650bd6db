"""Memory that training has freed on a CPU, and that the C library keeps."""

import ctypes
import platform
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    return ctypes.CDLL(None).malloc_trim if platform.libc_ver()[0] == "glibc" else None


_malloc_trim = _find_trim()


def return_free_memory() -> bool:
    """Give free pages back to the system.

    glibc keeps freed blocks of up to 32 MiB. Activations of many sizes leave holes between blocks in use; together the
    holes can grow larger than the blocks.

    Returns:
        Whether the C library can do so: True with glibc.
    """
    if _malloc_trim is None:
        return False
    _malloc_trim(0)
    return True
