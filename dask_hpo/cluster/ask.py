"""Asks workers something, each for itself: one that is frozen holds up no other, nor the driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from distributed import Client

#: Whoever takes longer to answer is said to be away.
ANSWER_S = 10.0


async def ask(
    client: Client,
    workers: Collection[str],
    function: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = ANSWER_S,
) -> dict[str, Any]:
    """Run a function on workers, on the client's event loop; return the answers by worker.

    What it raises there is an answer, too. Workers that do not answer in time are left out.
    """

    async def one(worker: str) -> Any:
        asked = client.run(function, *arguments, workers=[worker], on_error="return")
        return (await asyncio.wait_for(asked, timeout_s))[worker]

    names = list(workers)
    answers = await asyncio.gather(*map(one, names), return_exceptions=True)
    return {
        name: answer
        for name, answer in zip(names, answers, strict=True)
        if not isinstance(answer, (OSError, asyncio.TimeoutError, KeyError))
    }
