"""Compares the measured peak with the time of matrix products here, and checks the table of GPUs."""

import time

import pytest
import torch

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training.hardware import GPUS, find_gpu, free_memory, matmul_peak, training_device

CPU = torch.device("cpu")


def test_the_peak_is_measured_once_and_quickly() -> None:
    start = time.process_time()
    peak = matmul_peak(CPU)
    assert time.process_time() - start < 2 * torch.get_num_threads()
    start = time.perf_counter()
    assert matmul_peak(CPU) == peak
    assert time.perf_counter() - start < 0.01


def test_no_product_is_faster_than_the_peak() -> None:
    left, right = torch.randn(700, 700), torch.randn(700, 700)
    start = time.perf_counter()
    for _ in range(5):
        left @ right
    achieved = 5 * 2 * 700**3 / (time.perf_counter() - start)
    # 10 % tolerance for changes of the clock rate between the two measurements.
    assert achieved < 1.1 * matmul_peak(CPU)


def test_free_memory_is_that_of_the_machine() -> None:
    assert 0 < free_memory(CPU) < 2**50
    assert training_device().type in ("cpu", "cuda", "mps", "xpu")


def test_gpus_are_found_in_any_case() -> None:
    assert find_gpu("H100") is GPUS["h100"]
    assert all(gpu.source and gpu.flops > 1e12 and gpu.memory > 1e9 for gpu in GPUS.values())


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"--gpu h1000 is unknown; choose from .*h100.*a100"):
        find_gpu("h1000")
