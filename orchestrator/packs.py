"""Trials that share a process: to Tune each is an ordinary trial, whose worker forwards all to a pack.

A pack is an actor of its own; the workers of its trials hold the resources that it uses, a part each. They
import this module, which therefore imports nothing that trains.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.assignment import Assignment
from orchestrator.lost_workers import as_death
from orchestrator.shell import Failure, ProcessDiedError, Start, TrialShell
from results.evaluation import Evaluation

if TYPE_CHECKING:
    from orchestrator.settings import ResourceSettings
    from orchestrator.worker import Inputs

ANSWER_SECONDS = 30
"""How long a pack may take to say whether it has a seat; the answer does not wait for training."""


class PackedTrialWorker(TrialShell):
    """A trial worker whose trials train in a pack."""

    def setup(  # type: ignore[override]  # tune.with_parameters passes what comes after config
        self, config: dict[str, Any], packs: Any
    ) -> None:
        self._open(config, Seat(packs))


class Seat:
    """A worker's place in a pack, which it keeps for one trial after another."""

    def __init__(self, packs: Any) -> None:
        self._packs = packs
        self._sit_down()

    def _sit_down(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        self._pack = ray.get(self._packs.seat.remote(node, gpus, os.getpid()))

    def begin(self, assignment: Assignment) -> Start:
        try:
            return self._order("begin", assignment)
        except ProcessDiedError:  # the pack has died since this worker's last trial
            self._sit_down()
            return self._order("begin", assignment)

    def advance(self) -> Evaluation | Failure:
        return self._order("advance")

    def close(self) -> None:
        self._order("close")

    def _order(self, verb: str, *arguments: Any) -> Any:
        try:
            return ray.get(self._pack.order.remote(os.getpid(), verb, *arguments))
        except RayError as error:
            if isinstance(death := as_death(error), RayActorError):
                raise ProcessDiedError(f"the process of its pack died: {death}") from error
            raise


def open_packs(inputs: Inputs, resources: ResourceSettings) -> Any:
    """Start the actor that gives workers their seats; it and the packs end with the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Packs.options(scheduling_strategy=here).remote(  # type: ignore[attr-defined]  # an actor
        [ray.put(inputs)], resources.pack_size
    )


@ray.remote(num_cpus=0)
class Packs:
    """Gives workers seats in packs on their node and GPU, and starts a pack if all seats are taken.

    Arguments:
        inputs: a reference to the inputs, in a list so that Ray does not fetch them here.
        size: seats of a pack.
    """

    def __init__(self, inputs: list[ray.ObjectRef[Inputs]], size: int) -> None:
        self._inputs = inputs
        self._size = size
        self._packs: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
        self._one_at_a_time = asyncio.Lock()

    async def seat(self, node: str, gpus: str, worker: int) -> Any:
        """Give a worker a seat, and return the actor of its pack.

        Arguments:
            node: id of the worker's node.
            gpus: ids of the GPUs that Ray has given to the worker.
            worker: its process id.
        """
        async with self._one_at_a_time:
            packs = self._packs[node, gpus]
            for pack in list(packs):
                try:
                    if await asyncio.wait_for(pack.seat.remote(worker), ANSWER_SECONDS):
                        return pack
                except (RayError, TimeoutError) as error:
                    if isinstance(error, RayTaskError):
                        raise
                    ray.kill(pack)
                    packs.remove(pack)
            pack = PackActor.options(  # type: ignore[attr-defined]  # an actor
                # An order and a request for a seat from each worker.
                max_concurrency=2 * self._size + 1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(self._inputs, self._size, gpus)
            await pack.seat.remote(worker)
            packs.append(pack)
            return pack


@ray.remote(num_cpus=0)
class PackActor:
    """The process of a pack, which alone imports what trains."""

    def __init__(self, inputs: list[ray.ObjectRef[Inputs]], size: int, gpus: str) -> None:
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        from orchestrator.pack_process import PackProcess

        self._process = PackProcess(ray.get(inputs[0]), size)

    def seat(self, worker: int) -> bool:
        return self._process.seat(worker)

    def order(self, worker: int, verb: str, *arguments: Any) -> Any:
        return self._process.order(worker, verb, *arguments)
