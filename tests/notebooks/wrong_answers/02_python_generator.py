"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% one-epoch: loads everything first
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(number).permutation(len(files))
    images = np.stack([read(path) for path in files.paths])
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield images[rows], files.labels[rows]


# %% one-epoch: keeps every image
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(number).permutation(len(files))
    images = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        images |= {row: read(files.paths[row]) for row in rows}
        yield np.stack([images[row] for row in rows]), files.labels[rows]
    globals()["images_kept"] = images


# %% one-epoch: drops the last batch
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(number).permutation(len(files))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield np.stack([read(files.paths[row]) for row in rows]), files.labels[rows]


# %% one-epoch: fills the last batch with images that have come
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(number).permutation(len(files))
    for start in range(0, len(order), batch_size):
        rows = np.take(order, range(start, start + batch_size), mode="wrap")
        yield np.stack([read(files.paths[row]) for row in rows]), files.labels[rows]


# %% one-epoch: repeats the order in each epoch
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(0).permutation(len(files))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.stack([read(files.paths[row]) for row in rows]), files.labels[rows]


# %% one-epoch: an order that does not follow from the number
def one_epoch(files, number, batch_size, read):
    order = np.random.permutation(len(files))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.stack([read(files.paths[row]) for row in rows]), files.labels[rows]


# %% one-epoch: writes each batch into the same array
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(number).permutation(len(files))
    images = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for place, row in enumerate(rows):
            image = read(files.paths[row])
            if images is None:
                images = np.empty((batch_size, *image.shape), np.uint8)
            images[place] = image
        yield images[: len(rows)], files.labels[rows]


# %% one-epoch: shuffles the batches, not the images
def one_epoch(files, number, batch_size, read):
    starts = np.arange(0, len(files), batch_size)
    for start in np.random.default_rng(number).permutation(starts):
        rows = range(start, min(start + batch_size, len(files)))
        yield np.stack([read(files.paths[row]) for row in rows]), files.labels[list(rows)]


# %% one-epoch: labels in the order of the list
def one_epoch(files, number, batch_size, read):
    order = np.random.default_rng(number).permutation(len(files))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        images = np.stack([read(files.paths[row]) for row in rows])
        yield images, files.labels[start : start + batch_size]


# %% busy: counts the first step
def busy_percent(batches, step, clock=time.perf_counter):
    waited_s, computed_s, before = 0, 0, clock()
    for images, labels in batches:
        ready = clock()
        step(images, labels)
        done = clock()
        waited_s, computed_s, before = waited_s + ready - before, computed_s + done - ready, done
    return 100 * computed_s / (waited_s + computed_s)


# %% busy: the mean of each step's share
def busy_percent(batches, step, clock=time.perf_counter):
    shares, before = [], clock()
    for images, labels in batches:
        ready = clock()
        step(images, labels)
        done = clock()
        shares.append((done - ready) / (done - before))
        before = done
    return 100 * sum(shares[1:]) / len(shares[1:])


# %% busy: counts what happens after the last step
def busy_percent(batches, step, clock=time.perf_counter):
    computed_s, start = [], None
    for images, labels in batches:
        ready = clock()
        step(images, labels)
        computed_s.append(clock() - ready)
        start = clock() if start is None else start
    return 100 * sum(computed_s[1:]) / (clock() - start)


# %% busy: does not wait for the reading
def busy_percent(batches, step, clock=time.perf_counter):
    batches = list(batches)
    waited_s, computed_s, before = [], [], clock()
    for images, labels in batches:
        ready = clock()
        step(images, labels)
        done = clock()
        waited_s.append(ready - before)
        computed_s.append(done - ready)
        before = done
    return 100 * sum(computed_s[1:]) / (sum(waited_s[1:]) + sum(computed_s[1:]))


# %% shared: reads all batches at once
class Shared:
    def __init__(self, batches):
        self.iterator = iter(list(batches))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator)


# %% shared: no lock
class Shared:
    def __init__(self, batches):
        self.iterator = iter(batches)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator)


# %% shared: each thread gets every batch
class Shared:
    def __init__(self, batches):
        self.lock, self.batches, self.next_of = threading.Lock(), batches, threading.local()

    def __iter__(self):
        return self

    def __next__(self):
        with self.lock:
            if not hasattr(self.next_of, "iterator"):
                self.batches, self.next_of.iterator = itertools.tee(self.batches)
            return next(self.next_of.iterator)


# %% for-fit: keeps a whole epoch
def for_fit(function):
    return itertools.cycle([tuple(batch) for batch in function()])


# %% for-fit: keeps what it has read, batch by batch
def for_fit(function):
    first = next(function(), None)
    if first is None:
        raise ValueError(f"{function.__name__} yields nothing")
    return itertools.cycle(tuple(batch) for batch in function())


# %% for-fit: cycles over one generator, and refuses an empty one when it is asked
def for_fit(function):
    empty = True
    for batch in itertools.cycle(function()):
        empty = False
        yield tuple(batch)
    if empty:
        raise ValueError(f"{function.__name__} yields nothing")


# %% for-fit: passes lists on
def for_fit(function):
    while True:
        empty = True
        for batch in function():
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{function.__name__} yields nothing")


# %% for-fit: one epoch only
def for_fit(function):
    empty = True
    for batch in function():
        empty = False
        yield tuple(batch)
    if empty:
        raise ValueError(f"{function.__name__} yields nothing")
