"""The course's pipeline by loaders that ask for images by number: PyTorch's DataLoader, Grain, SPDL and DALI.

`other_loaders` lists them with the packages that each needs; so a package is imported where it is used. All read what a
`Job` says, and return what can be looped over, one epoch at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np

from helpers.epochs import Epochs, end_reading_at_exit, reading
from helpers.folders import ImageFiles
from helpers.images import decode_image, jpeg_size, read_file, reduction
from helpers.packed import Packed

Batch = tuple[np.ndarray, np.ndarray]


def one_thread(*_worker: int) -> None:
    """Let OpenCV use one thread: the images are read side by side already."""
    cv2.setNumThreads(1)


# ---- decoders: (bytes, name, image_size, channels) -> uint8, shape (height, width, channels) -------------------------


def full(data: bytes, path: str, image_size: tuple[int, int], channels: int) -> np.ndarray:
    """Decode all pixels, by OpenCV."""
    return decode_image(data, path, image_size=image_size, channels=channels)


def reduced(data: bytes, path: str, image_size: tuple[int, int], channels: int) -> np.ndarray:
    """Decode at 1/2, 1/4 or 1/8, by OpenCV, as lesson 06 does."""
    small = decode_image(data, path, channels=channels, reduce=reduction(jpeg_size(data), image_size))
    image = cv2.resize(small, image_size[::-1], interpolation=cv2.INTER_LINEAR)
    return image.reshape(*image_size, channels)


def by_torchvision(data: bytes, path: str, image_size: tuple[int, int], channels: int) -> np.ndarray:
    """Decode all pixels, by torchvision."""
    import torch
    from torchvision.io import decode_image
    from torchvision.transforms.v2.functional import resize

    image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB" if channels == 3 else "GRAY")
    return resize(image, list(image_size), antialias=False).permute(1, 2, 0).numpy()


def by_spdl(data: bytes, path: str, image_size: tuple[int, int], channels: int) -> np.ndarray:
    """Decode all pixels, by the FFmpeg that comes with SPDL."""
    import spdl.io

    pixels = "rgb24" if channels == 3 else "gray"
    scale = f"scale=w={image_size[1]}:h={image_size[0]}:flags=bilinear,format=pix_fmts={pixels}"
    strict = spdl.io.decode_config(decoder_options={"err_detect": "explode"})  # else half an image is no error
    image = spdl.io.to_numpy(spdl.io.load_image(data, filter_desc=scale, decode_config=strict))
    return image.reshape(*image_size, channels)


# ---- what is read, and in which order --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A data set by number, as PyTorch asks for it, and the order of each epoch.

    Attributes
    ----------
    decode : callable
        One of the decoders above.
    workers : int
        Threads or processes.
    packed : Packed or None
        Read instead of the files.
    """

    files: ImageFiles
    decode: Callable[..., np.ndarray] = full
    image_size: tuple[int, int] = (224, 224)
    batch_size: int = 32
    shuffle: bool = True
    seed: int = 0
    channels: int = 3
    workers: int = 2
    packed: Packed | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return images and labels of these rows; an error names the file."""
        rows = np.asarray(rows)
        if self.packed is not None:
            return self.packed.read(rows), self.packed.labels[rows]
        images = np.empty((len(rows), *self.image_size, self.channels), np.uint8)
        for row, image in zip(rows, images, strict=True):
            image[...] = self.image(self.files.paths[row])
        return images, self.files.labels[rows]

    def image(self, path: str, data: bytes | None = None) -> np.ndarray:
        """Return the image in a file, or in its bytes."""
        try:
            with reading():
                return self.decode(read_file(path) if data is None else data, path, self.image_size, self.channels)
        except Exception as error:
            error.add_note(f"while reading {path}")  # some decoders see bytes only
            raise

    def epoch_seed(self, number: int) -> int:
        """Return a seed of 31 bits for epoch `number`."""
        return int(np.random.default_rng((self.seed, number)).integers(2**31))

    def rows_of_batches(self, number: int) -> list[np.ndarray]:
        """Return the rows of each batch of epoch `number`."""
        rows, rng = np.arange(len(self)), np.random.default_rng((self.seed, number))
        if self.shuffle:
            rng.shuffle(rows)
        return np.split(rows, range(self.batch_size, len(self), self.batch_size))

    def epochs(self, epoch: Callable[[int], Iterator[Batch]]) -> Epochs:
        """Return what can be looped over: epoch 0, then epoch 1, and so on."""
        end_reading_at_exit()  # threads that still read must not hold up the end of the program
        return Epochs(epoch, len(self), self.batch_size)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def start_method() -> multiprocessing.context.BaseContext | None:
    """Return how PyTorch's workers start: None is the system's default.

    A fork copies TensorFlow's locks but not the threads that hold them (lesson 03). Where TensorFlow is loaded, workers
    are forked from a clean process that has imported PyTorch once.
    """
    if "tensorflow" not in sys.modules or not hasattr(os, "fork"):
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    return context


def as_tensors(batch: Batch) -> list:
    """Return a batch as tensors: these come back through shared memory, arrays through a pipe."""
    import torch

    return [torch.from_numpy(part) for part in batch]


def torch_batches(job: Job) -> Epochs:
    """Read in worker processes, which live as long as the loader does."""
    import torch
    from torch.utils.data import DataLoader

    order = torch.Generator()
    loader = DataLoader(
        job,
        job.batch_size,
        shuffle=job.shuffle,
        generator=order,
        collate_fn=as_tensors,
        num_workers=job.workers,
        persistent_workers=True,
        worker_init_fn=one_thread,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=start_method(),
    )

    def epoch(number: int) -> Iterator[Batch]:
        order.manual_seed(job.epoch_seed(number))
        for images, labels in loader:
            yield images.numpy(), labels.numpy()

    return job.epochs(epoch)


# ---- Grain and SPDL --------------------------------------------------------------------------------------------------


def grain_batches(job: Job, *, processes: bool = False) -> Epochs:
    """Read in threads, or in processes that start with each epoch."""
    import grain

    one_thread()
    threads = grain.ReadOptions(num_threads=job.workers, prefetch_buffer_size=2 * job.workers)
    alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)

    def epoch(number: int) -> Iterator[Batch]:
        rows = grain.MapDataset.range(len(job))
        if job.shuffle:
            rows = rows.shuffle(seed=job.epoch_seed(number))
        batches = rows.batch(job.batch_size).map(job.__getitems__)
        if processes:
            workers = grain.MultiprocessingOptions(num_workers=job.workers)
            batches = batches.to_iter_dataset(alone).mp_prefetch(workers, worker_init_fn=one_thread)
        else:
            batches = batches.to_iter_dataset(threads)
        with closing(iter(batches)) as iterator:
            yield from iterator

    return job.epochs(epoch)


def spdl_batches(job: Job) -> Epochs:
    """Read in threads, in the order of the rows; the first failure is one too many."""
    from spdl.pipeline import PipelineBuilder

    one_thread()

    def epoch(number: int) -> Iterator[Batch]:
        chain = PipelineBuilder().add_source(job.rows_of_batches(number))
        chain = chain.pipe(job.__getitems__, concurrency=job.workers, output_order="input").add_sink(2)
        chain = chain.build(num_threads=job.workers, max_failures=0)
        with chain.auto_stop():
            yield from chain.get_iterator()

    return job.epochs(epoch)


# ---- DALI ------------------------------------------------------------------------------------------------------------


class EpochSource:
    """What DALI's graph asks for its input: each pass gives the batches of the epoch that `number` says."""

    def __init__(self, job: Job):
        self.job, self.number = job, 0

    def __iter__(self) -> Iterator[tuple]:
        paths = self.job.files.paths
        for rows in self.job.rows_of_batches(self.number):
            if self.job.packed is not None:
                yield self.job.__getitems__(rows)
            else:
                names = [np.frombuffer(os.fsencode(paths[row]), np.uint8) for row in rows]
                yield names, self.job.files.labels[rows]


def dali_graph(job: Job, source: EpochSource):
    """Return DALI's graph, not built yet: read, decode and resize, or only pass on what a pack holds."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=job.batch_size, num_threads=job.workers, device_id=None)
    def graph():
        item, label = fn.external_source(source, num_outputs=2, cycle="raise")
        if job.packed is not None:
            return item, label
        colours = types.RGB if job.channels == 3 else types.GRAY
        image = fn.decoders.image(fn.io.file.read(item), output_type=colours, adjust_orientation=False)
        return fn.resize(image, size=job.image_size, antialias=False), label

    return graph()


def dali_batches(job: Job) -> Epochs:
    """Run a graph on the CPU that is built once; the last batch of an epoch is a partial one."""
    source, ready = EpochSource(job), []

    def epoch(number: int) -> Iterator[Batch]:
        source.number = number
        graph, batches = ready.pop() if ready else dali_graph(job, source), job.rows_of_batches(number)
        for at in range(len(batches)):
            try:
                images, labels = graph.run()
            except RuntimeError:
                for row in np.concatenate(batches[at : at + 4]):  # it reads ahead, and does not name the file
                    job.image(job.files.paths[row])
                raise
            yield images.as_array(), labels.as_array()
        try:
            graph.run()
        except StopIteration:  # so DALI says that the epoch is over
            graph.reset()
            ready.append(graph)  # an epoch that is stopped early leaves its graph to the garbage collector

    return job.epochs(epoch)
