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


# %% choose: what fills the budget exactly does not fit
def choose(rows, needed, spare_mib):
    fitting = [row for row in rows if row[2] < spare_mib]
    if not fitting:
        return None
    fastest = max(images_per_s for _, images_per_s, _ in fitting)
    enough = needed if fastest >= needed else 0.95 * fastest
    return min((row for row in fitting if row[1] >= enough), key=lambda row: row[2])[0]


# %% choose: exactly enough is not enough
def choose(rows, needed, spare_mib):
    fitting = [row for row in rows if row[2] <= spare_mib]
    if not fitting:
        return None
    fastest = max(images_per_s for _, images_per_s, _ in fitting)
    enough = [row for row in fitting if row[1] > needed]
    enough = enough or [row for row in fitting if row[1] >= 0.95 * fastest]
    return min(enough, key=lambda row: row[2])[0]


# %% choose: exactly 0.95 counts as slower
def choose(rows, needed, spare_mib):
    fitting = [row for row in rows if row[2] <= spare_mib]
    if not fitting:
        return None
    fastest = max(images_per_s for _, images_per_s, _ in fitting)
    enough = [row for row in fitting if row[1] >= needed]
    enough = enough or [row for row in fitting if row[1] > 0.95 * fastest]
    return min(enough, key=lambda row: row[2])[0]


# %% choose: always the fastest
def choose(rows, needed, spare_mib):
    fitting = [row for row in rows if row[2] <= spare_mib]
    return max(fitting, key=lambda row: row[1])[0] if fitting else None


# %% choose: no noise
def choose(rows, needed, spare_mib):
    fitting = [row for row in rows if row[2] <= spare_mib]
    if not fitting:
        return None
    enough = [row for row in fitting if row[1] >= needed]
    if not enough:
        return max(fitting, key=lambda row: row[1])[0]
    return min(enough, key=lambda row: row[2])[0]
