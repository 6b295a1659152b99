"""Runs the relay beside the import, starts it again after it was killed, and checks what has arrived of the orders."""

import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console

from examples.shop.application import Shop
from examples.shop.messages import FindUnknownOrders, GetOutboxState, ImportedLine, OrderConfirmation
from examples.shop.relay import SIGKILL
from examples.shop.topics import Arrival, Topic

ROOT = Path(__file__).parents[2]

AWAY = 40
"""For how many lines of the import nobody starts the killed relay again."""


class RelayProcess:
    """The relay in a process of its own, and what was in its hands when it was killed.

    Attributes:
        in_hand: ids of the events that the broker had and the outbox did not know it.
    """

    def __init__(self, shop: Shop, topic: Topic, database: Path | str, console: Console, killed_after: int) -> None:
        self.in_hand: set[uuid.UUID] = set()
        self._shop = shop
        self._topic = topic
        self._console = console
        self._command = [sys.executable, "-m", "examples.shop.relay", "--database", str(database), *topic.options]
        self._process = self._start("--killed-after", str(max(killed_after, 1)))

    def beside(self, lines: Iterable[ImportedLine]) -> Iterator[ImportedLine]:
        """Pass the lines of the import on, and look after the relay meanwhile."""
        start_at = 0
        for line in lines:
            yield line
            if self._is_killed(f"at line {line.number}"):
                start_at = line.number + AWAY
            elif self._process.returncode is not None and line.number >= start_at:
                self._start_again(f"at line {line.number}")

    def finish(self, patience: float = 60.0) -> int:
        """Wait until the outbox is empty, and stop the relay; returns how many events still wait after ``patience``."""
        until = time.monotonic() + patience
        while self._waiting() and time.monotonic() < until:
            self._is_killed("after the import")
            if self._process.returncode is not None:
                self._start_again("after the import")
            time.sleep(0.05)
        self._process.terminate()  # SIGTERM: it ends what is in its hands first
        self._process.wait(30)
        return self._waiting()

    def _is_killed(self, when: str) -> bool:
        """Whether that has happened since the last look."""
        if self._process.returncode is not None:
            return False
        code = self._process.poll()
        if code is None:
            return False
        if abs(code) != SIGKILL:
            raise RuntimeError(f"the relay ended by itself, with exit code {code}")
        arrived = {arrival.event_id for arrival in self._topic.arrivals()}
        self.in_hand = arrived - self._shop.requests.send(GetOutboxState()).published
        self._say(f"relay killed {when}: {len(arrived)} events at the broker, {len(self.in_hand)} not marked yet")
        return True

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _waiting(self) -> int:
        return self._shop.requests.send(GetOutboxState()).waiting

    def _start_again(self, when: str) -> None:
        self._say(f"relay started again {when}: {self._waiting()} events wait in the outbox")
        self._process = self._start()

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._command, *options], cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Delivery:
    """What has arrived, beside what was to arrive; each method lists what is wrong.

    Args:
        shop: knows the orders.
        placed: the orders of this import, in their order.
        arrivals: what the broker has, in its order.
        in_hand: events that may be there twice.
    """

    def __init__(
        self, shop: Shop, placed: Sequence[OrderConfirmation], arrivals: Sequence[Arrival], in_hand: set[uuid.UUID]
    ) -> None:
        self._shop = shop
        self._placed = placed
        first: dict[uuid.UUID, Arrival] = {}
        for arrival in arrivals:
            first.setdefault(arrival.event_id, arrival)
        self._first = [arrival for arrival in first.values() if arrival.event_name == "order_placed"]
        times = Counter(arrival.event_id for arrival in arrivals)
        self.twice = {event_id for event_id, count in times.items() if count > 1}
        self._in_hand = in_hand

    def missing(self) -> list[str]:
        """Accepted orders of which nobody was told."""
        told = {arrival.order_id for arrival in self._first}
        return [f"{order.order_id} is missing" for order in self._placed if order.order_id not in told]

    def without_order(self) -> list[str]:
        """Events of orders that are not there."""
        unknown = self._shop.requests.send(FindUnknownOrders(order_ids={arrival.order_id for arrival in self._first}))
        return [f"{order_id} is no order" for order_id in unknown]

    def repeated(self) -> list[str]:
        """Events that arrived twice without need."""
        return [f"{event_id} was sent again" for event_id in self.twice - self._in_hand]

    def out_of_order(self) -> list[str]:
        """Customers whose events arrived in another order than that of their orders."""
        wrong = []
        for customer in sorted({order.customer for order in self._placed}):
            placed = [order.order_id for order in self._placed if order.customer == customer]
            told = [one.order_id for one in self._first if one.customer == customer and one.order_id in placed]
            if told != sorted(told, key=placed.index):
                wrong.append(f"{customer}: {', '.join(told)}")
        return wrong
