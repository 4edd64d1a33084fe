"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% before-you-load: forgets the three colours
def array_mib_of(count, height, width, dtype):
    return count * height * width * np.dtype(dtype).itemsize / 2**20


def images_that_fit(budget_mib, start_mib, mib_per_image):
    return max(0, int((budget_mib - start_mib) / mib_per_image))


# %% before-you-load: counts megabytes of 10^6 bytes
def array_mib_of(count, height, width, dtype):
    return count * height * width * 3 * np.dtype(dtype).itemsize / 1e6


def images_that_fit(budget_mib, start_mib, mib_per_image):
    return max(0, int((budget_mib - start_mib) / mib_per_image))


# %% before-you-load: leaves out what the process starts with
def array_mib_of(count, height, width, dtype):
    return count * height * width * 3 * np.dtype(dtype).itemsize / 2**20


def images_that_fit(budget_mib, start_mib, mib_per_image):
    return int(budget_mib / mib_per_image)


# %% before-you-load: rounds to the nearest image
def array_mib_of(count, height, width, dtype):
    return count * height * width * 3 * np.dtype(dtype).itemsize / 2**20


def images_that_fit(budget_mib, start_mib, mib_per_image):
    return max(0, round((budget_mib - start_mib) / mib_per_image))


# %% before-you-load: fewer than none
def array_mib_of(count, height, width, dtype):
    return count * height * width * 3 * np.dtype(dtype).itemsize / 2**20


def images_that_fit(budget_mib, start_mib, mib_per_image):
    return int((budget_mib - start_mib) / mib_per_image)


# %% mib-per-image: divides one peak, imports and all
def mib_per_image(load, files):
    return run(load, files).peak_mib / len(files)


# %% mib-per-image: counts what is taken once
def mib_per_image(load, files):
    result = run(load, files)
    return (result.peak_mib - result.baseline_mib) / len(files)


# %% mib-per-image: takes the size of what is kept for the peak
def mib_per_image(load, files):
    few = files.take(len(files) // 4)
    sizes = [sum(run(load, some).unwrap()) / 2**20 for some in (few, files)]
    return (sizes[1] - sizes[0]) / (len(files) - len(few))


# %% mib-per-image: multiplies pixels instead of measuring
def mib_per_image(load, files):
    return 224 * 224 * 3 / 2**20


# %% without-the-list: a list, and then an array
def load_uint8(files):
    return np.array([read_image(path, image_size=(224, 224)) for path in files.paths])


# %% without-the-list: BGR
def load_uint8(files):
    images = np.empty((len(files), 224, 224, 3), np.uint8)
    for number, path in enumerate(files.paths):
        images[number] = cv2.resize(cv2.imread(path), (224, 224))
    return images


# %% without-the-list: float32, cast at the end
def load_uint8(files):
    images = np.empty((len(files), 224, 224, 3), np.float32)
    for number, path in enumerate(files.paths):
        images[number] = read_image(path, image_size=(224, 224))
    return images.astype(np.uint8)


# %% scale-without-float64: float64, cast at the end
def scale(array):
    return (array / 127.5 - 1).astype(np.float32)


# %% scale-without-float64: float32 from the start, and a second array of it
def scale(array):
    return array.astype(np.float32) / 127.5 - 1


# %% scale-without-float64: from 0 to 1
def scale(array):
    return np.multiply(array, 1 / 255, dtype=np.float32)


# %% scale-without-float64: in place, in eight bits
def scale(array):
    array //= 128
    return np.subtract(array, 1, dtype=np.float32)
