"""What GPUs can do, from their makers' data sheets; and what an hour of one may cost, as an example."""

import difflib
from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator."""

    flops: float
    """Peak of dense bf16 products with fp32 sums, FLOP/s. Sheets often print twice that, "with sparsity"."""
    memory_bytes: float
    """As sold, in 10⁹; some have a few per cent more."""
    bandwidth: float
    """Of its memory, bytes/s."""
    host_bandwidth: float
    """To the machine's memory, one way, bytes/s: four fifths of the bus."""
    usd_per_hour: float
    """AN EXAMPLE, about what renting one cost in 2026. It differs threefold between sellers: write your own."""


def _gpu(tflops: float, gb: float, tb_per_second: float, bus: float, usd: float) -> Gpu:
    return Gpu(tflops * TERA, gb * GIGA, tb_per_second * TERA, 0.8 * bus * GIGA, usd)


PCIE4, PCIE5 = 32.0, 64.0
"""GB/s of 16 lanes, one way."""

GPUS: dict[str, Gpu] = {
    # nvidia.com/en-us/geforce, GA102 and AD102 white papers, appendix A: with fp32 sums, half of that with fp16 sums
    "RTX3090": _gpu(71, 24, 0.936, PCIE4, 0.2),
    "RTX4090": _gpu(165.2, 24, 1.008, PCIE4, 0.4),
    # nvidia.com/en-us/data-center/l40s
    "L40S": _gpu(362, 48, 0.864, PCIE4, 0.9),
    # nvidia.com/en-us/data-center/a100 (SXM)
    "A100-40": _gpu(312, 40, 1.555, PCIE4, 1.2),
    "A100": _gpu(312, 80, 2.039, PCIE4, 1.5),
    # nvidia.com/en-us/data-center/h100 and h200 (SXM)
    "H100": _gpu(989, 80, 3.35, PCIE5, 2.5),
    "H200": _gpu(989, 141, 4.8, PCIE5, 3.2),
    # Blackwell data sheet, nvidia.com/en-us/data-center/dgx-b200: 1,440 GB and 64 TB/s for eight
    "B200": _gpu(2250, 180, 8.0, PCIE5, 5.0),
    # amd.com/en/products/accelerators/instinct/mi300/mi300x.html
    "MI300X": _gpu(1307.4, 192, 5.3, PCIE5, 2.5),
    # One thread of an x86-64 server, fp32: 2 FMA units × 8 numbers × 2 operations × 3 GHz. It has no memory of its own.
    "cpu": Gpu(96 * GIGA, 4 * GIGA, 10 * GIGA, 10 * GIGA, 0.03),
}

CALLED = {
    "NVIDIA GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA L40S": "L40S",
    "NVIDIA A100-SXM4-40GB": "A100-40",
    "NVIDIA A100-PCIE-40GB": "A100-40",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "AMD Instinct MI300X": "MI300X",
}
"""What drivers call them. H100 and H200 as PCIe cards, and parts of a GPU (MIG), have other names and less FLOPs."""


def kind_of(device: str) -> str | None:
    """Which of `GPUS` a device is, as its driver calls it; None: none that is known."""
    return CALLED.get(device)


def gpu_named(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in GPUS:
        near = difflib.get_close_matches(name.upper(), GPUS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(GPUS)}"
        raise ValueError(f'no GPU is called "{name}"; {hint}')
    return GPUS[name]
