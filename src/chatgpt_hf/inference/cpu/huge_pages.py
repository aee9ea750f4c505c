"""Backs weights by 2 MB huge pages: decoding streams all weights, and with 4 KB pages TLB misses dominate."""

import ctypes
import errno
import mmap
from itertools import groupby
from pathlib import Path

import numpy as np

# Contains the size of a huge page in bytes; missing if the system has no huge pages.
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# From madvise(2); Python's `mmap` does not define it. Kernels before 6.1 refuse it.
_MADV_COLLAPSE = 25


def use_huge_pages() -> int:
    """Asks Linux to move this process' memory into huge pages, except where half of a huge page or less is in use.

    oneDNN and FBGEMM do not ask for huge pages when they pack weights, and most distributions give them only on
    request (`transparent_hugepage/enabled` is `madvise`). FBGEMM reads GPT-2-small's int8 weights in 6.9 milliseconds
    from huge pages and in 8.5 from small ones (docs/log.md).

    Returns:
        Bytes that are in huge pages now. 0 if the system has no huge pages or cannot collapse small ones: nothing
        changes.
    """
    if not _SIZE_FILE.is_file():
        return 0
    size, moved = int(_SIZE_FILE.read_text()), 0
    libc = ctypes.CDLL(None, use_errno=True)

    def collapse(address: int, length: int) -> bool:
        return not libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(_MADV_COLLAPSE))

    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        # Threads' stacks are included here, but hardly any of their memory is in use.
        anonymous = inode == "0" and (not name or name[0].startswith(("[heap]", "[anon")))
        if permissions != "rw-p" or not anonymous:
            continue
        first, end = (int(address, 16) for address in addresses.split("-"))
        first = -(-first // size) * size
        count = (end - first) // size
        if count < 1:
            continue
        in_use = np.zeros((count, size // mmap.PAGESIZE), dtype=np.uint8)
        if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(count * size), in_use.ctypes.data_as(ctypes.c_void_p)):
            continue
        begin = 0
        for worth_it, run in groupby((in_use & 1).mean(axis=1) > 0.5):
            length = len(list(run)) * size
            if worth_it and collapse(first + begin, length):
                moved += length
            elif worth_it:
                # Linux stops at the first page that it cannot move, but most of the others can still be moved.
                for address in range(first + begin, first + begin + length, size):
                    if collapse(address, size):
                        moved += size
                    elif ctypes.get_errno() == errno.ENOMEM:  # There are no more huge pages.
                        return moved
            begin += length
    return moved
