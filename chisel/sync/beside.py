"""Have a task run beside a block of code, and end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

Arguments = TypeVarTuple("Arguments")


@asynccontextmanager
async def beside(
    do: Callable[[*Arguments], Coroutine[Any, Any, Any]], *arguments: *Arguments
) -> AsyncIterator[TaskGroup]:
    """Run a task while the block does, cancelled at its end; gives the group, for more of them.

    What the block raises itself leaves as it is, in no group.
    """
    trouble: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(do, *arguments)
        try:
            yield tasks
        except Exception as error:  # noqa: BLE001 - raised again below
            trouble = error
        tasks.cancel_scope.cancel()
    if trouble is not None:
        raise trouble
