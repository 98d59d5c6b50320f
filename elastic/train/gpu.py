"""What is to be known of the GPU that a worker trains on."""

import torch


def gpu_memory() -> tuple[int, int] | None:
    """Bytes in use, by anyone, and of all, on the GPU that this process trains on; None: it has none."""
    if not torch.cuda.is_initialized():
        return None
    free, size = torch.cuda.mem_get_info()
    return size - free, size
