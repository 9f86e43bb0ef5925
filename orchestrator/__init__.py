"""Schedules trials; the only package that imports Ray. In the order in which to read it:

- from the command to the first trial: run, loading, experiment, settings; beginning, prepare,
  plan, notices
- the trials: comparison, phases; studies, brackets, budget, confirm
- their processes: shell, worker; packs, pack_process; train_workers, board, trial_trainer
- what becomes of them: recorder, history, rows; progress, metrics, loggers, study_journal
- room for them: cluster, nodes, reservations, limiter; probing, fitting
- what goes wrong: lost_workers, watchdog, states, resume, reproduce, trust, secrets
- where runs are: storage, ownership, shared_storage; mirror, fetch, scratch
"""

import gc

GARBAGE_THRESHOLD = gc.get_threshold()
"""Python's own garbage collection thresholds, by generation."""

DRIVER_GARBAGE = 100_000
"""The youngest generation's threshold in the driver, which keeps all that trials report."""

# Imports create almost a million objects that stay. Scanning them repeatedly meanwhile took a third of a dry
# run, and a seventh of a worker's start.
gc.set_threshold(1_000_000)
