"""The process of an embedded cluster's worker: a Dask nanny that lives as long as its driver.

It is started afresh (``python -m``) and not by multiprocessing, which would import the driver's
main module again: a script without ``if __name__ == "__main__"`` would begin its search twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading

#: Seconds for an orderly end once the driver is gone; the nanny's own time-outs are longer.
END_WITHIN_S = 10.0


async def serve(scheduler: str, options: str) -> None:
    """Run a nanny until the other end of stdin closes: the driver ended, in whatever way."""
    from distributed import Nanny  # noqa: PLC0415 - sys.path is the driver's only now

    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Nanny(scheduler, **json.loads(options)):
        await reader.read()
        deadline = threading.Timer(END_WITHIN_S, os._exit, args=[1])
        deadline.daemon = True
        deadline.start()


def main(scheduler: str, options: str, path: str) -> None:
    """Serve the Dask scheduler at an address; the nanny's options and sys.path come as JSON."""
    sys.path[:] = json.loads(path)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(scheduler, options))


if __name__ == "__main__":
    main(*sys.argv[1:])
