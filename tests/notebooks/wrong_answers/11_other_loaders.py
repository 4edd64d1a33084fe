"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% each-once: every worker yields everything
def batches_of_worker(rows, batch_size, worker, workers):
    while batch := list(itertools.islice(rows, batch_size)):
        yield batch


# %% each-once: every other row, so batches depend on the number of workers
def batches_of_worker(rows, batch_size, worker, workers):
    own = itertools.islice(rows, worker, None, workers)
    while batch := list(itertools.islice(own, batch_size)):
        yield batch


# %% each-once: holds all rows
def batches_of_worker(rows, batch_size, worker, workers):
    rows = list(rows)
    for at in range(worker * batch_size, len(rows), workers * batch_size):
        yield rows[at : at + batch_size]


# %% each-once: drops the last batch
def batches_of_worker(rows, batch_size, worker, workers):
    for number in itertools.count():
        batch = list(itertools.islice(rows, batch_size))
        if len(batch) < batch_size:
            return
        if number % workers == worker:
            yield batch


# %% worker-memory: at least one image
def held_mib(batch_size, image_size, *, workers=2, prefetch_factor=2, channels=3, value_bytes=1):
    batches = workers * prefetch_factor + 1
    return batches * batch_size * math.prod(image_size) * channels * value_bytes / 2**20


def largest_batch(room_mib, image_size, **settings):
    return max(1, math.floor(room_mib / held_mib(1, image_size, **settings)))


# %% worker-memory: forgets the batch in the hands of the training
def held_mib(batch_size, image_size, *, workers=2, prefetch_factor=2, channels=3, value_bytes=1):
    batches = workers * prefetch_factor
    return batches * batch_size * math.prod(image_size) * channels * value_bytes / 2**20


def largest_batch(room_mib, image_size, **settings):
    return math.floor(room_mib / held_mib(1, image_size, **settings))


# %% worker-memory: rounds up
def held_mib(batch_size, image_size, *, workers=2, prefetch_factor=2, channels=3, value_bytes=1):
    batches = workers * prefetch_factor + 1
    return batches * batch_size * math.prod(image_size) * channels * value_bytes / 2**20


def largest_batch(room_mib, image_size, **settings):
    return math.ceil(room_mib / held_mib(1, image_size, **settings))


# %% any-batch: the same order in each epoch
def rows_of_batch(number, count, batch_size, seed):
    position = number % math.ceil(count / batch_size)
    order = np.random.default_rng(seed).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size]


# %% any-batch: epoch 1 of seed 0 is epoch 0 of seed 1
def rows_of_batch(number, count, batch_size, seed):
    epoch, position = divmod(number, math.ceil(count / batch_size))
    order = np.random.default_rng(seed + epoch).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size]


# %% any-batch: batches reach into the next epoch
def rows_of_batch(number, count, batch_size, seed):
    rows = range(number * batch_size, (number + 1) * batch_size)
    orders = {row // count: np.random.default_rng((seed, row // count)).permutation(count) for row in rows}
    return [orders[row // count][row % count] for row in rows]


# %% any-batch: drops the last batch
def rows_of_batch(number, count, batch_size, seed):
    epoch, position = divmod(number, max(1, count // batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size]


# %% any-batch: from NumPy's global state
def rows_of_batch(number, count, batch_size, seed):
    position = number % math.ceil(count / batch_size)
    if position == 0 or not hasattr(rows_of_batch, "order") or len(rows_of_batch.order) != count:
        rows_of_batch.order = np.random.permutation(count)
    return rows_of_batch.order[position * batch_size : (position + 1) * batch_size]


# %% any-batch: goes through all epochs before
def rows_of_batch(number, count, batch_size, seed):
    rng, start = np.random.default_rng(seed), time.perf_counter()
    epoch, position = divmod(number, math.ceil(count / batch_size))
    for _ in range(epoch + 1):
        order = rng.permutation(count)
        assert time.perf_counter() - start < 0.5
    return order[position * batch_size : (position + 1) * batch_size]


# %% any-batch: epoch 0 is not shuffled
def rows_of_batch(number, count, batch_size, seed):
    epoch, position = divmod(number, math.ceil(count / batch_size))
    order = np.arange(count) + 0 * seed
    if epoch:
        order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size]
