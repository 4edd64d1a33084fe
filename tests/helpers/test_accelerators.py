"""Accelerators do a step and say who they are; GPU figures are NVML's, or None where there is no GPU."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from helpers.accelerators import (
    MODELS,
    EmulatedAccelerator,
    KerasAccelerator,
    ceiling,
    name_of,
    resident_batch,
    small_cnn,
)
from helpers.sandbox import run

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a child process need not import pytest

ROOT = Path(__file__).resolve().parents[2]


# ---- the emulated accelerator ----------------------------------------------------------------------------------------


def test_the_emulated_accelerator_says_that_it_is_emulated():
    assert EmulatedAccelerator(2500).label == "emulated, 2,500 images/s"
    assert EmulatedAccelerator(0.5).label == "emulated, 0.5 images/s"
    assert EmulatedAccelerator(2500).kind == "emulated"


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_must_be_above_zero(rate):
    with pytest.raises(ValueError, match="give a rate above zero"):
        EmulatedAccelerator(rate)


def test_the_emulated_step_lasts_as_long_as_its_rate_says_and_uses_no_cpu():
    step = EmulatedAccelerator(100).prepare((8, 8), 3, 10, [20])
    images, labels = resident_batch(20, (8, 8), 3, 10)
    wall, cpu = time.perf_counter(), time.thread_time()
    step(images, labels)
    assert time.perf_counter() - wall >= 0.2
    assert time.thread_time() - cpu < 0.1


def test_a_partial_batch_takes_its_share(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    step = EmulatedAccelerator(100).prepare((8, 8), 3, 10, [20, 5])
    step(*resident_batch(20, (8, 8), 3, 10))
    step(*resident_batch(5, (8, 8), 3, 10))
    assert slept == [0.2, 0.05]


def test_the_ceiling_is_the_median_rate():
    slept = iter([0.3, 0.3, 0.01, 0.01, 0.01, 0.01])  # the first step is not counted, the second is a pause

    def step(images, labels):
        time.sleep(next(slept))

    rate = ceiling(step, None, np.zeros(2), seconds=0, min_steps=5)
    assert 2 / 0.3 < rate <= 2 / 0.01


def test_a_resident_batch_is_like_a_pipelines():
    images, labels = resident_batch(5, (20, 30), 1, 3)
    assert (images.shape, images.dtype) == ((5, 20, 30, 1), np.uint8)
    assert (labels.shape, labels.dtype) == ((5,), np.int64)
    assert labels.max() < 3


# ---- a Keras model ---------------------------------------------------------------------------------------------------


def test_names():
    assert KerasAccelerator().label == "small_cnn"
    assert name_of(functools.partial(functools.partial(small_cnn), channels=3)) == "small_cnn"
    assert KerasAccelerator(functools.partial(small_cnn)).label == "small_cnn"
    assert name_of(EmulatedAccelerator(1)) == "EmulatedAccelerator"


def train_a_little():
    import keras

    from helpers.accelerators import framework_gpu_peak_mib, keras_device, to_device

    built = []

    def build(image_size, channels, class_count):
        built.append(small_cnn(image_size, channels, class_count))
        return built[-1]

    accelerator = KerasAccelerator(build)
    step = accelerator.prepare((32, 48), 3, 4, [6, 2])
    model = built[0]
    before = [np.array(weight) for weight in model.trainable_weights]
    step(*resident_batch(6, (32, 48), 3, 4))
    step(*to_device(*resident_batch(2, (32, 48), 3, 4), accelerator))
    after = [np.array(weight) for weight in model.trainable_weights]
    KerasAccelerator(build, precision="mixed_bfloat16").prepare((32, 48), 3, 4, [2])
    return {
        "precision": (model.layers[1].compute_dtype, built[1].layers[1].compute_dtype),
        "precision afterwards": keras.config.dtype_policy().name,
        "learned": any((b != a).any() for b, a in zip(before, after, strict=True)),
        "output": tuple(model(np.zeros((2, 32, 48, 3), np.uint8)).shape),
        "input": (keras.backend.standardize_dtype(model.inputs[0].dtype), tuple(model.inputs[0].shape)),
        "device": keras_device(),
        "gpu_peak_mib": framework_gpu_peak_mib(),
    }


def test_keras_trains_on_batches_of_both_sizes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = run(train_a_little, timeout=120).unwrap()
    assert found["learned"]
    assert found["precision"] == ("float32", "bfloat16")
    assert found["precision afterwards"] == "float32"
    assert found["output"] == (2, 4)
    assert found["input"] == ("uint8", (None, 32, 48, 3))
    assert found["device"] == "cpu:0"
    assert found["gpu_peak_mib"] is None


def train_mixed():
    import keras

    built = []

    def build(*shape):
        built.append(MODELS["mobilenet_v2"](*shape))
        return built[-1]

    accelerator = KerasAccelerator(build, precision="mixed_bfloat16")
    step = accelerator.prepare((32, 32), 3, 4, [4])
    step(*resident_batch(4, (32, 32), 3, 4))
    probabilities = built[0].predict(resident_batch(4, (32, 32), 3, 4)[0], verbose=0)
    outer = built[0].layers[2]
    return probabilities, str(outer.layers[1].compute_dtype), built[0].output.dtype, keras.config.dtype_policy().name


@pytest.mark.slow  # it takes 20 s; the test above sees the policy set and reset
def test_mixed_precision_computes_in_bfloat16_and_ends_in_float32():
    probabilities, inner, output, afterwards = run(train_mixed, timeout=120).unwrap()
    assert (inner, output, afterwards) == ("bfloat16", "float32", "float32")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert probabilities.dtype == np.float32


def count_weights():
    return {name: build((224, 224), 3, 1000).count_params() for name, build in MODELS.items() if name != "small_cnn"}


@pytest.mark.slow  # a change would be a change in Keras
def test_the_models_are_those_of_the_papers():
    assert run(count_weights, timeout=120).unwrap() == {
        "resnet50": 25_636_712,
        "vgg16": 138_357_544,
        "mobilenet_v2": 3_538_984,
    }


def test_a_label_tells_model_and_precision():
    assert KerasAccelerator(precision="mixed_bfloat16").label == "small_cnn, mixed_bfloat16"
    assert [KerasAccelerator(build).label for build in MODELS.values()] == [*MODELS]


# ---- NVML ------------------------------------------------------------------------------------------------------------

FAKE_NVML = r"""
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#ifndef GPUS
#define GPUS 2
#endif
enum {OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, NO_DRIVER = 9, LOST = 15};
typedef struct {unsigned gpu, memory;} utilisation;
typedef struct {unsigned long long total, free, used;} memory;
typedef struct {unsigned version; unsigned long long total, reserved, free, used;} memory_v2;
static size_t handles[GPUS];
static int calls;
static int number(void *handle) {return (int)((size_t *)handle - handles);}
#ifdef WITHOUT_DRIVER
int nvmlInitWithFlags(unsigned flags) {return NO_DRIVER;}
#else
int nvmlInitWithFlags(unsigned flags) {return OK;}
#endif
int nvmlInit_v2(void) {return nvmlInitWithFlags(0);}
int nvmlShutdown(void) {return OK;}
int nvmlDeviceGetCount_v2(unsigned *count) {*count = GPUS; return OK;}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
#ifdef LOST_GPU
    if (index == LOST_GPU) return LOST;
#endif
    if (index >= GPUS) return INVALID;
    *handle = &handles[index];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (strcmp(uuid, "GPU-second")) return NOT_FOUND;
    *handle = &handles[1];
    return OK;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    snprintf(name, length, "Fake GPU %d", number(handle));
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *handle, utilisation *rates) {
#ifdef NO_UTILISATION
    return NOT_SUPPORTED;
#endif
    rates->gpu = number(handle) ? 90 : 40;
    return OK;
}
static unsigned long long used(void *handle) {
    calls++;
    return (unsigned long long)(number(handle) ? 3000 : calls == 2 ? 2048 : 1024) << 20;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory *info) {
    info->used = used(handle) + (512ull << 20);
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *info) {info->used = used(handle); return OK;}
#endif
#ifndef NO_GPM
typedef struct {unsigned version, supported;} gpm_support;
typedef struct {unsigned id, code; double value; char *names[3];} gpm_metric;
typedef struct {unsigned version, count; int *first, *second; gpm_metric metrics[333];} gpm_query;
static int taken[16], samples, moment;
int nvmlGpmQueryDeviceSupport(void *handle, gpm_support *support) {support->supported = 1; return OK;}
int nvmlGpmSampleAlloc(int **sample) {*sample = &taken[samples++]; return OK;}
int nvmlGpmSampleGet(void *handle, int *sample) {*sample = ++moment; return OK;}
int nvmlGpmSampleFree(int *sample) {return *sample ? OK : INVALID;}
int nvmlGpmMetricsGet(gpm_query *query) {
    if (query->version != 1 || query->count != 1 || query->metrics[0].id != 2) return INVALID;
    query->metrics[0].code = OK;
    query->metrics[0].value = *query->second - *query->first == 1 ? 62.5 : -1;
    return OK;
}
#endif
const char *nvmlErrorString(int code) {return "fake";}
"""

READ_GPUS = """
import json, time
from helpers.gpu import gpus, sampled_gpu
with sampled_gpu() as figures:
    time.sleep(0.4)
print(json.dumps([gpus(), *map(figures.get, ("busy_percent", "sm_percent", "peak_mib"))]))
"""


@pytest.fixture
def nvml(tmp_path):
    """Return a function that builds a driver library with `options` and asks our code, in a process of its own."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler, to build a library that answers as a GPU's driver would")
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(FAKE_NVML)

    def ask(*options, program=READ_GPUS, **environment):
        subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, source], check=True)
        return ask_with(tmp_path, program, **environment)

    return ask


def ask_with(library_folder, program, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**inherited, "LD_LIBRARY_PATH": str(library_folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_gpu_figures_are_those_of_nvml(nvml):
    assert nvml() == [["Fake GPU 0", "Fake GPU 1"], 40, 62.5, 2048]


def test_an_older_driver(nvml):
    assert nvml("-DOLD_DRIVER") == [["Fake GPU 0", "Fake GPU 1"], 40, 62.5, 2048 + 512]


def test_a_gpu_that_does_not_tell_how_busy_it_is(nvml):
    assert nvml("-DNO_UTILISATION") == [["Fake GPU 0", "Fake GPU 1"], None, 62.5, 2048]


def test_a_gpu_before_hopper(nvml):
    assert nvml("-DNO_GPM") == [["Fake GPU 0", "Fake GPU 1"], 40, None, 2048]


def test_a_gpu_that_does_not_answer(nvml):
    assert nvml("-DLOST_GPU=0") == [["unknown GPU", "Fake GPU 1"], None, None, None]


def test_a_driver_that_does_not_start(nvml):
    assert nvml("-DWITHOUT_DRIVER") == [[], None, None, None]


@pytest.mark.parametrize(
    ("visible", "busy", "peak_mib"),
    [("1", 90, 3000), ("GPU-second", 90, 3000), ("0,1", 40, 2048), ("", None, None), ("-1", None, None)],
)
def test_the_gpu_that_the_framework_sees_is_sampled(nvml, visible, busy, peak_mib):
    sm = None if busy is None else 62.5
    assert nvml(CUDA_VISIBLE_DEVICES=visible)[1:] == [busy, sm, peak_mib]


@pytest.mark.parametrize("visible", ["7", "GPU-unknown", "nonsense", "-1,0"])
def test_a_gpu_that_is_not_there_has_no_figures(nvml, visible):
    assert nvml(CUDA_VISIBLE_DEVICES=visible)[1:] == [None, None, None]


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's search path is Linux's")
def test_without_a_library_there_are_no_gpus(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").touch()  # found first, and no library: hides a real one
    assert ask_with(tmp_path, READ_GPUS) == [[], None, None, None]


MEASURE_ON_A_GPU = """
import json, sys
import numpy as np
from helpers.accelerators import EmulatedAccelerator
from helpers.folders import ImageFiles
from helpers.measure import measure

def zeros(files, *, image_size, batch_size):
    for start in range(0, len(files), batch_size):
        yield np.zeros((batch_size, *image_size, 3), np.uint8), files.labels[start:start + batch_size]

files = ImageFiles(("none.jpg",) * 80, [0] * 80, ("x",))
m = measure(zeros, files, accelerator=EmulatedAccelerator(200), image_size=(8, 8), batch_size=8, growth=False)
gpu = m.gpu
print(json.dumps([m.context.machine.gpus, gpu.busy_percent, gpu.sm_percent, gpu.peak_mib, gpu.framework_peak_mib]))
"""


def test_a_measurement_holds_the_gpus_figures(nvml):
    assert nvml(program=MEASURE_ON_A_GPU) == [["Fake GPU 0", "Fake GPU 1"], 40, 62.5, 2048, None]


def test_a_measurement_without_a_gpu_says_none_and_not_zero(nvml):
    assert nvml("-DWITHOUT_DRIVER", program=MEASURE_ON_A_GPU) == [[], None, None, None, None]


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_importing_helpers_imports_no_framework():
    program = """
import sys, helpers, helpers.contract, helpers.measure, helpers.pipelines
print(sorted({"tensorflow", "keras", "jax", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
