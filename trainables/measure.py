"""Time, memory and sizes."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

_PROCESS = Path("/proc/self")

_CLEAR_REFS = _PROCESS / "clear_refs"
_CAN_RESET = os.access(_CLEAR_REFS, os.W_OK)
"""Whether a process can reset its high-water mark (proc(5)): on Linux, unless a container forbids it."""

_C = ctypes.CDLL(None)

_M_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""


_MADV_DONTNEED = 4
"""See madvise(2)."""

OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Text in the plain errors of PyTorch's CPU allocator, of CUDA itself and of its libraries."""

SHARED_MEMORY = "/dev/shm/"
"""Where files are memory, Ray's object store among them."""


class Stopwatch:
    """Add up the seconds of the blocks it is wrapped around, the device's queued work included.

    Arguments:
        device: whose queued work is waited for.
        seconds: measured before.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self.seconds = seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        synchronize(self._device)
        started = time.perf_counter()
        try:
            yield
        finally:
            synchronize(self._device)
            self.seconds += time.perf_counter() - started


class Lap:
    """The seconds of a block, its queued work included, without waiting for that.

    On a GPU they begin when the work queued before has been done.

    Arguments:
        device: that the block queues work on.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        if self._events:
            self._events[0].record()
        try:
            yield
        finally:
            if self._events:
                self._events[1].record()
            self._seconds = time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """Of the block; waits for its work."""
        if self._events is None:
            return self._seconds
        started, ended = self._events
        ended.synchronize()
        return started.elapsed_time(ended) / 1000


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the high-water mark; on a GPU, free what nothing uses first."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what the allocator caches is unavailable to processes that share the GPU
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        _unmap_shared_pages()
        if _CAN_RESET:
            _CLEAR_REFS.write_text("5")


def _unmap_shared_pages() -> None:
    """Have pages of shared memory count again only once they are read again; what they hold stays.

    Base weights are shared. Without this, a trial would be said to hold those that trials before it in its
    process have read: of QLoRA, which reads none of the large ones, a fifth more than it does.
    """
    for line in (_PROCESS / "maps").read_text().splitlines():
        place, permissions, _, _, _, *path = line.split(maxsplit=5)
        if permissions.endswith("s") and path and path[0].startswith(SHARED_MEMORY):
            start, end = (int(address, 16) for address in place.split("-"))
            _C.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def peak_memory(device: torch.device) -> tuple[int | None, str | None]:
    """Return the bytes of the high-water mark and how they were measured; None where they cannot be read.

    On CUDA it is the allocator's. On Linux it is the process's own ``VmHWM`` (proc(5)), interpreter and
    libraries included, unless it cannot be reset: then it may be that of an earlier trial.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda_allocator"
    if not _CAN_RESET:
        return None, None
    return _process_status("VmHWM"), "process_high_water"


def give_back_memory() -> None:
    """Collect garbage, and have glibc return free memory to the kernel (malloc_trim(3))."""
    gc.collect()
    trim = getattr(_C, "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def large_blocks_apart(wanted: bool = True) -> Iterator[None]:
    """Have glibc take blocks of a megabyte and more from the kernel one by one (mallopt(3)), if wanted.

    A freed block then goes back to the kernel instead of leaving a hole that small blocks break up: less
    memory, slower allocation. Nothing changes under glibc's default thresholds, which do much the same, or
    without glibc.
    """
    usual = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    set_option = getattr(_C, "mallopt", None)
    if not wanted or usual is None or set_option is None:
        yield
        return
    set_option(_M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        set_option(_M_MMAP_THRESHOLD, int(usual))


def shared_memory() -> int:
    """Return the bytes of shared memory this process has in use (proc(5), ``RssShmem``); Linux only."""
    return _process_status("RssShmem")


def _process_status(name: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {name}")


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error is one of memory that ran out; a GPU can be used after it."""
    says_so = isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    return says_so or isinstance(error, torch.OutOfMemoryError | MemoryError)


def without_frames(error: Exception) -> Exception:
    """Return an error without the frames it was raised in, which hold a step's tensors; a note names them.

    Clearing the frames would not do: a module's hooks keep its inputs.
    """
    error.add_note("".join(traceback.format_tb(error.__traceback__)))
    one: BaseException | None = error
    while one is not None:
        one.__traceback__, one = None, one.__cause__ or one.__context__
    return error


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers as loaded, quantization state included."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    sizes = (tensor.numel() * tensor.element_size() for tensor in tensors.values())
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return sum(sizes) + sum(_quant_state_bytes(state) for state in states if state is not None)


def _quant_state_bytes(state: Any) -> int:
    tensors = [state.absmax, state.code, state.offset]
    if state.state2 is not None:
        tensors += [state.state2.absmax, state.state2.code]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return trainable and total parameters, quantized ones counted as unquantized."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(
        _numel(parameter)
        for name, parameter in model.named_parameters()
        if ".original_module." not in name  # PEFT's untrained copy of the head
    )
    return trainable, total


def _numel(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
