"""One process that takes part: its membership, what it sees of others, and the partitions that it holds."""

import asyncio
import os
import time
import uuid

from bucket import Bucket, Unavailable, boot, token
from events import Events

STREAM, CONSUMER = os.environ["STREAM"], os.environ["CONSUMER"]
COUNT = int(os.environ["PARTITIONS"])
NAMESPACE = os.environ.get("JETWRIGHT_POD_NAMESPACE", "default")
PAIR = f"{token(STREAM)}.{token(CONSUMER)}"
JOINED = int(time.time())

RENEWAL, LEASE, SKEW = 5, 30, 2
PATIENCE = LEASE + SKEW


class Lost(Exception):
    """The membership is over. What it held is of others, or will be."""


class Member:
    """A membership under one id, which is never used again."""

    def __init__(self, connection):
        self.connection, self.bucket = connection, Bucket(connection)
        self.id = f"{NAMESPACE}.{uuid.uuid4()}"
        self.key = f"member.{self.id}"
        self.revision = 0
        self.sent = self.unsure_since = None
        self.written = self.decided = 0  # of the writes to the own key: the last one, and up to which one all are known
        self.renewed = None  # when the newest confirmed renewal was sent, by both clocks
        self.settled_at = None  # from when on the bucket is old enough, by boot()
        self.seen, self.newest = {}, 0  # by key: revision, value, and when that was first seen
        self.began = self.heard = boot()
        self.partitions = {}
        self.leaving = False

    # The lease

    def lease_left(self):
        """Both clocks are needed: one may stand still, the other may be set back."""
        if self.renewed is None:
            return 0
        return LEASE - max(boot() - self.renewed[0], time.time() - self.renewed[1])

    async def renew(self, **more):
        sent = self.sent = (boot(), time.time())
        self.unsure_since = self.unsure_since or sent
        self.written += 1
        try:
            revision = await self.bucket.write(self.key, self.record() | more, self.revision)
        except Unavailable:
            await self.find_renewal()
        else:
            self.confirmed(revision, sent)

    async def find_renewal(self):
        """A newer revision is a renewal only where its number is that of a write whose answer is missing."""
        found = await self.bucket.get(self.key)
        if found is None and self.revision == 0:
            return
        if found is None or found[1] < self.revision or self.has_ended(*found[1:]):
            raise Lost(found)
        if found[1] > self.revision:
            # An earlier one may have been stored before it, so the earliest counts.
            self.confirmed(found[1], self.unsure_since)

    def has_ended(self, revision, record):
        """What is newer has to be of a write of which it is not known what became of it."""
        is_own = bool(record) and "dead" not in record and self.decided < record.get("renewal", 0) <= self.written
        return revision > self.revision and not is_own

    def confirmed(self, revision, sent):
        self.revision, self.renewed, self.unsure_since = revision, sent, None
        self.decided = self.written

    def record(self):
        figures = {str(number): held.events.figures for number, held in self.partitions.items() if held.events}
        record = {"joined": JOINED, "renewal": self.written, "consumers": {PAIR: {"partitions": figures}}}
        for field, variable in (("pod", "JETWRIGHT_POD_NAME"), ("uid", "JETWRIGHT_POD_UID")):
            if variable in os.environ:
                record[field] = os.environ[variable]
        return record | ({"leaving": True} if self.leaving else {})

    # What others do

    async def look(self):
        """Reads what changed, in the order of the revisions. Whatever the leader has stored is found, sooner or later."""
        while (found := await self.bucket.next(self.newest)) is not None:
            key, self.newest, value = found
            self.seen[key] = (self.newest, value, boot())
        self.heard = boot()

    def value(self, key):
        return self.seen.get(key, (0, None, 0))[1] or {}

    async def write(self, key, value, expected):
        revision = await self.bucket.write(key, value, expected)
        self.seen[key] = (revision, value, boot())
        return revision

    def is_alive(self, member):
        """As far as this process sees."""
        _, record, since = self.seen.get(f"member.{member}", (0, None, 0))
        return record is not None and "dead" not in record and boot() - since < PATIENCE

    async def is_dead(self, member):
        """Who seems dead is dead only when its key says so: from then on it cannot renew its membership."""
        key = f"member.{member}"
        revision, record, since = self.seen.get(key, (0, None, 0))
        if revision == 0:
            return await self.bucket.get(key) is None
        if record is None or "dead" in record:
            return True
        if boot() - since < PATIENCE:
            return False
        # A renewal meanwhile makes this fail.
        await self.write(key, {"consumers": {}, "dead": {"by": self.id, "reason": "Silent"}}, revision)
        return True

    # Who handles what

    def wishes(self):
        """What to do with each partition: have it, keep it as it is, or hand it over."""
        the_map = self.value(f"map.{PAIR}")
        count = the_map.get("count", COUNT)
        candidates = sorted(self.candidates())
        wishes = {}
        for number in {*range(count), *self.partitions}:
            to = the_map.get("partitions", {}).get(str(number), {}).get("to")
            if self.leaving:
                wishes[number] = "hand over"
            elif to == self.id:
                wishes[number] = "have"
            else:
                # Only to a member that takes it. Otherwise no member would handle it.
                wishes[number] = "hand over" if to in candidates else "keep"
        # Of the cluster that shares the partitions out: several may use one account.
        cluster = the_map.get("cluster")
        key = f"operator.{token(cluster)}" if cluster else "operator"
        operator = self.seen.get(key, (0, None, self.began))[2]
        if boot() - operator >= LEASE and boot() - self.heard < RENEWAL and not self.leaving:
            self.share(wishes, count, candidates)
        return wishes

    def candidates(self):
        """The other members that take partitions of this consumer."""
        for key, (_, record, _) in self.seen.items():
            member = key.removeprefix("member.")
            if member not in (key, self.id) and self.is_alive(member):
                if PAIR in record.get("consumers", {}) and not record.get("leaving"):
                    yield member

    def share(self, wishes, count, others):
        """Without an operator: takes an even share of what no living member holds. Members begin at different partitions."""
        share = -(-count // (len(others) + 1))
        first = min(count, share * sum(member < self.id for member in others))
        room = share - len(self.partitions)
        for number in [*range(first, count), *range(first)]:
            held = self.value(f"held.{PAIR}.{number}")
            is_held = held.get("state") != "free" and self.is_alive(held.get("member"))
            if room > 0 and wishes[number] == "keep" and number not in self.partitions and not is_held:
                wishes[number] = "have"
                room -= 1

    async def tend(self):
        for number, wish in self.wishes().items():
            try:
                if number in self.partitions:
                    await self.partitions[number].tend(wish)
                else:
                    await self.take_or_free(number, wish == "have" and self.lease_left() > 0)
            except Unavailable:
                pass

    async def take_or_free(self, number, is_wanted):
        key = f"held.{PAIR}.{number}"
        revision, record, since = self.seen.get(key, (0, None, 0))
        holder, is_free = (record or {}).get("member"), record is None or record.get("state") == "free"
        if record == {}:
            # It may be of a newer version, so its member has time to write again.
            holder, is_free = None, boot() - since >= PATIENCE
        # Where it names this process, a write was stored after its answer had been given up.
        if not is_wanted:
            if holder == self.id and not is_free:
                await self.write(key, {"member": self.id, "state": "free"}, revision)
        elif is_free or holder == self.id or (holder and await self.is_dead(holder)):
            # The revision of this write is the epoch.
            epoch = await self.write(key, {"member": self.id, "state": "held"}, revision)
            self.partitions[number] = Held(self, number, epoch)

    # A membership's life

    async def live(self, stop):
        fence = asyncio.create_task(self.stop_with_the_lease())
        try:
            while not (self.leaving and not self.partitions):
                self.leaving = stop.is_set()
                try:
                    await self.stay()
                except Unavailable:
                    pass
                own = self.seen.get(self.key)
                if own is not None and self.has_ended(*own[:2]):
                    raise Lost(self.id)
                if self.renewed is not None:
                    if self.lease_left() <= 0:
                        raise Lost(self.id)
                    await self.tend()
                await asyncio.sleep(0.25)
        finally:
            fence.cancel()
            self.stop()
            await asyncio.gather(*(held.task for held in self.partitions.values()), return_exceptions=True)
            await self.end()

    async def stay(self):
        is_waited_for = any(held.needs_renewal() for held in self.partitions.values())
        if self.sent is None or is_waited_for or boot() - self.sent[0] >= RENEWAL:
            await self.renew()
        await self.look()
        if self.settled_at is None:
            self.settled_at = boot() + PATIENCE - await self.bucket.age()

    async def stop_with_the_lease(self):
        """Nothing runs beyond the lease, whatever else is under way."""
        while True:
            await asyncio.sleep(0.1)
            if self.renewed is not None and self.lease_left() <= 0:
                self.stop()

    def stop(self):
        for held in self.partitions.values():
            held.task.cancel()

    async def end(self):
        """Nothing runs any more. So others need not wait until this member seems dead."""
        try:
            await self.renew(dead={"by": self.id, "reason": "Left"})
        except (Unavailable, Lost):
            pass


class Held:
    """A partition that this process holds, from its taking until it is free."""

    def __init__(self, member, number, epoch):
        self.member, self.epoch, self.revision = member, epoch, epoch
        self.key, self.number = f"held.{PAIR}.{number}", number
        self.taken = boot()
        self.events = None
        self.task = asyncio.get_running_loop().create_future()

    def needs_renewal(self):
        """A renewal that is sent after the taking proves that the bucket is still the one that was joined."""
        return self.events is None and self.member.renewed[0] < self.taken

    def may_begin(self):
        settled_at = self.member.settled_at
        return not self.needs_renewal() and settled_at is not None and boot() >= settled_at

    async def tend(self, wish):
        revision, record, _ = self.member.seen.get(self.key, (0, None, 0))
        if revision > self.revision:
            self.revision = revision
            if not record or record.get("member") != self.member.id or record.get("state") == "free":
                self.task.cancel()
                del self.member.partitions[self.number]
                return
        if wish == "hand over":
            await self.hand_over()
        elif self.events is None and self.may_begin():
            self.events = Events(self.member, f"{STREAM}.{CONSUMER}-p{self.number}", self.epoch)
            self.task = asyncio.create_task(self.events.run())
        elif self.task.done():
            raise Lost(self.task)

    async def hand_over(self):
        """Once begun, it goes on to its end."""
        if self.events is not None and not self.events.is_draining:
            self.events.drain()
            await self.write("draining")
        elif self.events is None or self.task.done():
            await self.write("free")
            del self.member.partitions[self.number]

    async def write(self, state):
        value = {"member": self.member.id, "state": state, "epoch": self.epoch}
        self.revision = await self.member.write(self.key, value, self.revision)
