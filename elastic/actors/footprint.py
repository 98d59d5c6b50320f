"""Memory of this process and everything below it: Ray, the peers' actors, p2pd."""

import psutil


def tree_bytes() -> int:
    """Proportional set size of the process tree, so that memory shared by several processes counts once."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
