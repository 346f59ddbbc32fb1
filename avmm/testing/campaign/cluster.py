"""Workers of a Dask cluster (package ``distributed``): each instance is a task, done by a process that the Dask worker keeps for it.

The scenario's file, and what it needs, is at the same path for every worker. What the cluster does about a Dask worker that dies,
running its tasks again elsewhere, comes before what the campaign does. The invariant: a campaign that ends leaves no process behind.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from types import TracebackType
from typing import Any, Self

from avmm.control.config import ConfigError
from avmm.testing.campaign.matrix import Instance
from avmm.testing.campaign.processes import WorkerLost, WorkerProcess

CONNECTING = 20
TASKS_PER_THREAD = 2  # one runs, one waits in line

_idle: dict[str, list[WorkerProcess]] = {}
"""On a Dask worker: processes of a campaign that have nothing to do."""


async def run_here(campaign: str, instance: dict[str, Any], folder: str, limit: float | None, artefacts: str | None) -> dict[str, Any]:
    """Run an instance on the Dask worker that this is called on, in its event loop."""
    idle = _idle.setdefault(campaign, [])
    worker = idle.pop() if idle else WorkerProcess(folder)
    answer = await worker.ask({"run": instance, "artefacts": artefacts}, limit)
    if campaign in _idle:
        idle.append(worker)
    else:  # it ended meanwhile
        await worker.close()
    return answer


async def dismiss(campaign: str) -> None:
    """End what a campaign has on the Dask worker that this is called on."""
    for worker in _idle.pop(campaign, []):
        await worker.close()


class Cluster:
    """The workers behind the scheduler at ``address``, such as ``tcp://host:8786``."""

    def __init__(self, address: str, limit: float | None = None, artefacts: str | None = None) -> None:
        self._address = address
        self._limit = limit
        self._artefacts = artefacts
        self._client: Any = None
        self._campaign = uuid.uuid4().hex
        self.slots = 1

    async def __aenter__(self) -> Self:
        try:
            import distributed
        except ImportError:
            raise ConfigError("--scheduler needs Dask: pip install 'avmm[dask]'") from None
        self._client = distributed.Client(self._address, asynchronous=True, timeout=CONNECTING)
        try:
            await self._client
        except (OSError, ValueError) as error:
            await self._client.close()
            raise ConfigError(f"there is no Dask scheduler at {self._address}: {error}") from None
        threads = await self._client.nthreads()
        if not threads:
            await self._client.close()
            raise ConfigError(f"the scheduler at {self._address} has no workers: start some with `dask worker {self._address}`")
        self.slots = TASKS_PER_THREAD * sum(threads.values())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._client.run(dismiss, self._campaign, on_error="ignore")
        finally:
            await self._client.close()

    async def run(self, slot: int, instance: Instance) -> dict[str, Any]:
        """Run an instance somewhere on the cluster."""
        from distributed import KilledWorker

        future = self._client.submit(
            run_here, self._campaign, instance.as_dict(), os.getcwd(), self._limit, self._artefacts, pure=False
        )
        try:
            answer: dict[str, Any] = await future
        except (KilledWorker, OSError) as lost:
            raise WorkerLost(f"the cluster lost it: {lost}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it is we who are cancelled
                raise
            raise WorkerLost("the cluster cancelled it") from None
        finally:
            future.release()
        return answer
