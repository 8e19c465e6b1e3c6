"""What becomes of the memory of freed tensors on a CPU."""

import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


def keep_freed() -> bool:
    """Lets this process keep what it frees, to use it again; whether that is possible.

    glibc returns the memory of every large tensor to the system, which clears each page of it anew when the next tensor
    of the same size asks for it: a fifth of the time of a wide network's training step (bench/RESULTS.md). Other C
    libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # 3 ms, which commands without a device need not wait for

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
