"""How the C library keeps memory that training frees on a CPU."""

import ctypes
import os
import platform

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 2 << 20


def return_large_blocks() -> bool:
    """Have blocks of 2 MiB and more given back to the system as soon as they are freed.

    glibc keeps blocks of up to 32 MiB for later; activations of many sizes then leave holes that grow to more than what
    is in use. A setting of the user's own, `MALLOC_MMAP_THRESHOLD_` in the environment, stays. It holds for the whole
    process.

    Returns:
        Whether it was done: on Linux with glibc.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
