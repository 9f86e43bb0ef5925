"""Schedules trials; the only package that imports Ray."""

import gc

GARBAGE_THRESHOLD = gc.get_threshold()
"""How many new objects Python's garbage collector waits for, by generation, unless told otherwise."""

DRIVER_GARBAGE = 100_000
"""How many it waits for in the driver: all that trials report is kept."""

# Imports make almost a million objects that stay. Looking through them again and again while they come took a
# third of a dry run, and a seventh of a worker's start.
gc.set_threshold(1_000_000)
