"""What this program is for."""

import asyncio
import os
import time


async def handle(message, epoch):
    """An effect elsewhere is fenced by the epoch: what stores it refuses an epoch that is lower than the last it saw."""
    event = f"{message.subject} {message.metadata.sequence.stream} {epoch} {message.data.decode()}"
    print(f"{time.monotonic_ns()} begin {event}", flush=True)
    end = "abandoned"
    try:
        await asyncio.sleep(float(os.environ.get("HANDLER_SECONDS", "0")))
        end = "done"
    finally:
        print(f"{time.monotonic_ns()} {end} {event}", flush=True)
