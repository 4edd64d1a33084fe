"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% busy-percent: the last computing time for all steps
def busy_percent(wait_ms, compute_ms):
    first = 1 if len(wait_ms) > 1 else 0
    waited, computed = sum(wait_ms[first:]), compute_ms[-1] * len(compute_ms[first:])
    return 100 * computed / (waited + computed)


# %% busy-percent: counts the first step
def busy_percent(wait_ms, compute_ms):
    return 100 * sum(compute_ms) / (sum(wait_ms) + sum(compute_ms))


# %% busy-percent: the mean of the steps' shares
def busy_percent(wait_ms, compute_ms):
    first = 1 if len(wait_ms) > 1 else 0
    steps = list(zip(wait_ms, compute_ms, strict=True))[first:]
    return 100 * sum(computed / (waited + computed) for waited, computed in steps) / len(steps)


# %% bottleneck: as if all worked at the same time
def bottleneck(rates, works_ahead):
    slowest = min(rates, key=rates.get)
    return slowest, rates[slowest]


# %% bottleneck: the mean rate of stages that take turns
def bottleneck(rates, works_ahead):
    slowest = min(rates, key=rates.get)
    return slowest, rates[slowest] if works_ahead else sum(rates.values()) / len(rates)


# %% bottleneck: the harmonic mean, as if each stage had its own share of the time
def bottleneck(rates, works_ahead):
    slowest = min(rates, key=rates.get)
    in_turn = len(rates) / sum(1 / rate for rate in rates.values())
    return slowest, rates[slowest] if works_ahead else in_turn


# %% cores-needed: one more than needed where the division is exact
def cores_needed(per_core, per_gpu, gpus=1, share=1.0):
    return int(gpus * per_gpu / (per_core * share)) + 1


# %% cores-needed: rounds down
def cores_needed(per_core, per_gpu, gpus=1, share=1.0):
    return max(1, round(gpus * per_gpu / (per_core * share) - 0.5))


# %% cores-needed: leaves the share out
def cores_needed(per_core, per_gpu, gpus=1, share=1.0):
    return math.ceil(gpus * per_gpu / per_core)


# %% problems: runs that failed count as 0
def problems(machines):
    from statistics import median

    rates, found = {}, {}
    for rows in machines.values():
        for one in rows:
            rates.setdefault(one.name, []).append(one.alone.first_epoch_images_per_s or 0)
    for machine, rows in machines.items():
        for one in rows:
            rate = one.alone.first_epoch_images_per_s or 0
            if one.outcome != "finished" or rate < median(rates[one.name]) / 2:
                found.setdefault(machine, []).append(one.name)
    return found


# %% problems: the mean
def problems(machines):
    from statistics import mean

    rates, found = {}, {}
    for rows in machines.values():
        for one in rows:
            if one.outcome == "finished":
                rates.setdefault(one.name, []).append(one.alone.first_epoch_images_per_s)
    for machine, rows in machines.items():
        for one in rows:
            failed = one.outcome != "finished"
            if failed or one.alone.first_epoch_images_per_s < mean(rates[one.name]) / 2:
                found.setdefault(machine, []).append(one.name)
    return found


# %% problems: the largest
def problems(machines):
    rates, found = {}, {}
    for rows in machines.values():
        for one in rows:
            if one.outcome == "finished":
                rates.setdefault(one.name, []).append(one.alone.first_epoch_images_per_s)
    for machine, rows in machines.items():
        for one in rows:
            failed = one.outcome != "finished"
            if failed or one.alone.first_epoch_images_per_s < max(rates[one.name]) / 2:
                found.setdefault(machine, []).append(one.name)
    return found


# %% problems: half counts as under half
def problems(machines):
    from statistics import median

    rates, found = {}, {}
    for rows in machines.values():
        for one in rows:
            if one.outcome == "finished":
                rates.setdefault(one.name, []).append(one.alone.first_epoch_images_per_s)
    for machine, rows in machines.items():
        for one in rows:
            failed = one.outcome != "finished"
            if failed or one.alone.first_epoch_images_per_s <= median(rates[one.name]) / 2:
                found.setdefault(machine, []).append(one.name)
    return found
