"""All of what was asked for, at a place of an open file: one system call may do less."""

import os


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it there.

    Raises:
        OSError: it cannot be written; some of it may have been.
    """
    view, written = memoryview(data), 0
    while written < len(view):  # Linux writes 2 GiB at a time
        written += os.pwrite(descriptor, view[written:], offset + written)


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Fill it with what lies there. Returns the bytes read: fewer if the file ends before.

    Raises:
        OSError: it cannot be read.
    """
    read = 0
    while read < len(into) and (count := os.preadv(descriptor, [into[read:]], offset + read)):
        read += count
    return read
