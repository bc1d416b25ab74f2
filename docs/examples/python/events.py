"""The events of one partition, one at a time, in the order of the stream."""

import asyncio
import json
import sys

from nats.errors import Error as NatsError

from bucket import Bucket, Unavailable, boot
from handler import handle

MAX_PULL, PULL_MARGIN = 10, 2
ROOM, MAX_ACK_PENDING, REMEMBERED = 32, 256, 10_000
IN_PROGRESS, INFO = 3, 0.25

RUNNING = set()


async def reconnected():
    for events in RUNNING:
        events.expected, events.asked_for = None, 0
        events.doubt()


class Events:
    def __init__(self, member, consumer, epoch):
        self.member, self.connection = member, member.connection
        self.consumer, self.epoch = consumer, epoch
        self.waiting = {}  # by stream sequence: the delivery, and when it came
        self.running = None
        self.done = {}  # handled, and not confirmed yet: where the acknowledgement goes
        self.settled = {}  # the newest that are confirmed: a redelivery may have been on its way
        self.expected = None  # number of the next delivery
        self.doubted = boot()  # another process may have left deliveries unsettled
        self.was_led = False
        self.asked_for, self.pull_ends = 0, 0
        self.arrived = asyncio.Event()
        self.is_draining = False
        self.figures = {"delivered": 0, "ackFloor": 0, "pending": 0, "ackPending": 0, "busy": False, "running": 0, "queued": 0}

    async def run(self):
        self.inbox = self.connection.new_inbox()
        subscription = await self.connection.subscribe(self.inbox, cb=self.received)
        RUNNING.add(self)
        keeper = asyncio.create_task(self.keep())
        try:
            while not self.is_draining:
                await self.pull()
                if self.doubted is not None:
                    await self.recover()
                elif not self.waiting:
                    await self.wait(0.1)
                elif self.member.lease_left() > 0:
                    await self.attempt(self.waiting.pop(min(self.waiting))[0])
                else:
                    await asyncio.sleep(0.1)
            await self.give_back(subscription)
        finally:
            RUNNING.discard(self)
            keeper.cancel()
            if not self.is_draining:
                await subscription.unsubscribe()

    async def wait(self, seconds):
        self.arrived.clear()
        try:
            await asyncio.wait_for(self.arrived.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    # Deliveries

    async def pull(self):
        """A request ends before the lease: the server serves the open requests of a process that was stopped, too."""
        if self.asked_for > 0 and boot() < self.pull_ends:
            return
        room = (MAX_ACK_PENDING if self.doubted is not None else ROOM) - len(self.waiting)
        expires = min(MAX_PULL, self.member.lease_left() - PULL_MARGIN)
        if room > 0 and expires > 0 and self.connection.is_connected:
            self.asked_for, self.pull_ends = room, boot() + expires
            request = json.dumps({"batch": room, "expires": int(expires * 1e9)}).encode()
            await self.connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self.consumer}", request, reply=self.inbox)

    async def received(self, message):
        if not message.reply:
            self.asked_for = 0  # a status, by which the request ends
            return
        self.asked_for -= 1
        sequence, number = message.metadata.sequence.stream, message.metadata.sequence.consumer
        # One process pulls, so deliveries are numbered without a hole. A hole proves that one was lost.
        if self.expected is not None and number != self.expected:
            self.doubt()
        self.expected = number + 1
        if sequence in self.done or sequence in self.settled:
            self.settled.pop(sequence, None)
            self.done[sequence] = message.reply
            self.doubt()
        elif self.running is not None and sequence == self.running.metadata.sequence.stream:
            self.running = message
        else:
            self.waiting[sequence] = (message, boot())
        self.figures |= {"delivered": sequence, "pending": message.metadata.num_pending}
        self.arrived.set()

    async def keep(self):
        """What is here is not delivered again."""
        while True:
            await asyncio.sleep(IN_PROGRESS)
            here = [message for message, _ in self.waiting.values()] + ([self.running] if self.running else [])
            self.figures |= {"ackPending": len(here), "busy": bool(self.waiting), "running": len(here) - len(self.waiting), "queued": len(self.waiting)}
            for message in here:
                if self.member.lease_left() > 0 and self.connection.is_connected:
                    await self.connection.publish(message.reply, b"+WPI")

    # The order

    def doubt(self):
        self.doubted = boot()

    async def recover(self):
        """Begins nothing until all deliveries that JetStream counts as unacknowledged are here."""
        await self.confirm()
        asked = boot()
        try:
            info = await Bucket(self.connection).ask(f"$JS.API.CONSUMER.INFO.{self.consumer}")
        except Unavailable:
            info = {}
        if "delivered" in info and asked >= self.doubted and self.is_complete(info, asked):
            self.doubted = None
        else:
            await self.wait(INFO)

    def is_complete(self, info, asked):
        is_led = bool(info.get("cluster", {}).get("leader"))
        if self.was_led and not is_led:
            return False  # of a server that starts: it counts nothing yet
        self.was_led = is_led
        delivered, floor = info["delivered"]["stream_seq"], info["ack_floor"]["stream_seq"]
        # Of what is beyond, a server that was killed forgot that it delivered it. It is delivered again.
        self.waiting = {it: kept for it, kept in self.waiting.items() if it <= delivered or kept[1] >= asked}
        self.done = {it: reply for it, reply in self.done.items() if floor < it <= delivered}
        here = sum(floor < sequence <= delivered for sequence in self.waiting)
        if info["num_ack_pending"] > here or max(self.waiting, default=0) > delivered:
            return False
        self.expected = max(self.expected or 0, info["delivered"]["consumer_seq"] + 1)
        return True

    # An event

    async def attempt(self, message):
        self.running = message
        sequence = message.metadata.sequence.stream
        try:
            await handle(message, self.epoch)
        except Exception as error:
            # It is tried again in its place, so that no later event of its key overtakes it.
            print(f"# event {sequence} failed, will retry: {error}", file=sys.stderr, flush=True)
            self.waiting[sequence], self.running = (self.running, boot()), None
            await asyncio.sleep(1)
        else:
            self.done[sequence], self.running = self.running.reply, None
            await self.confirm()

    async def confirm(self):
        """Repeats acknowledgements until they are confirmed. They only say what is true, so they need no lease."""
        for sequence, reply in list(self.done.items()):
            try:
                await self.connection.request(reply, b"+ACK", timeout=1)
            except (NatsError, asyncio.TimeoutError):
                return self.doubt()
            self.done.pop(sequence, None)
            self.settled[sequence] = None
            self.figures["ackFloor"] = sequence
            if len(self.settled) > REMEMBERED:
                del self.settled[next(iter(self.settled))]

    # The end

    def drain(self):
        self.is_draining = True
        self.arrived.set()

    async def give_back(self, subscription):
        """The last own pull request is over first: JetStream would serve it with what is given back."""
        try:
            await subscription.drain()
            if self.done:
                await self.confirm()
            for sequence in sorted(self.waiting):
                await self.connection.publish(self.waiting[sequence][0].reply, b"-NAK")
            await self.connection.flush()
        except (NatsError, asyncio.TimeoutError):
            pass  # ackWait does what the naks would have done sooner
