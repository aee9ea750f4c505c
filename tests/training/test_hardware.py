"""The measured peak of matrix products, and the table of GPUs."""

import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training.hardware import GPU, GPUS, find_gpu, free_memory, matmul_peak, training_device

CPU = torch.device("cpu")


class Clock:
    """A clock on which each matrix product takes a chosen time; records the products' operations."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self.now = 0.0
        self.products: list[int] = []
        self._seconds = seconds
        self._multiply = torch.mm

    def perf_counter(self) -> float:
        return self.now

    def mm(self, left: torch.Tensor, right: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        with FlopCounterMode(display=False) as counter:
            product = self._multiply(left, right, **kwargs)
        self.products.append(counter.get_total_flops())
        self.now += next(self._seconds)
        return product


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Iterator[float]], Clock]]:
    """Replaces the real clock by a `Clock`, and clears the cache of measurements before and after."""

    def start(seconds: Iterator[float]) -> Clock:
        clock = Clock(seconds)
        monkeypatch.setattr(sys.modules[GPU.__module__], "time", clock)
        monkeypatch.setattr(torch, "mm", clock.mm)
        matmul_peak.cache_clear()
        return clock

    yield start
    matmul_peak.cache_clear()


def test_the_peak_is_measured_once_and_quickly(measure: Callable[..., Clock]) -> None:
    clock = measure(repeat(0.125))
    peak = matmul_peak(CPU)
    assert peak == pytest.approx(max(clock.products) / 0.125)
    # All sizes together take about a second on the clock.
    assert len(clock.products) * 0.125 < 1.5
    assert len(set(clock.products)) == 3
    before = len(clock.products)
    assert matmul_peak(CPU) == peak
    assert len(clock.products) == before


def test_a_slow_machine_is_not_asked_for_larger_products(measure: Callable[..., Clock]) -> None:
    clock = measure(repeat(10))
    assert matmul_peak(CPU) == clock.products[0] / 10
    assert len(clock.products) == 1


def test_no_product_is_faster_than_the_peak(measure: Callable[..., Clock]) -> None:
    seconds = [0.02, 0.05, 0.25, 0.02, 0.08, 0.04, 0.2, 0.02, 0.5, 0.03, 0.4]
    clock = measure(iter(seconds))
    peak = matmul_peak(CPU)
    speeds = [flops / taken for flops, taken in zip(clock.products, seconds, strict=False)]
    # The maximum, not the mean, because other work on the machine can only slow products down.
    assert peak == pytest.approx(max(speeds))


def test_the_peak_of_this_machine() -> None:
    assert 1e7 < matmul_peak(CPU) < 1e16


def test_free_memory_is_that_of_the_machine() -> None:
    assert 0 < free_memory(CPU) < 2**50
    assert training_device().type in ("cpu", "cuda", "mps", "xpu")


def test_gpus_are_found_in_any_case() -> None:
    assert find_gpu("H100") is GPUS["h100"]
    assert all(gpu.source and gpu.flops > 1e12 and gpu.memory > 1e9 for gpu in GPUS.values())


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"--gpu h1000 is unknown; choose from .*h100.*a100"):
        find_gpu("h1000")
