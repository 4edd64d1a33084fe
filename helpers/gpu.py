"""What NVML, the library of NVIDIA's driver, says of a GPU."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["GpuSampler", "gpus"]

_SAMPLE_S = 0.05


@contextmanager
def _nvml():
    """Yield the NVML module, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        _told(pynvml, pynvml.nvmlShutdown)


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs in this machine; an empty list where there is none."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        count = _told(nvml, nvml.nvmlDeviceGetCount) or 0
        names = [
            _told(nvml, lambda i=i: nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i))) for i in range(count)
        ]
    return ["unknown GPU" if name is None else name for name in names]


def _told(nvml: ModuleType, read: Callable) -> Any:
    """Return what the driver tells, or None where it refuses."""
    try:
        return read()
    except nvml.NVMLError:
        return None


class GpuSampler:
    """Samples NVML in a thread while the `with` block runs.

    Attributes
    ----------
    busy_percent : float or None
        Mean share of time in which at least one kernel ran, in per cent: says nothing of how full the GPU was.
    sm_percent : float or None
        Mean share of the GPU's multiprocessors that had work, in per cent, over the whole block: how full it was. Cards
        from Hopper on tell it.
    peak_mib : float or None
        Largest GPU memory in use by all programs, in MiB. TensorFlow and JAX reserve most of a GPU at their start:
        `accelerators.framework_gpu_peak_mib` says what they use of it.

    All are None, not zero, where there is no GPU, CUDA_VISIBLE_DEVICES hides it, or it does not tell.
    """

    def __init__(self, index: int = 0):
        self._index = index
        self._busy: list[float] = []
        self._used_mib: list[float] = []
        self.sm_percent: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> GpuSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    @property
    def busy_percent(self) -> float | None:
        return float(np.mean(self._busy)) if self._busy else None

    @property
    def peak_mib(self) -> float | None:
        return max(self._used_mib) if self._used_mib else None

    def _sample(self) -> None:
        with _nvml() as nvml:
            handle = None if nvml is None else _told(nvml, lambda: _visible_gpu(nvml, self._index))
            if handle is None:
                return
            before = _told(nvml, lambda: _gpm_sample(nvml, handle))
            self._sample_until_stopped(nvml, handle)
            if before is not None:
                self.sm_percent = _told(nvml, lambda: _sm_percent(nvml, handle, before))

    def _sample_until_stopped(self, nvml: ModuleType, handle: object) -> None:
        while True:
            # A GPU may refuse one figure and give the other (a partitioned one has no utilisation).
            busy = _told(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            used = _told(nvml, lambda: _used_bytes(nvml, handle))
            if busy is not None:
                self._busy.append(busy)
            if used is not None:
                self._used_mib.append(used / 2**20)
            if self._stop.wait(_SAMPLE_S):
                return


def _gpm_sample(nvml: ModuleType, handle: object) -> object | None:
    """Return what the GPU has counted until now, or None where it does not count."""
    if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
        return None
    return nvml.nvmlGpmSampleGet(handle, nvml.nvmlGpmSampleAlloc())


def _sm_percent(nvml: ModuleType, handle: object, before: object) -> float | None:
    """Return the mean share of busy multiprocessors since a sample (NVML API Reference, "GPM Functions")."""
    query = nvml.c_nvmlGpmMetricsGet_t()
    query.version, query.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
    query.sample1, query.sample2 = before, _gpm_sample(nvml, handle)
    query.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
    metric = nvml.nvmlGpmMetricsGet(query).metrics[0]
    nvml.nvmlGpmSampleFree(query.sample1)
    nvml.nvmlGpmSampleFree(query.sample2)
    return float(metric.value) if metric.nvmlReturn == nvml.NVML_SUCCESS and math.isfinite(metric.value) else None


def _used_bytes(nvml: ModuleType, handle: object) -> int:
    """Return the GPU memory in use; the first version of NVML's call counts what the driver reserves for itself too."""
    used = _told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used)
    return nvml.nvmlDeviceGetMemoryInfo(handle).used if used is None else used


def _visible_gpu(nvml: ModuleType, index: int) -> object | None:
    """Return NVML's handle of the framework's GPU number ``index``: NVML does not heed CUDA_VISIBLE_DEVICES.

    The variable lists GPUs by number or by UUID, and ends at the first entry that is neither, such as -1 (CUDA C
    Programming Guide, "CUDA Environment Variables"). NVML numbers GPUs as CUDA does under CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    entries = [entry.strip() for entry in visible.split(",")]
    known = list(itertools.takewhile(lambda entry: entry.isdecimal() or entry.startswith(("GPU-", "MIG-")), entries))
    if index >= len(known):
        return None
    if known[index].isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(known[index]))
    return nvml.nvmlDeviceGetHandleByUUID(known[index])
