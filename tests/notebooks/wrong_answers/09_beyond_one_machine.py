"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% machines: one more where the division is exact
def order(images_per_s, image_bytes, cores, core_images_per_s, link_gbit, trainer_gbit):
    bits = 8 * image_bytes
    worker_images_per_s = min(cores * core_images_per_s, link_gbit * 1e9 / bits)
    trainers = images_per_s * bits / (trainer_gbit * 1e9)
    return int(images_per_s / worker_images_per_s) + 1, int(trainers) + 1


# %% machines: bytes for bits
def order(images_per_s, image_bytes, cores, core_images_per_s, link_gbit, trainer_gbit):
    worker_images_per_s = min(cores * core_images_per_s, link_gbit * 1e9 / image_bytes)
    trainers = images_per_s * image_bytes / (trainer_gbit * 1e9)
    return -int(-images_per_s // worker_images_per_s), -int(-trainers // 1)


# %% machines: the workers' links are left out
def order(images_per_s, image_bytes, cores, core_images_per_s, link_gbit, trainer_gbit):
    trainers = 8 * images_per_s * image_bytes / (trainer_gbit * 1e9)
    return -int(-images_per_s // (cores * core_images_per_s)), -int(-trainers // 1)


# %% hint: DYNAMIC for a hint
def hinted(url, count, work=work):
    numbers = tf.data.Dataset.range(count).map(work)
    return numbers.apply(service.distribute(service.ShardingPolicy.DYNAMIC, url))


# %% hint: DATA for a hint
def hinted(url, count, work=work):
    numbers = tf.data.Dataset.range(count).map(work)
    return numbers.apply(service.distribute(service.ShardingPolicy.DATA, url))


# %% hint: shards after the work
def hinted(url, count, work=work):
    hint = tf.data.experimental.SHARD_HINT
    numbers = tf.data.Dataset.range(count).map(work).shard(hint, hint)
    return numbers.apply(service.distribute(service.ShardingPolicy.HINT, url))


# %% files: raw bytes
def records(paths):
    return tf.data.TFRecordDataset(paths)


# %% files: text
def records(paths):
    return tf.data.TFRecordDataset(paths).map(lambda record: tf.strings.join([record]))


# %% files: the first file only
def records(paths):
    return tf.data.TFRecordDataset(paths[:1]).map(lambda record: tf.strings.to_number(record, tf.int64))


# %% exactly-once: passes on what comes twice
def exactly_once(numbers, epoch, attempts=3):
    missing = set(numbers)
    for _ in range(attempts):
        for number in epoch(sorted(missing)):
            missing.discard(number)
            yield number
        if not missing:
            return
    raise RuntimeError(f"{len(missing)} never came")


# %% exactly-once: asks for everything again
def exactly_once(numbers, epoch, attempts=3):
    missing = set(numbers)
    for _ in range(attempts):
        for number in epoch(list(numbers)):
            if number in missing:
                missing.remove(number)
                yield number
        if not missing:
            return
    raise RuntimeError(f"{len(missing)} never came")


# %% exactly-once: gives up without an error
def exactly_once(numbers, epoch, attempts=3):
    missing = set(numbers)
    for _ in range(attempts):
        for number in epoch(sorted(missing)):
            if number in missing:
                missing.remove(number)
                yield number
        if not missing:
            return


# %% exactly-once: tries once more than it may
def exactly_once(numbers, epoch, attempts=3):
    missing = set(numbers)
    for _ in range(attempts + 1):
        for number in epoch(sorted(missing)):
            if number in missing:
                missing.remove(number)
                yield number
        if not missing:
            return
    raise RuntimeError(f"{len(missing)} never came")
