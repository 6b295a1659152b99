"""Publishes what is in the shop's outbox, until it is told to stop: ``python -m examples.shop.relay --help``.

In production this is a service of its own, or a thread in each process of the shop: ``with OutboxRelay(...):``.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy.orm import sessionmaker

from cqrs_sync.message_brokers import Message, MessageBroker
from cqrs_sync.outbox import OutboxRelay
from examples.shop.database import connect
from examples.shop.outbox import open_outbox
from examples.shop.topics import JournalBroker

BATCH = 20
"""Few, because SQLite lets nobody else write while a batch is under way; on a server, leave the default."""

SIGKILL = 9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a relay until SIGTERM or Ctrl-C."""
    options = _options(arguments)
    engine = connect(options.database)
    broker = _kafka(options.kafka) if options.kafka else JournalBroker(options.journal)
    with closing(broker):
        relay = OutboxRelay(
            sessionmaker(engine),
            broker if options.killed_after is None else KilledAfter(broker, options.killed_after),
            batch_size=BATCH,
            poll_interval=0.1,  # seconds; a commit in another process does not wake it
            repository=open_outbox,
        )
        relay.run_forever()
    engine.dispose()
    return 0


class KilledAfter(MessageBroker):
    """Kills its process, as ``kill -9`` does, when the broker has so many messages and the last are not marked yet."""

    def __init__(self, broker: MessageBroker, messages: int) -> None:
        self._broker = broker
        self._left = messages

    def send_message(self, message: Message) -> None:
        """Send a message; it may be the last."""
        self._broker.send_message(message)
        self._count(1)

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Send a batch; it may be the last."""
        results = self._broker.send_messages(messages)
        self._count(len(messages))
        return results

    def _count(self, messages: int) -> None:
        self._left -= messages
        if self._left <= 0:
            os.kill(os.getpid(), SIGKILL)


def _kafka(address: str) -> MessageBroker:
    from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
    from cqrs_sync.message_brokers.kafka import KafkaMessageBroker

    return KafkaMessageBroker(ConfluentProducerAdapter(bootstrap_servers=[address]))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.shop.relay", description="Publishes the shop's outbox.")
    parser.add_argument("--database", required=True, help="SQLite file or URL of the shop")
    broker = parser.add_mutually_exclusive_group(required=True)
    broker.add_argument("--kafka", metavar="HOST:PORT", help="publish to this Kafka")
    broker.add_argument("--journal", type=Path, help="append to this file")
    parser.add_argument("--killed-after", type=int, metavar="N", help="be killed when the broker has N events")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
