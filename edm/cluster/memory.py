"""How the C library reuses the memory of freed CPU tensors."""

import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


def keep_freed() -> bool:
    """Makes this process keep freed memory for reuse. Returns False where the C library does not support that.

    By default glibc returns the memory of every large tensor to the system, which then clears each page again for the
    next tensor: a fifth of the time of a wide network's training step (bench/RESULTS.md). Has no effect on other C
    libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # takes 3 ms, which commands without a device should not pay

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
