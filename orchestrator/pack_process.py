"""The process of a pack: one thread trains, the others wait for the results of workers' orders."""

from __future__ import annotations

import os
import queue
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any

import ray

from orchestrator.experiment import Assignment
from orchestrator.shell import Failure, ProcessDiedError, Start
from orchestrator.worker import Inputs, TrialProcess, failure
from results.evaluation import Evaluation
from trainables.pack import Outcome, Pack


@dataclass
class _Order:
    """A worker's order, and the result that it waits for."""

    worker: int
    verb: str
    arguments: tuple[Any, ...]
    given_at: float = field(default_factory=time.monotonic)
    result: Future[Any] = field(default_factory=Future)


class PackProcess:
    """Trains the trials of several workers side by side.

    A worker that is gone, such as one killed because its trial hangs, loses its seat and its trial; the trial
    continues from its last state with another worker.

    Arguments:
        inputs: what trials read.
        size: number of seats.
    """

    def __init__(self, inputs: Inputs, size: int) -> None:
        self._inputs = inputs
        self._size = size
        self._timeout = inputs.experiment.resources.trial_timeout
        self._pack = Pack(ray.get(inputs.base), lambda text: print(text, flush=True))
        self._seats: dict[int, TrialProcess] = {}
        self._trials: dict[int, str] = {}  # ids of the workers' trials
        self._advancing: dict[str, _Order] = {}  # by the trial's id
        self._last_order: dict[int, _Order] = {}
        self._taken: set[int] = set()
        self._lock = Lock()  # guards the taken seats: Ray calls from several threads
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        Thread(target=self._run, daemon=True).start()

    def seat(self, worker: int) -> bool:
        """Give a worker a seat if one is free, and say whether it was; workers that are gone free theirs."""
        with self._lock:
            gone = {one for one in self._taken if not _is_alive(one)}
            if any(self._hangs(one) for one in gone):
                os._exit(1)  # the other workers notice, and continue in another pack
            self._taken -= gone
            if len(self._taken) == self._size:
                return False
            self._taken.add(worker)
            return True

    def _hangs(self, worker: int) -> bool:
        """Say whether a worker has waited longer than ``resources.trial_timeout``."""
        order = self._last_order.get(worker)
        return (
            self._timeout is not None
            and order is not None
            and not order.result.done()
            and time.monotonic() - order.given_at > self._timeout
        )

    def order(self, worker: int, verb: str, *arguments: Any) -> Any:
        """Have the training thread ``begin``, ``advance`` or ``close`` a worker's trial, and wait for it."""
        order = self._last_order[worker] = _Order(worker, verb, arguments)
        self._orders.put(order)
        return order.result.result()

    def _run(self) -> None:
        """Train, and carry out orders as they come."""
        try:
            while True:
                self._turn()
        except BaseException:  # after some errors CUDA cannot even take a trial out
            traceback.print_exc()
            os._exit(1)  # workers, which else would wait forever, continue in another pack

    def _turn(self) -> None:
        """Carry out all orders, and train for a while.

        A function of its own, so that its variables go: a trial's error holds the memory of the failed step.
        """
        try:
            while True:
                self._do(self._orders.get(block=self._pack.is_idle))
        except queue.Empty:
            pass
        self._leave_those_gone()
        for trial, outcome in self._pack.train().items():
            self._tell(trial, outcome)

    def _do(self, order: _Order) -> None:
        try:
            result = getattr(self, f"_{order.verb}")(order)
        except Exception as error:
            order.result.set_exception(error)
        else:
            if order.verb != "advance":
                order.result.set_result(result)

    def _begin(self, order: _Order) -> Start:
        assignment: Assignment = order.arguments[0]
        worker, trial = order.worker, assignment.trial_id
        self._leave_those_gone()
        for one in [one for one, its in self._trials.items() if one == worker or its == trial]:
            self._let_go(one)  # a trial that continues with this worker leaves its old one
        if worker not in self._seats:
            self._seats[worker] = TrialProcess(self._inputs)
        process = self._seats[worker]
        start = process.begin(assignment)
        self._trials[worker] = trial
        self._pack.join(trial, process.course)
        return start

    def _advance(self, order: _Order) -> None:
        trial = self._trials[order.worker]
        outcome = self._pack.go_on(trial)
        self._advancing[trial] = order
        if outcome is not None:
            self._tell(trial, outcome)

    def _close(self, order: _Order) -> None:
        self._let_go(order.worker)
        if process := self._seats.get(order.worker):
            process.close()

    def _tell(self, trial: str, outcome: Outcome) -> None:
        """Give a worker the outcome that it waits for."""
        result = self._advancing.pop(trial).result
        if isinstance(outcome, Evaluation):
            result.set_result(outcome)
            return
        try:
            told: Failure = failure(outcome)
        except ProcessDiedError as error:
            print(f"{trial}: {error}; the process of its pack ends", flush=True)
            os._exit(1)  # what happened to one trial would happen to all
        except OSError as error:
            result.set_exception(error)
        else:
            result.set_result(told)

    def _leave_those_gone(self) -> None:
        for worker in [one for one in self._seats if not _is_alive(one)]:
            self._let_go(worker)
            self._seats.pop(worker).close()

    def _let_go(self, worker: int) -> None:
        if (trial := self._trials.pop(worker, None)) is not None:
            self._pack.leave(trial)
            if order := self._advancing.pop(trial, None):
                order.result.set_exception(RuntimeError(f"{trial} has left its pack"))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
