"""What NVML, the library of NVIDIA's driver, says of a GPU."""

from __future__ import annotations

import math
import os
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

__all__ = ["gpus", "sampled_gpu"]

_SAMPLE_S = 0.05


@contextmanager
def _driver() -> Iterator[bool]:
    """Yield whether there is an NVIDIA driver that answers."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        _ask(pynvml.nvmlShutdown)


def _ask(function: Callable, *arguments: Any) -> Any:
    """Return what the driver answers, or None where it refuses."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs in this machine; an empty list where there is none."""
    with _driver() as is_there:
        count = (is_there and _ask(pynvml.nvmlDeviceGetCount)) or 0
        handles = [_ask(pynvml.nvmlDeviceGetHandleByIndex, number) for number in range(count)]
        return [(gpu and _ask(pynvml.nvmlDeviceGetName, gpu)) or "unknown GPU" for gpu in handles]


@contextmanager
def sampled_gpu() -> Iterator[dict[str, float | None]]:
    """Sample the GPU that the framework uses while the `with` block runs; after it, the dict yielded has the figures.

    busy_percent : float
        Mean share of time in which at least one kernel ran, in per cent: says nothing of how full the GPU was.
    sm_percent : float
        Mean share of the GPU's multiprocessors that had work, in per cent: how full it was. Known from Hopper on.
    peak_mib : float
        Largest GPU memory in use by all programs, in MiB. TensorFlow reserves most of a GPU at its start:
        `accelerators.framework_gpu_peak_mib` says what it uses of that.

    A figure is None, or missing, where there is no GPU, CUDA_VISIBLE_DEVICES hides it, or it does not tell.
    """
    figures: dict[str, float | None] = {}
    stop = threading.Event()
    sampling = threading.Thread(target=_sample, args=(stop, figures), daemon=True)
    sampling.start()
    try:
        yield figures
    finally:
        stop.set()
        sampling.join(timeout=5)


def _sample(stop: threading.Event, figures: dict[str, float | None]) -> None:
    with _driver() as is_there:
        if not is_there or (gpu := _ask(_visible_gpu)) is None:
            return
        start = _ask(_gpm_sample, gpu)
        samples = []
        while not samples or not stop.wait(_SAMPLE_S):
            # A GPU may refuse one figure and give the other (a partitioned one has no utilisation).
            samples.append((_ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu), _ask(_used_bytes, gpu)))
        busy, used = ([figure for figure in column if figure is not None] for column in zip(*samples, strict=True))
        figures["busy_percent"] = statistics.fmean(busy) if busy else None
        figures["peak_mib"] = max(used) / 2**20 if used else None
        figures["sm_percent"] = None if start is None else _ask(_sm_percent, gpu, start)


def _used_bytes(gpu: object) -> int:
    """Return the GPU memory in use; the first version of NVML's call counts what the driver reserves for itself too."""
    current = _ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2))
    return (current or pynvml.nvmlDeviceGetMemoryInfo(gpu)).used


def _gpm_sample(gpu: object) -> object | None:
    """Return what the GPU has counted until now, or None where it does not count."""
    if not pynvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice:
        return None
    return pynvml.nvmlGpmSampleGet(gpu, pynvml.nvmlGpmSampleAlloc())


def _sm_percent(gpu: object, start: object) -> float | None:
    """Return the mean share of busy multiprocessors since a sample (NVML API Reference, "GPM Functions")."""
    query = pynvml.c_nvmlGpmMetricsGet_t()
    query.version, query.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1
    query.sample1, query.sample2 = start, _gpm_sample(gpu)
    query.metrics[0].metricId = pynvml.NVML_GPM_METRIC_SM_UTIL
    metric = pynvml.nvmlGpmMetricsGet(query).metrics[0]
    for sample in (query.sample1, query.sample2):
        pynvml.nvmlGpmSampleFree(sample)
    return float(metric.value) if metric.nvmlReturn == pynvml.NVML_SUCCESS and math.isfinite(metric.value) else None


def _visible_gpu() -> object | None:
    """Return NVML's handle of the framework's first GPU: NVML does not heed CUDA_VISIBLE_DEVICES.

    The variable lists GPUs by number or by UUID, and ends at the first entry that is neither, such as -1 (CUDA C
    Programming Guide, "CUDA Environment Variables"). NVML numbers GPUs as CUDA does under CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first) if first.startswith(("GPU-", "MIG-")) else None
