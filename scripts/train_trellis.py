#!/usr/bin/env python3
"""Trains the level tables of the trellis codes (src/codec/trellis_levels.hpp) and prints them as C++.

A code of `bits` bits is read through a window of `window` bits: itself and the codes that come after it. Tables are found by
Lloyd's iteration on normally distributed values: encode with the present table (Viterbi), move each level to the mean of the
values that took it, repeat; the best of several starts is kept. A code of 6 bits is its whole window: its levels are Lloyd's of the
normal distribution itself, in ascending order. Needs numpy; takes some minutes. Not part of the build.

  python3 scripts/train_trellis.py > tables.txt
"""

import statistics

import numpy as np

UNIT = 3.0 / 127.5  # standard deviations a unit of a level (kTrellisUnit)
LENGTH = 64  # of a sequence: long enough that its ends hardly count
TABLES = [(1, 2), (1, 5), (2, 4), (2, 6), (3, 6), (4, 6)]
STARTS = 14
MOST = 3.0  # standard deviations that a level is off


def windows_of(values, levels, bits, window):
    """The windows of the nearest sequence of levels: values [n, length], levels [2^window]."""
    n, length = values.shape
    n_states = 1 << (window - bits)
    before = np.arange(1 << window) >> bits
    cost = np.full((n, n_states), 1e9, np.float32)
    cost[:, 0] = 0
    came_from = np.zeros((length, n, n_states), np.uint8)
    for t in range(length):
        step = (cost[:, before] + (values[:, t : t + 1] - levels) ** 2).reshape(n, -1, n_states)
        came_from[t] = step.argmin(1)
        cost = step.min(1)
    state = cost.argmin(1)
    found = np.zeros((n, length), np.int64)
    for t in range(length - 1, -1, -1):
        found[:, t] = came_from[t][np.arange(n), state].astype(np.int64) * n_states + state
        state = found[:, t] >> bits
    return found


def error(levels, bits, window):
    values = np.random.default_rng(99).standard_normal((4000, LENGTH)).astype(np.float32)
    return float(np.mean((values - levels[windows_of(values, levels, bits, window)]) ** 2))


def train(bits, window, seed):
    random = np.random.default_rng(seed)
    size = 1 << window
    normal = statistics.NormalDist()
    spread = np.array([normal.inv_cdf((i + 0.5) / size) for i in range(size)], np.float32)
    if seed % 2:  # neighbours in value far apart in the table
        levels = spread[((np.arange(size) * (2 * int(random.integers(size // 2)) + 1)) ^ int(random.integers(size))) % size]
    else:
        levels = spread[random.permutation(size)]
    for _ in range(35):
        values = random.standard_normal((1500, LENGTH)).astype(np.float32)
        found = windows_of(values, levels, bits, window).ravel()
        n = np.bincount(found, minlength=size)
        mean = np.bincount(found, values.ravel(), size) / np.maximum(n, 1)
        levels = np.where(n > 0, mean, levels + 0.01 * random.standard_normal(size)).astype(np.float32)
    return error(levels, bits, window), levels


def without_memory(bits):
    """Lloyd's levels within MOST."""
    normal, size = statistics.NormalDist(), 1 << bits
    levels = [normal.inv_cdf((i + 0.5) / size) for i in range(size)]
    for _ in range(3000):
        edges = [-np.inf] + [(a + b) / 2 for a, b in zip(levels, levels[1:])] + [np.inf]
        means = [(normal.pdf(a) - normal.pdf(b)) / (normal.cdf(b) - normal.cdf(a)) for a, b in zip(edges, edges[1:])]
        levels = [min(MOST, max(-MOST, mean)) for mean in means]
    return np.array(levels, np.float32)


def show(levels, bits, window):
    codes = np.clip(np.round(levels / UNIT + 127.5), 0, 255).astype(int)
    rounded = ((codes - 127.5) * UNIT).astype(np.float32)
    print(f"// {bits} bits, a window of {window}: mean squared error {error(rounded, bits, window):.5f}")
    for first in range(0, len(codes), 16):
        print("  " + " ".join(f"{code}," for code in codes[first : first + 16]), flush=True)


def main():
    for bits, window in TABLES:
        _, levels = min((train(bits, window, seed) for seed in range(STARTS)), key=lambda result: result[0])
        show(levels, bits, window)
    show(without_memory(6), 6, 6)


if __name__ == "__main__":
    main()
