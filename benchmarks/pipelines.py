"""Measure the finished tf.data pipelines against what this machine's decoders allow, and against other loaders.

`make bench` runs it; by hand: `python benchmarks/pipelines.py [--rounds 5] [--count 2000]`, on a machine that does
nothing else, about ten minutes. Rates compare within one run only: each round measures everything once, each in a
process of its own, and the figures are medians over the rounds. Nothing depends on them. The other loaders (lesson 11)
are those that are installed: Grain and SPDL always, the rest with requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from other_loaders import LOADERS

from helpers.accelerators import EmulatedAccelerator
from helpers.benchmark.rates import decode_rate, decode_reduced
from helpers.files import tolerant_streams
from helpers.folders import ImageFiles, course_images
from helpers.images import decode_image
from helpers.measure import Trial, measure
from helpers.packed import Packed, hash_of_index
from helpers.packing import default_packs_in, pack
from helpers.pipelines import PIPELINES
from helpers.runs import settled_mib
from helpers.sandbox import ChildResult, run
from helpers.slow_store import slow_store
from helpers.style.feeds import style_tf_data

_SIZE = (224, 224)
_BATCH_SIZE = 64
_MANY = 82_783  # images of COCO train2014
_BATCHES = 60  # of the long lists
_EPOCHS = 20


def main() -> None:
    """Print the figures side by side, each bar with what was reached."""
    tolerant_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="images")
    options = parser.parse_args()
    files = course_images(options.count)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path(__file__).resolve().parents[1] / "data") as folder:
        plain = pack(files, Path(folder) / "plain", image_size=_SIZE)
        larger = pack(files, Path(folder) / "larger", image_size=(256, 256))
        with default_packs_in(folder):
            rates, above_mib = _rates(files, plain, larger, options.rounds)
        _print_rates(rates, above_mib)
        _print_memory(files, plain, Path(folder) / "many")
        _print_utilisation(files, statistics.median(rates["tf_data_fast"]))
    _print_far(files, options.rounds)
    _print_style_feeds(files.take(min(480, len(files))), options.rounds)


# ---- rates -----------------------------------------------------------------------------------------------------------


def _rates(files: ImageFiles, plain: Packed, larger: Packed, rounds: int) -> tuple[dict, dict]:
    """Return images/s of each candidate in each round, and MiB above the start where that is known."""
    candidates: dict[str, Callable] = {
        "pool, full decode": partial(_pool_rate, decode_image),
        "pool, reduced decode": _reduced_pool_rate,
    }
    if _is_installed("simplejpeg"):
        candidates["pool, reduced, simplejpeg"] = partial(_pool_rate, _decode_by_simplejpeg)
    candidates["in-memory cache()"] = partial(_cache_rate, plain)
    pipelines = {
        "tf_data": PIPELINES["tf_data"],
        "tf_data_fast": PIPELINES["tf_data_fast"],
        "tf_data_packed": partial(_from_pack, plain),
        "tf_data_packed, crop and flip": partial(_from_pack, larger, augment=True),
    }
    loaders = {f"{one.__name__}, {one.work}": one for one in LOADERS if not one.missing()}
    rates: dict[str, list[float]] = {name: [] for name in (*candidates, *pipelines, *loaders)}
    above_mib: dict[str, list[float]] = {}

    def note(name: str, result: ChildResult) -> None:
        rate, baseline_mib = result.unwrap()
        rates[name].append(rate)
        above_mib.setdefault(name, []).append(result.peak_mib - baseline_mib)

    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, candidate in candidates.items():
            result = run(candidate, files, timeout=600)
            rates[name].append(result.unwrap())
        for name, pipeline in pipelines.items():
            # A packed epoch lasts some hundredths of a second: long lists of the same rows make it measurable.
            note(name, run(_drained_beside_tensorflow, pipeline, files, 10 if "packed" in name else 1, timeout=600))
        for name, loader in loaders.items():
            note(name, run(_drained, loader, files, 10 if loader.work == "packed" else 1, timeout=600))
    return rates, above_mib


def _drained_beside_tensorflow(pipeline: Callable, files: ImageFiles, epochs: int) -> tuple[float, float]:
    """Do as `_drained`, and count TensorFlow's memory as there before."""
    import tensorflow as tf  # noqa: F401

    return _drained(pipeline, files, epochs)


def _drained(pipeline: Callable, files: ImageFiles, epochs: int) -> tuple[float, float]:
    """Return images/s after the first batch of all epochs, and the memory held before the pipeline was built."""
    pipeline = getattr(pipeline, "load", lambda: pipeline)()
    baseline_mib = settled_mib()
    batches = pipeline(files, image_size=_SIZE, batch_size=_BATCH_SIZE)
    images, seconds = 0, 0.0
    for _ in range(epochs):
        iterator = iter(batches)
        next(iterator)
        started = time.perf_counter()
        images += sum(len(labels) for _, labels in iterator)
        seconds += time.perf_counter() - started
    return images / seconds, baseline_mib


def _from_pack(packed: Packed, files: ImageFiles, *, image_size: tuple, batch_size: int, augment: bool = False):
    from helpers.pipelines.tf_data_packed import packed_batches

    return packed_batches(packed, image_size=image_size, batch_size=batch_size, augment=augment)


def _pool_rate(decode: Callable, files: ImageFiles) -> float:
    decode(Path(files.paths[0]).read_bytes(), files.paths[0])  # it may import something
    return decode_rate(decode, files, _SIZE)


def _reduced_pool_rate(files: ImageFiles) -> float:
    return _pool_rate(decode_reduced(_SIZE), files)


def _decode_by_simplejpeg(data: bytes, path: str) -> np.ndarray:
    import simplejpeg

    least = [int(0.9 * side) for side in _SIZE]  # as `reduction` allows
    return simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])


def _cache_rate(packed: Packed, files: ImageFiles) -> float:
    """Return images/s of tf.data's cache in memory, filled."""
    import tensorflow as tf

    images = packed.read(range(len(packed)))
    dataset = tf.data.Dataset.range(len(packed))
    dataset = dataset.map(lambda row: tf.numpy_function(lambda row: images[row], [row], tf.uint8)).cache()
    dataset = dataset.batch(_BATCH_SIZE).prefetch(2)
    for _ in dataset:
        pass
    started = time.perf_counter()
    for _ in range(5):
        for _ in dataset:
            pass
    return 5 * len(packed) / (time.perf_counter() - started)


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _print_rates(rates: dict, above_mib: dict) -> None:
    full = statistics.median(rates["pool, full decode"])
    print(f"\n{'':34}{'images/s':>10}{'lowest':>10}{'highest':>10}{'of full':>9}{'MiB above the start':>21}")
    for name, found in rates.items():
        middle = statistics.median(found)
        mib = f"{statistics.median(above_mib[name]):,.0f}" if name in above_mib else ""
        print(f"{name:34}{middle:10,.0f}{min(found):10,.0f}{max(found):10,.0f}{middle / full:9.2f}{mib:>21}")
    pools = [name for name in rates if name.startswith("pool, reduced")]
    print()
    _bar("tf_data of the full-decode pool", rates, "tf_data", ["pool, full decode"], 0.88)
    _bar("tf_data_fast of the fastest pool", rates, "tf_data_fast", pools, 0.97)
    if "grain, reduced" in rates:
        _bar("tf_data_fast of Grain", rates, "tf_data_fast", ["grain, reduced"], 1.0)
    _bar("tf_data_packed of the full-decode pool", rates, "tf_data_packed", ["pool, full decode"], 25)
    _bar("the same with crop and flip", rates, "tf_data_packed, crop and flip", ["pool, full decode"], 15)
    for name in ("tf_data_fast", "tf_data_packed"):
        _print_bar(f"{name}: MiB above the start", statistics.median(above_mib[name]), 120, at_most=True)


def _bar(text: str, rates: dict, name: str, others: list[str], least: float) -> None:
    """Print the median over the rounds of the ratio within each round."""
    ratios = [one / max(other) for one, *other in zip(rates[name], *(rates[key] for key in others), strict=True)]
    _print_bar(text, statistics.median(ratios), least)


def _print_bar(text: str, reached: float, bar: float, *, at_most: bool = False) -> None:
    holds = reached <= bar if at_most else reached >= bar
    sign = "at most" if at_most else "at least"
    print(f"{text:42}{reached:10.2f}   {sign} {bar:<6g} {'holds' if holds else 'MISSED'}")


# ---- memory ----------------------------------------------------------------------------------------------------------


def _print_memory(files: ImageFiles, plain: Packed, folder: Path) -> None:
    many_packed = _as_if_many(plain, folder)
    cases = {
        "tf_data_fast": [(PIPELINES["tf_data_fast"], files), (PIPELINES["tf_data_fast"], files.repeat_to(_MANY))],
        "tf_data_packed": [(partial(_from_pack, plain), files), (partial(_from_pack, many_packed), files)],
    }
    for name, (few, many) in cases.items():
        peaks = [_peak_above_mib(*case) for case in (few, many)]
        _print_bar(f"{name}: MiB more for {_MANY:,} files", peaks[1] - peaks[0], 20, at_most=True)
        held = run(_held_after_epochs, *few, timeout=900).unwrap()
        _print_bar(f"{name}: MiB more, epoch 1 to {_EPOCHS}", held[-1] - held[0], 8, at_most=True)


def _peak_above_mib(pipeline: Callable, files: ImageFiles) -> float:
    found = measure(pipeline, files, batches=_BATCHES, batch_size=_BATCH_SIZE, growth=False, repeats=3, name="memory")
    return found.memory.peak_mib - found.memory.baseline_mib


def _held_after_epochs(pipeline: Callable, files: ImageFiles) -> list[float]:
    pipeline = getattr(pipeline, "load", lambda: pipeline)()
    batches = pipeline(files, image_size=_SIZE, batch_size=_BATCH_SIZE)
    held = []
    for _ in range(_EPOCHS):
        for _batch in batches:
            pass
        held.append(settled_mib())
    return held


def _as_if_many(packed: Packed, folder: Path) -> Packed:
    """Return a pack that names the shards of another again and again: as many rows as COCO, and no more disk."""
    times = -(-_MANY // len(packed))
    shutil.copytree(packed.folder, folder, copy_function=os.link)
    for name in ("index.json", "labels.npy"):
        (folder / name).unlink()
    settings = {**packed.settings, "rows": times * len(packed), "shards": times * packed.settings["shards"]}
    settings["sha256"] = hash_of_index(settings)
    (folder / "index.json").write_text(json.dumps(settings))
    np.save(folder / "labels.npy", np.tile(packed.labels, times))
    return Packed(folder)


# ---- the accelerator -------------------------------------------------------------------------------------------------


def _print_utilisation(files: ImageFiles, fast_images_per_s: float) -> None:
    accelerator = EmulatedAccelerator(0.9 * fast_images_per_s)
    for name, least in (("tf_data_fast", 95), ("generator", 0)):
        found = measure(
            PIPELINES[name], files, accelerator=accelerator, batch_size=_BATCH_SIZE, growth=False, repeats=3
        )
        text = f"{name}: accelerator at 90 % busy, %"
        if least:
            _print_bar(text, found.training.utilisation_percent, least)
        else:
            print(f"{text:42}{found.training.utilisation_percent:10.2f}   beside it")


def _print_far(files: ImageFiles, rounds: int) -> None:
    """Read the images from a store 50 ms away, beside the same store without latency: both work on the same cores."""
    root = os.path.commonpath([os.path.dirname(path) for path in files.paths])
    with slow_store(root) as store:
        paths = [store.address(os.path.relpath(path, root)) for path in files.paths]
        far = ImageFiles(tuple(paths), files.labels, files.class_names)
        for name in ("tf_data", "tf_data_fast", "keras_sequence"):
            pipeline = partial(PIPELINES[name], in_flight=48)  # 700 images/s × 0.05 s, and a third more
            trials = {latency_ms: Trial(pipeline, far, name=name) for latency_ms in (0, 50)}
            for _ in range(rounds):
                for latency_ms, trial in trials.items():
                    store.set(latency_ms=latency_ms)
                    trial.run()
            near, away = (trial.measurement() for trial in trials.values())
            ratio = away.alone.images_per_s / near.alone.images_per_s
            _print_bar(f"{name}: 50 ms away / no latency", ratio, 0.9 if name == "tf_data" else 0)
            here = measure(PIPELINES[name], files, growth=False, repeats=rounds, name=name)
            more_mib = away.memory.own_mib - here.memory.own_mib
            _print_bar(f"{name}: MiB more than from the disk", more_mib, 150, at_most=True)


def _print_style_feeds(files: ImageFiles, rounds: int) -> None:
    """Lesson 10's feeds as its training would ask for them at full size: batches of 4 at 256×256."""
    feeds = {"style_tf_data, 1 thread": partial(style_tf_data, threads=1), "style_tf_data": style_tf_data}
    trials = [Trial(feed, files, image_size=(256, 256), batch_size=4, name=name) for name, feed in feeds.items()]
    for _ in range(rounds):
        for trial in trials:
            trial.run()
    print(f"\n{'':34}{'images/s':>10}{'lowest':>10}{'highest':>10}{'of 1 thread':>13}{'MiB':>7}")
    rows = [trial.measurement() for trial in trials]
    for row in rows:
        rate, runs = row.alone.images_per_s, row.alone.runs_images_per_s
        share, peak_mib = rate / rows[0].alone.images_per_s, row.memory.peak_mib
        print(f"{row.name:34}{rate:10,.0f}{min(runs):10,.0f}{max(runs):10,.0f}{share:13.2f}{peak_mib:7,.0f}")


if __name__ == "__main__":
    main()
