"""Checks of pipelines that were taken home, for a Python without the course; `test_take_home` starts it.

    python -I -S taken_home.py SITE_PACKAGES MODULES IMAGES

It prints, as JSON, what is wrong with each pipeline: name -> None or a traceback.
"""

import importlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

NAMES = (
    "keras_sequence",  # before TensorFlow has threads: it forks
    "load_everything",
    "generator",
    "threaded_generator",
    "tf1_queues",
    "tf_data",
    "tf_data_fast",
    "tf_data_packed",
)
BLOCKED = ("helpers", "psutil", "cloudpickle", "nbformat", "matplotlib", "torch", "tqdm", "jinja2")
VARIANTS = {
    "keras_sequence": [{}, {"workers": 1, "use_multiprocessing": True}],
    "tf_data_packed": [{}, {"augment": True}],
}
SIZE, BATCH_SIZE, COUNT, PER_CLASS = (40, 48), 5, 24, 8


class Blocker:
    """Finds nothing of what a reader at home does not have."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed at home", name=name)


def write_images(folder):
    """Write images of one colour each: red tells the number, green the class."""
    import cv2
    import numpy as np

    for number in range(COUNT):
        path = Path(folder) / "abc"[number // PER_CLASS] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (200, 60 * (number // PER_CLASS), 10 * number)
        assert cv2.imwrite(str(path), np.full((60 + number, 80, 3), colour, np.uint8))


def epoch_of(batches, channels=3):
    """Return the numbers of the images of one epoch, after a look at their form, their colours and their labels."""
    import numpy as np

    numbers, sizes = [], []
    for images, labels in batches:
        images, labels = np.asarray(images), np.asarray(labels)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64), (images.dtype, labels.dtype)
        assert images.shape == (len(labels), *SIZE, channels), images.shape
        found = [round(float(value) / 10) for value in images[..., 0].mean((1, 2))]
        if channels == 3:
            assert [number // PER_CLASS for number in found] == labels.tolist(), "labels of other images"
            assert np.abs(images[..., 1].mean((1, 2)) - 60 * labels).max() < 5, "green is not where it belongs"
            assert np.abs(images[..., 2].mean() - 200) < 5, "not RGB"
        numbers += found
        sizes.append(len(labels))
    return numbers, sizes


def check(name, folder, **variant):
    module = importlib.import_module(f"my_{name}")
    pipeline, files = getattr(module, name), module.find_images(folder)
    assert (len(files), files.class_names) == (COUNT, ("a", "b", "c")), files
    pickle.loads(pickle.dumps(pipeline))

    def batches(some=files, **settings):
        return pipeline(some, image_size=SIZE, batch_size=BATCH_SIZE, **variant, **settings)

    one, other = batches(seed=3), batches(seed=3)
    epochs = [epoch_of(one) for _ in range(2)]
    assert all(sizes == [5, 5, 5, 5, 4] for _, sizes in epochs), epochs
    assert all(sorted(numbers) == list(range(COUNT)) for numbers, _ in epochs), epochs
    assert epochs[0] != epochs[1], "the same order twice"
    assert [epoch_of(other) for _ in range(2)] == epochs, "another order with the same seed"
    assert epoch_of(batches(seed=4)) != epochs[0], "the same order with another seed"
    in_order = batches(shuffle=False)
    assert [epoch_of(in_order)[0] for _ in range(2)] == [list(range(COUNT))] * 2, "not in the order of the list"
    assert sum(len(labels) for _, labels in batches(channels=1)) == COUNT
    with tempfile.TemporaryDirectory() as place:
        check_broken(batches, module.find_images(shutil.copytree(folder, Path(place) / "images")))


def check_broken(batches, files):
    path = Path(files.paths[13])
    path.write_bytes(path.read_bytes()[:200])
    try:
        for _ in batches(files):
            pass
    except Exception as error:
        assert path.name in str(error), error
    else:
        raise AssertionError("nothing is said of a broken file")
    left = batches(files, on_error="skip")
    assert sorted(epoch_of(left)[0]) == [number for number in range(COUNT) if number != 13]
    assert list(left.skipped) == [str(path)], left.skipped


def main(site_packages, modules, images):
    sys.path += [modules, site_packages]
    sys.meta_path.insert(0, Blocker())
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    write_images(images)
    found = {}
    for name in NAMES:
        found[name] = None
        for variant in VARIANTS.get(name, [{}]):
            try:
                check(name, images, **variant)
            except Exception:
                found[name] = f"{variant}: {traceback.format_exc()}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
