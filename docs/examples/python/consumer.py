"""A consumer that shares the partitions of an ordered consumer with other processes, in whatever language they are written.

docs/partitions-protocol.md explains it. Variables: NATS_URL, STREAM, CONSUMER (the logical name), PARTITIONS (how many there are).
"""

import asyncio
import os
import signal
import sys

import nats
from events import reconnected
from membership import Lost, Member


async def main():
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
    connection = await nats.connect(url, max_reconnect_attempts=-1, reconnected_cb=reconnected)
    is_over = False
    while not is_over:
        member = Member(connection)
        print(f"# joins as {member.id}", file=sys.stderr, flush=True)
        try:
            await member.live(stop)
            is_over = True
        except Lost as why:
            print(f"# {member.id} is over: {why}", file=sys.stderr, flush=True)
            is_over = stop.is_set()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
