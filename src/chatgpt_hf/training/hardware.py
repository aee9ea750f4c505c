"""The speed and memory of machines: measured on this one, published for some GPUs."""

import time
from dataclasses import dataclass
from functools import cache

import torch

from ..errors import ConfigError
from ..extras import needed_by

with needed_by("Training"):
    import psutil

# Sizes of square matrices; a CPU peaks at the smaller ones, a GPU at the larger ones.
_SIZES = {"cpu": (512, 1024, 1536)}
_GPU_SIZES = (4096, 8192)
_SECONDS_PER_SIZE = 0.3


@dataclass(frozen=True)
class GPU:
    """A GPU, with the figures that its maker publishes.

    Attributes:
        name: Full name.
        flops: Peak of dense matrix products in FLOP/s: bfloat16 with float32 accumulation, without sparsity; float16
            for the two that lack bfloat16.
        memory: Bytes.
        link: Bytes per second to other GPUs of the same machine, in one direction: NVLink, or PCI Express.
        source: The document with these figures.
    """

    name: str
    flops: float
    memory: float
    link: float
    source: str


GPUS: dict[str, GPU] = {
    "b200": GPU("NVIDIA B200", 2250e12, 180e9, 900e9, "NVIDIA HGX B200 data sheet (half of the sparse figure)"),
    "h200": GPU("NVIDIA H200 SXM", 989e12, 141e9, 450e9, "NVIDIA H200 data sheet (half of the sparse figure)"),
    "h100": GPU("NVIDIA H100 SXM 80 GB", 989e12, 80e9, 450e9, "NVIDIA H100 data sheet (half of the sparse figure)"),
    "h100-pcie": GPU(
        "NVIDIA H100 PCIe 80 GB", 756e12, 80e9, 64e9, "NVIDIA H100 data sheet (half of the sparse figure)"
    ),
    "a100": GPU("NVIDIA A100 SXM 80 GB", 312e12, 80e9, 300e9, "NVIDIA A100 data sheet"),
    "a100-40gb": GPU("NVIDIA A100 SXM 40 GB", 312e12, 40e9, 300e9, "NVIDIA A100 data sheet"),
    "l40s": GPU("NVIDIA L40S", 362e12, 48e9, 32e9, "NVIDIA L40S data sheet"),
    "l4": GPU("NVIDIA L4", 121e12, 24e9, 32e9, "NVIDIA L4 data sheet (half of the sparse figure)"),
    "rtx5090": GPU(
        "NVIDIA GeForce RTX 5090", 209.5e12, 32e9, 64e9, "NVIDIA RTX Blackwell GPU architecture, appendix A"
    ),
    "rtx4090": GPU("NVIDIA GeForce RTX 4090", 165.2e12, 24e9, 32e9, "NVIDIA Ada GPU architecture, appendix A"),
    "rtx3090": GPU("NVIDIA GeForce RTX 3090", 71e12, 24e9, 32e9, "NVIDIA Ampere GA102 GPU architecture, appendix A"),
    "v100": GPU("NVIDIA V100 SXM 32 GB, float16", 125e12, 32e9, 150e9, "NVIDIA V100 data sheet"),
    "t4": GPU("NVIDIA T4, float16", 65e12, 16e9, 16e9, "NVIDIA T4 data sheet"),
}


def find_gpu(name: str) -> GPU:
    """Returns the GPU of that name in `GPUS`; case does not matter.

    Raises:
        ConfigError: If there is none; the message lists the known names.
    """
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise ConfigError(f"--gpu {name} is unknown; choose from {', '.join(GPUS)}.") from None


def training_device() -> torch.device:
    """The device that `Trainer` uses by default: the accelerator if there is one, otherwise the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its queued work; a CPU has no queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes available to a new run on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the fastest square matrix product on this device, with torch's current number of threads.

    Serves as 100 % for model FLOPs utilization. Takes about a second; the result is cached. The best of all
    repetitions counts, because other work on the machine can only slow them down.
    """
    best = 0.0
    # A separate generator, so that measuring in the middle of a run does not change the run's random numbers.
    generator = torch.Generator(device).manual_seed(0)
    for size in _SIZES.get(device.type, _GPU_SIZES):
        left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        out = left @ right
        synchronize(device)
        deadline = time.perf_counter() + _SECONDS_PER_SIZE
        while True:
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            synchronize(device)
            end = time.perf_counter()
            best = max(best, 2 * size**3 / (end - start))
            if end > deadline:
                break
        if end - start > _SECONDS_PER_SIZE:
            # A CPU without hardware support for the dtype: larger products would be no faster and take minutes.
            break
    return best
