"""Schedules trials; the only package that imports Ray."""

import gc

GARBAGE_THRESHOLD = gc.get_threshold()
"""Python's own garbage collection thresholds, by generation."""

DRIVER_GARBAGE = 100_000
"""The youngest generation's threshold in the driver, which keeps all that trials report."""

# Imports create almost a million objects that stay. Scanning them repeatedly meanwhile took a third of a dry
# run, and a seventh of a worker's start.
gc.set_threshold(1_000_000)
