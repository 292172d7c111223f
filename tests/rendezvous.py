"""Where the ranks of a thread double meet: messages are matched in order, a deadlock is found the moment it happens."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OWN_FILES = {str(Path(__file__)), str(Path(__file__).with_name("doubles.py")), threading.__file__}


class DeadlockError(AssertionError):
    """Every rank that still runs waits for something that none of them will do."""


class TruncationError(AssertionError):
    """A message is longer than the buffer that receives it."""


class Stopped(BaseException):
    """Unwinds a rank because another one failed; no ``except Exception`` may swallow it."""


@dataclass
class Post:
    """One side of a message: what a rank put up to be matched."""

    what: str
    capacity: int
    payload: bytes | None = None
    done: bool = False


@dataclass
class _Channel:
    sends: deque[Post] = field(default_factory=deque)
    receives: deque[Post] = field(default_factory=deque)

    def match(self) -> None:
        while self.sends and self.receives:
            send, receive = self.sends.popleft(), self.receives.popleft()
            receive.payload = send.payload
            send.done = receive.done = True


class Rendezvous:
    """One for all communicators of a run; ranks are those of the world."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._channels: dict[Any, _Channel] = {}
        self._gatherings: dict[Any, dict[int, tuple[str, Any]]] = {}
        self._waiting: dict[int, tuple[str, Callable[[], bool]]] = {}
        self._running: dict[int, int] = {}

    def begin(self, rank: int) -> None:
        """The calling thread is this rank from now on."""
        with self._changed:
            self._running[rank] = threading.get_ident()

    def end(self, rank: int) -> None:
        """The rank has returned: whoever waits for it now waits for ever."""
        with self._changed:
            del self._running[rank]
            self._find_deadlock()

    def fail(self, error: BaseException) -> None:
        """The first failure counts; all others stop where they wait."""
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()

    def post_send(self, channel: Any, what: str, payload: bytes) -> Post:
        """Put up a message, to be matched with the first receive of this channel that is not yet matched."""
        post = Post(what, len(payload), payload)
        with self._changed:
            self._put(channel, lambda found: found.sends.append(post))
        return post

    def post_receive(self, channel: Any, what: str, capacity: int) -> Post:
        """Ask for a message of up to ``capacity`` bytes."""
        post = Post(what, capacity)
        with self._changed:
            self._put(channel, lambda found: found.receives.append(post))
        return post

    def wait(self, rank: int, post: Post) -> None:
        """Until the other side is there too."""
        self._wait(rank, post.what, lambda: post.done)
        if post.payload is not None and len(post.payload) > post.capacity:
            raise TruncationError(f"rank {rank}, {post.what}: {len(post.payload)} bytes arrived")

    def gather(self, key: Any, rank: int, position: int, members: int, call: str, value: Any) -> list[Any]:
        """A collective call: what each member gave, in order of its position."""
        with self._changed:
            gathering = self._gatherings.setdefault(key, {})
            gathering[position] = (call, value)
            calls = {other: name for other, (name, _) in sorted(gathering.items())}
            self._changed.notify_all()
        if len(set(calls.values())) > 1:
            raise AssertionError(f"ranks call different collectives at the same time: {calls}")
        self._wait(rank, f"{call} with the other members", lambda: len(gathering) == members)
        return [gathering[position][1] for position in range(members)]

    def unfinished(self) -> list[str]:
        """Messages that only one side knows of."""
        with self._changed:
            return [post.what for channel in self._channels.values() for post in (*channel.sends, *channel.receives)]

    def picture(self) -> str:
        """What each rank is doing, one line each."""
        with self._changed:
            return self._picture()

    def _put(self, channel: Any, put: Callable[[_Channel], None]) -> None:
        found = self._channels.setdefault(channel, _Channel())
        put(found)
        found.match()
        self._changed.notify_all()

    def _wait(self, rank: int, what: str, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._waiting[rank] = (what, ready)
            self._find_deadlock()
            while not ready() and self.failure is None:
                self._changed.wait()
            del self._waiting[rank]
            if self.failure is not None:
                raise Stopped

    def _find_deadlock(self) -> None:
        stuck = self._running and set(self._running) == set(self._waiting)
        if stuck and self.failure is None and not any(ready() for _, ready in self._waiting.values()):
            self.failure = DeadlockError("deadlock\n" + self._picture())
            self._changed.notify_all()

    def _picture(self) -> str:
        return "\n".join(f"  rank {rank}: {self._state(rank)}" for rank in range(self.world_size))

    def _state(self, rank: int) -> str:
        if rank not in self._running:
            return "has ended"
        doing = f"waits in {self._waiting[rank][0]}" if rank in self._waiting else "computes"
        return f"{doing}, {_position(self._running[rank])}"


def _position(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    frames = [entry for entry in traceback.extract_stack(frame) if entry.filename not in _OWN_FILES]
    where = frames[-1]
    return f"at {Path(where.filename).name}:{where.lineno} in {where.name}: {where.line}"
