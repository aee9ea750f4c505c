"""Moving memory into huge pages keeps its content, and the kernel reports huge pages."""

import ctypes
import mmap
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, use_cpu_kernels
from chatgpt_hf.inference.cpu import huge_pages as pages
from chatgpt_hf.inference.cpu import packed_linear as kernels
from chatgpt_hf.inference.cpu.huge_pages import use_huge_pages

MB = 2**20
RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


def huge_bytes(address: int) -> int:
    """The number of bytes in huge pages of the mapping that contains an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no mapping holds the address")


@contextmanager
def small_pages() -> Iterator[None]:
    """Memory that is touched in the block gets small pages, even on systems that give huge ones by default."""
    disable = 41  # PR_SET_THP_DISABLE
    libc = ctypes.CDLL(None)
    assert libc.prctl(disable, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(disable, 0, 0, 0, 0) == 0


def collapse(values: torch.Tensor) -> bool:
    """Asks the kernel directly for huge pages; False if it has none for one of the tensor's parts."""
    size = int(pages._SIZE_FILE.read_text())
    first, end = -(-values.data_ptr() // size) * size, values.data_ptr() + values.nbytes
    libc = ctypes.CDLL(None)
    return not any(
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(pages._MADV_COLLAPSE))
        for address in range(first, end - size + 1, size)
    )


@pytest.mark.skipif(
    platform.system() != "Linux" or RELEASE < (6, 1) or not pages._SIZE_FILE.is_file(),
    reason="the kernel cannot collapse pages into huge ones (Linux 6.1 can)",
)
def test_what_is_in_use_is_moved_and_stays_the_same() -> None:
    # How many huge pages there are depends on what else the machine does: it must not be that the kernel gives them
    # to this tensor, but did not give them to `use_huge_pages` just before, several times in a row.
    for _ in range(5):
        with small_pages():
            values = torch.arange(16 * MB, dtype=torch.int32)
        # `torch.empty` may give memory that was in use before, which is resident already.
        unused = torch.frombuffer(
            mmap.mmap(-1, 256 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
        )
        before = huge_bytes(values.data_ptr())
        moved = use_huge_pages()
        if huge_bytes(values.data_ptr()) >= before + 60 * MB:
            assert moved >= 60 * MB
            break
        if not collapse(values):
            break
    else:
        pytest.fail("the kernel had huge pages that `use_huge_pages` did not get")
    assert values.equal(torch.arange(16 * MB, dtype=torch.int32))
    # Untouched memory still takes no physical memory.
    resident = int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    unused.fill_(1)
    assert int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) > resident + 200_000


def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "_SIZE_FILE", tmp_path / "none")
    assert use_huge_pages() == 0


@pytest.mark.parametrize(("width", "expected"), [(256, 0), (1024, 1)], ids=["in the processor's cache", "beyond it"])
def test_weights_that_come_from_memory_get_them(monkeypatch: pytest.MonkeyPatch, width: int, expected: int) -> None:
    calls: list[int] = []
    monkeypatch.setattr(kernels, "use_huge_pages", lambda: calls.append(1))
    config = ChatGPTConfig(vocab_size=64, hidden_size=width, num_hidden_layers=1, num_attention_heads=4)
    use_cpu_kernels(ChatGPTForCausalLM(config))
    assert len(calls) == expected
