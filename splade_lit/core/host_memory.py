"""Memory of the host that was freed: given back to the system."""

import ctypes
import platform
from collections.abc import Callable
from functools import cache


def return_free_memory() -> None:
    """Give free pages back to the system, where the C library is glibc, which keeps freed blocks of up to 32 MiB.

    Activations of many sizes leave holes between blocks in use; together they can grow larger than the blocks.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return ctypes.CDLL(None).malloc_trim if platform.libc_ver()[0] == "glibc" else None
