"""The loaders that lesson 11 compares with tf.data, at three kinds of work; `pipelines.py` measures them too.

All of them are optional: requirements-peers.txt. What is installed is found without importing it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from row_loaders import (
    Job,
    by_spdl,
    by_torchvision,
    dali_batches,
    full,
    grain_batches,
    reduced,
    spdl_batches,
    torch_batches,
)
from shard_loaders import litdata_batches, webdataset_batches

from helpers.epochs import Epochs
from helpers.files import usable_cores
from helpers.folders import ImageFiles
from helpers.packing import default_folder, pack
from helpers.pipelines import LazyPipeline

os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it asks a server

WORKS = ("full", "reduced", "packed")  # decode all pixels, decode less (lesson 06), read pixels (lesson 07)


class Loader(LazyPipeline):
    """A pipeline of the course by another loader; its packages are imported when it is loaded or called.

    Parameters
    ----------
    name : str
    work : {"full", "reduced", "packed"}
    make : callable
        ``make(job)`` returns the batches.
    packages : tuple of str
        What must be installed.
    decode : callable, optional
        By default OpenCV.
    """

    def __init__(
        self, name: str, work: str, make: Callable[[Job], Epochs], packages: tuple[str, ...], decode: Callable = full
    ):
        super().__init__(name)
        self.work, self.make, self.packages, self.decode = work, make, packages, decode

    def load(self) -> Callable[..., Iterable]:
        """Import the packages; return the pipeline."""
        for package in self.packages:
            importlib.import_module(package)
        return self.batches

    def batches(self, files: ImageFiles, *, workers: int | None = None, **settings: object) -> Iterable:
        """Return batches (uint8 images, int64 labels); the settings are those of each pipeline of the course."""
        job = Job(files, self.decode, workers=workers or usable_cores(), **settings)
        return self.make(job) if len(files) else job.epochs(iter)

    def missing(self) -> list[str]:
        """Return the packages that are not installed; nothing is imported but what they are part of."""
        return [package for package in self.packages if not is_installed(package)]


def is_installed(package: str) -> bool:
    """Tell whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # not even what it is part of
        return False


def from_pack(make: Callable[[Job], Epochs], job: Job) -> Epochs:
    """Let a loader read the course's pack of the images; the first call writes it."""
    folder = default_folder(job.files, job.image_size, job.channels)
    return make(replace(job, packed=pack(job.files, folder, image_size=job.image_size, channels=job.channels)))


def _loaders() -> Iterable[Loader]:
    processes = partial(grain_batches, processes=True)
    by_number = {  # packages, how it reads, its own decoder and what that needs
        "torch": (("torch",), torch_batches, by_torchvision, ("torchvision",)),
        "grain": (("grain",), grain_batches, full, ()),
        "grain_processes": (("grain",), processes, full, ()),
        "spdl": (("spdl.pipeline",), spdl_batches, by_spdl, ("spdl.io",)),
    }
    for name, (packages, make, decode, more) in by_number.items():
        yield Loader(name, "full", make, (*packages, *more), decode)
        yield Loader(name, "reduced", make, packages, reduced)
        yield Loader(name, "packed", partial(from_pack, make), packages)
    yield Loader("dali", "full", dali_batches, ("nvidia.dali",))  # it cannot decode less
    yield Loader("dali", "packed", partial(from_pack, dali_batches), ("nvidia.dali",))
    shards = {"webdataset": webdataset_batches, "litdata": litdata_batches}
    for name, make in shards.items():
        yield Loader(name, "full", make, (name, "torch"))
        yield Loader(name, "reduced", make, (name, "torch"), reduced)
        yield Loader(name, "packed", partial(make, pixels=True), (name, "torch"))


LOADERS = tuple(_loaders())


def installed(work: str) -> dict[str, Loader]:
    """Return the loaders for one kind of work whose packages are installed: name -> `Loader`."""
    return {loader.__name__: loader for loader in LOADERS if loader.work == work and not loader.missing()}
