"""The course's pipeline by loaders that read shards, each from its beginning to its end: WebDataset and LitData.

The shards hold the files as they are, or pixels, in a shuffled order; they are written once, beside the pack of the
same images. `other_loaders` lists the loaders, `row_loaders` says what a `Job` is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from row_loaders import Batch, Job, one_thread, start_method

from helpers.epochs import Epochs
from helpers.files import locked
from helpers.images import read_file
from helpers.packing import default_folder

ROWS_PER_TAR = 250


def samples(job: Job, *, pixels: bool) -> Iterator[dict]:
    """Yield what the shards hold of each row, in the order of the first epoch."""
    for row in np.concatenate(job.rows_of_batches(0)).tolist():
        path = job.files.paths[row]
        data = job.image(path).tobytes() if pixels else read_file(path)
        yield {"data": data, "path": os.fsencode(path), "label": int(job.files.labels[row])}


def image_and_label(sample: dict, *, job: Job, pixels: bool) -> tuple[np.ndarray, int]:
    """Return image and label of what a shard holds of a row."""
    data = bytes(sample["data"])
    if pixels:
        image = np.frombuffer(data, np.uint8).reshape(*job.image_size, job.channels)
    else:
        image = job.image(os.fsdecode(bytes(sample["path"])), data)
    return image, int(sample["label"])


def as_batch(pairs: list[tuple]) -> list:
    """Return single images and labels as one batch of tensors."""
    import torch

    images, labels = zip(*pairs, strict=True)
    return [torch.from_numpy(np.stack([np.asarray(image) for image in images])), torch.tensor([*map(int, labels)])]


def shards(job: Job, kind: str, write: Callable[[Path, Iterator[dict]], None], *, pixels: bool) -> Path:
    """Return the folder of a job's shards; the first call writes them."""
    beside = default_folder(job.files, job.image_size, job.channels)
    order = f"seed-{job.seed}" if job.shuffle else "in-order"
    folder = beside.with_name(f"{beside.name}-{kind}-{'pixels' if pixels else 'files'}-{order}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), f"{folder}: another process writes it", wait_s=600):
        if not folder.exists():
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write(unfinished, samples(job, pixels=pixels))
            unfinished.rename(folder)
    return folder


# ---- WebDataset ------------------------------------------------------------------------------------------------------


def write_tars(folder: Path, samples: Iterator[dict]) -> None:
    """Write tar files, as WebDataset reads them."""
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=ROWS_PER_TAR, verbose=0) as tars:
        for number, sample in enumerate(samples):
            label = str(sample.pop("label")).encode()
            tars.write({"__key__": f"{number:09d}", "label": label, **sample})


def webdataset_batches(job: Job, *, pixels: bool = False) -> Epochs:
    """Read tar files in worker processes: the tars in a new order each epoch, and a buffer that mixes neighbours."""
    import webdataset as wds

    tars = sorted(map(str, shards(job, "tar", write_tars, pixels=pixels).glob("*.tar")))
    how = {"shardshuffle": len(tars), "detshuffle": True} if job.shuffle else {"shardshuffle": False}
    rows = wds.WebDataset(tars, seed=job.seed, empty_check=False, **how)
    if job.shuffle:
        rows = rows.compose(wds.detshuffle(200, seed=job.seed))
    rows = rows.map(partial(image_and_label, job=job, pixels=pixels))
    loader = wds.WebLoader(
        rows.batched(job.batch_size, collation_fn=as_batch),
        batch_size=None,
        num_workers=min(job.workers, len(tars)) if job.shuffle else 1,  # several would mix their tars
        persistent_workers=True,
        worker_init_fn=one_thread,
        multiprocessing_context=start_method(),
    )
    # The last batch of each worker is not full; made again, only one is.
    batches = loader.unbatched().batched(job.batch_size, collation_fn=as_batch)

    def epoch(number: int) -> Iterator[Batch]:
        for images, labels in batches:
            yield images.numpy(), labels.numpy()

    return job.epochs(epoch)


# ---- LitData ---------------------------------------------------------------------------------------------------------


def write_chunks(folder: Path, samples: Iterator[dict]) -> None:
    """Write LitData's chunks, in this process; `litdata.optimize` does it in several."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="32MB")
    for number, sample in enumerate(samples):
        cache[number] = sample
    cache.done()
    cache.merge()


def litdata_batches(job: Job, *, pixels: bool = False) -> Epochs:
    """Read chunks in worker processes: the chunks and the rows of each in a new order each epoch."""
    import litdata

    rows = litdata.StreamingDataset(
        str(shards(job, "litdata", write_chunks, pixels=pixels)),
        shuffle=job.shuffle,
        seed=job.seed,
        drop_last=False,
        transform=partial(image_and_label, job=job, pixels=pixels),
    )
    loader = litdata.StreamingDataLoader(
        rows,
        batch_size=job.batch_size,
        num_workers=job.workers if job.shuffle else 1,
        persistent_workers=True,
        collate_fn=as_batch,
        worker_init_fn=one_thread,
        multiprocessing_context=start_method(),
    )

    def epoch(number: int) -> Iterator[Batch]:
        for images, labels in loader:
            yield images.numpy(), labels.numpy()

    return job.epochs(epoch)
