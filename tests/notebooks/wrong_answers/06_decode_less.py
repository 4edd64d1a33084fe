"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% read-crop: reduces by the size of the whole picture
def read_crop(decode, data, box, image_size):
    reduce = reduction((960, 1280), image_size, at_least=1)
    y, x, height, width = (side // reduce for side in box)
    return cv2.resize(decode(data, reduce)[y : y + height, x : x + width], image_size[::-1])


# %% read-crop: cuts at the stored position out of the reduced picture
def read_crop(decode, data, box, image_size):
    reduce = reduction(box[2:], image_size, at_least=1)
    y, x, height, width = box
    part = decode(data, reduce)[y // reduce : y // reduce + height, x : x + width]
    return cv2.resize(part if part.size else decode(data, 8), image_size[::-1])


# %% read-crop: decodes all pixels
def read_crop(decode, data, box, image_size):
    y, x, height, width = box
    return cv2.resize(decode(data, 1)[y : y + height, x : x + width], image_size[::-1])


# %% read-crop: allows a tenth less
def read_crop(decode, data, box, image_size):
    reduce = reduction(box[2:], image_size)
    y, x, height, width = (side // reduce for side in box)
    return cv2.resize(decode(data, reduce)[y : y + height, x : x + width], image_size[::-1])


# %% read-crop: height and width swapped
def read_crop(decode, data, box, image_size):
    reduce = reduction(box[2:], image_size, at_least=1)
    y, x, height, width = (side // reduce for side in box)
    return cv2.resize(decode(data, reduce)[y : y + height, x : x + width], image_size)


# %% read-crop: looks at one side only
def read_crop(decode, data, box, image_size):
    reduce = next(r for r in (8, 4, 2, 1) if box[2] // r >= image_size[0] or r == 1)
    y, x, height, width = (side // reduce for side in box)
    return cv2.resize(decode(data, reduce)[y : y + height, x : x + width], image_size[::-1])


# %% in-turn: one after another
def images_per_s(variants, clock, rounds=9):
    found = {}
    for name, run_once in variants.items():
        rates = []
        for _ in range(rounds):
            start_s = clock()
            rates.append(run_once() / (clock() - start_s))
        found[name] = statistics.median(rates)
    return found


# %% in-turn: the mean
def images_per_s(variants, clock, rounds=9):
    found = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run_once in variants.items():
            start_s = clock()
            found[name].append(run_once() / (clock() - start_s))
    return {name: statistics.mean(rates) for name, rates in found.items()}


# %% in-turn: the best round
def images_per_s(variants, clock, rounds=9):
    found = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run_once in variants.items():
            start_s = clock()
            found[name].append(run_once() / (clock() - start_s))
    return {name: max(rates) for name, rates in found.items()}


# %% in-turn: all images over all seconds
def images_per_s(variants, clock, rounds=9):
    images, seconds = dict.fromkeys(variants, 0), dict.fromkeys(variants, 0)
    for _ in range(rounds):
        for name, run_once in variants.items():
            start_s = clock()
            images[name] += run_once()
            seconds[name] += clock() - start_s
    return {name: images[name] / seconds[name] for name in variants}


# %% in-turn: one time for the whole round
def images_per_s(variants, clock, rounds=9):
    found = {name: [] for name in variants}
    for _ in range(rounds):
        start_s = clock()
        for name, run_once in variants.items():
            found[name].append(run_once() / (clock() - start_s))
    return {name: statistics.median(rates) for name, rates in found.items()}


# %% in-turn: a fixed number of images
def images_per_s(variants, clock, rounds=9):
    found = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run_once in variants.items():
            start_s = clock()
            run_once()
            found[name].append(100 / (clock() - start_s))
    return {name: statistics.median(rates) for name, rates in found.items()}


# %% let-go: the faulty program
def dataset_of(shelf, count, batch_size):
    def read(rows):
        return shelf.read(rows)

    rows = tf.data.Dataset.range(count).batch(batch_size)
    return rows.map(lambda batch: tf.numpy_function(read, [batch], tf.int64))


# %% let-go: nobody holds the function
def dataset_of(shelf, count, batch_size):
    def read(rows):
        return shelf.read(rows)

    reader = weakref.ref(read)
    rows = tf.data.Dataset.range(count).batch(batch_size)
    return rows.map(lambda batch: tf.numpy_function(lambda r: reader()(r), [batch], tf.int64))


# %% let-go: a weak reference to the shelf itself
def dataset_of(shelf, count, batch_size):
    held = weakref.ref(shelf)
    rows = tf.data.Dataset.range(count).batch(batch_size)
    return rows.map(lambda batch: tf.numpy_function(lambda r: held().read(r), [batch], tf.int64))


# %% let-go: held by a global list
readers = []


def dataset_of(shelf, count, batch_size):
    readers.append(shelf.read)
    number = len(readers) - 1
    rows = tf.data.Dataset.range(count).batch(batch_size)
    return rows.map(lambda batch: tf.numpy_function(lambda r: readers[number](r), [batch], tf.int64))


# %% let-go: reads everything in advance
def dataset_of(shelf, count, batch_size):
    rows = shelf.read(np.arange(count))
    return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
