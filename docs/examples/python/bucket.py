"""The bucket of the protocol: its keys, and requests to the leader of its stream."""

import asyncio
import base64
import json
import time
from datetime import datetime

from nats.errors import Error as NatsError

PREFIX = "$KV.jetwright."
PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Unavailable(Exception):
    """No answer, or none that says anything: what the key says decides, and it is read before the next attempt."""


def boot():
    """Seconds that also count while the machine is suspended. For what others did or did not do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def token(name):
    """The name of a stream, a consumer or a cluster, as a token of a key."""
    return "".join(chr(byte) if chr(byte) in PLAIN else f"={byte:02X}" for byte in name.encode())


class Bucket:
    """Only the leader answers: another replica may be behind."""

    def __init__(self, connection):
        self.connection = connection

    async def ask(self, subject, request=None, headers=None):
        try:
            payload = json.dumps(request or {}).encode()
            answer = await self.connection.request(subject, payload, timeout=2, headers=headers)
            return json.loads(answer.data)
        except (NatsError, asyncio.TimeoutError, ValueError) as error:
            raise Unavailable(subject) from error

    async def write(self, key, value, expected):
        """The new revision, if the key had the expected one; 0 expects that it has no value."""
        headers = {
            "Nats-Expected-Stream": "KV_jetwright",
            "Nats-Expected-Last-Subject-Sequence": str(expected),
        }
        answer = await self.ask(PREFIX + key, value, headers)
        if "seq" not in answer:
            # 10071 too says nothing: the other revision may be that of this write, sent before.
            raise Unavailable(answer)
        return answer["seq"]

    async def get(self, key):
        """Key, revision and value, or None if there is no message."""
        return await self.read({"last_by_subj": PREFIX + key})

    async def next(self, after):
        """The next change after this revision, of whatever key."""
        return await self.read({"seq": after + 1, "next_by_subj": PREFIX + ">"})

    async def read(self, request):
        answer = await self.ask("$JS.API.STREAM.MSG.GET.KV_jetwright", request)
        if answer.get("error", {}).get("err_code") == 10037:
            return None
        if "message" not in answer:
            raise Unavailable(answer)
        message = answer["message"]
        return message["subject"].removeprefix(PREFIX), message["seq"], value_of(message)

    async def age(self):
        """Seconds since the bucket was made, by the server's clock: at least so many."""
        answer = await self.ask("$JS.API.STREAM.INFO.KV_jetwright")
        if "created" not in answer:
            raise Unavailable(answer)
        now, created = (datetime.fromisoformat(answer[field][:19]) for field in ("ts", "created"))
        return (now - created).total_seconds() - 1


def value_of(message):
    """None where the key is deleted, and {} where the value cannot be read. Unknown fields are ignored."""
    headers = base64.b64decode(message.get("hdrs", "")).decode(errors="replace")
    if "KV-Operation:" in headers or "Nats-Marker-Reason:" in headers:
        return None
    try:
        value = json.loads(base64.b64decode(message.get("data", "")))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
