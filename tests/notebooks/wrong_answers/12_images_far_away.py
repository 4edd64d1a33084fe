"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% how-many: rounds down
def plan(wanted, latency_ms, *, connections, file_mib, room_mib):
    needed = math.floor(wanted * latency_ms / 1000)
    in_flight = max(1, min(needed, connections, math.floor(room_mib / file_mib)))
    return in_flight, min(wanted, in_flight * 1000 / latency_ms)


# %% how-many: the rate is what was wanted
def plan(wanted, latency_ms, *, connections, file_mib, room_mib):
    needed = math.ceil(wanted * latency_ms / 1000)
    return max(1, min(needed, connections, math.floor(room_mib / file_mib))), wanted


# %% how-many: forgets the connections
def plan(wanted, latency_ms, *, connections, file_mib, room_mib):
    needed = math.ceil(wanted * latency_ms / 1000)
    in_flight = max(1, min(needed, math.floor(room_mib / file_mib)))
    return in_flight, min(wanted, in_flight * 1000 / latency_ms)


# %% how-many: forgets the memory
def plan(wanted, latency_ms, *, connections, file_mib, room_mib):
    in_flight = max(1, min(math.ceil(wanted * latency_ms / 1000), connections))
    return in_flight, min(wanted, in_flight * 1000 / latency_ms)


# %% how-many: all that fits, needed or not
def plan(wanted, latency_ms, *, connections, file_mib, room_mib):
    in_flight = max(1, min(connections, math.floor(room_mib / file_mib)))
    return in_flight, min(wanted, in_flight * 1000 / latency_ms)


# %% how-many: none at all where one does not fit
def plan(wanted, latency_ms, *, connections, file_mib, room_mib):
    in_flight = min(math.ceil(wanted * latency_ms / 1000), connections, math.floor(room_mib / file_mib))
    return in_flight, min(wanted, in_flight * 1000 / latency_ms)


# %% retries: for ever
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(10**6):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except Exception:
            sleep(random.uniform(0, longest_s * 2**attempt))


# %% retries: pauses after the last attempt
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except Exception as error:
            last = error
        sleep(random.uniform(0, longest_s * 2**attempt))
    raise OSError(f"{path}: {last}") from last


# %% retries: all come back together
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except Exception as error:
            if attempt == attempts - 1:
                raise OSError(f"{path}: {error}") from error
        sleep(longest_s * 2**attempt)


# %% retries: the pause does not grow
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except Exception as error:
            if attempt == attempts - 1:
                raise OSError(f"{path}: {error}") from error
        sleep(random.uniform(0, longest_s))


# %% retries: asks again for what is not there
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except Exception as error:
            if attempt == attempts - 1:
                raise OSError(f"{path}: {error}") from error
        sleep(random.uniform(0, longest_s * 2**attempt))


# %% retries: goes on after Ctrl-C
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except BaseException as error:
            if attempt == attempts - 1:
                raise OSError(f"{path}: {error}") from error
        sleep(random.uniform(0, longest_s * 2**attempt))


# %% retries: loses the image in silence
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except Exception:
            if attempt < attempts - 1:
                sleep(random.uniform(0, longest_s * 2**attempt))
    return b""


# %% retries: only the system's errors
def with_retries(read, path, *, attempts=5, longest_s=0.1, sleep=time.sleep):
    for attempt in range(attempts):
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt == attempts - 1:
                raise OSError(f"{path}: {error}") from error
        sleep(random.uniform(0, longest_s * 2**attempt))


# %% cache: the last part of the path is its name
def cached(read, path, folder):
    kept = Path(folder) / path.rpartition("/")[2]
    if kept.exists():
        return kept.read_bytes()
    data = read(path)
    unfinished = kept.with_name(f"{kept.name}.{random.getrandbits(32)}")
    unfinished.write_bytes(data)
    os.replace(unfinished, kept)
    return data


# %% cache: slashes become underscores
def cached(read, path, folder):
    kept = Path(folder) / path.replace("/", "_")
    if kept.exists():
        return kept.read_bytes()
    data = read(path)
    unfinished = kept.with_name(f"{kept.name}.{random.getrandbits(32)}")
    unfinished.write_bytes(data)
    os.replace(unfinished, kept)
    return data


# %% cache: writes under the last name
def cached(read, path, folder):
    import hashlib

    kept = Path(folder) / hashlib.sha256(path.encode()).hexdigest()
    if not kept.exists():
        kept.write_bytes(read(path))
    return kept.read_bytes()


# %% cache: all write to one unfinished file
def cached(read, path, folder):
    import hashlib

    kept = Path(folder) / hashlib.sha256(path.encode()).hexdigest()
    if kept.exists():
        return kept.read_bytes()
    data = read(path)
    unfinished = kept.with_name(f"{kept.name}.part")
    unfinished.write_bytes(data)
    os.replace(unfinished, kept)
    return data


# %% cache: keeps nothing
def cached(read, path, folder):
    return read(path)


# %% cache: keeps errors as empty files
def cached(read, path, folder):
    import hashlib

    kept = Path(folder) / hashlib.sha256(path.encode()).hexdigest()
    if kept.exists():
        return kept.read_bytes()
    try:
        data = read(path)
    except ConnectionResetError:
        data = b""
    unfinished = kept.with_name(f"{kept.name}.{random.getrandbits(32)}")
    unfinished.write_bytes(data)
    os.replace(unfinished, kept)
    return data
