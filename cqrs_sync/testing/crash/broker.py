"""Brokers in a scenario: one that writes to the ledger, and all of them under observation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.testing.crash.recorder import Recorder, current


class LedgerBroker(MessageBroker):
    """Writes each message to the ledger, where it stays when the process is killed.

    Raises:
        ConfigurationError: it sends outside of a scenario, where there is no ledger.
    """

    def send_message(self, message: Message) -> None:
        """Write the message down."""
        recorder = current()
        if recorder is None:
            raise ConfigurationError("a LedgerBroker works inside of a CrashKit's scenario only")
        recorder.write("message", message=message.to_dict())


def observe_brokers(recorder: Recorder) -> None:
    """Count the calls of every broker class of this process, those included that are still to be defined."""

    def on_definition(cls: type[MessageBroker], /, **options: Any) -> None:
        super(MessageBroker, cls).__init_subclass__(**options)
        _observe(cls, recorder)

    MessageBroker.__init_subclass__ = classmethod(on_definition)  # type: ignore[assignment]
    for known in list(_subclasses(MessageBroker)):
        _observe(known, recorder)


def _subclasses(base: Any) -> Iterator[Any]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _observe(cls: type[MessageBroker], recorder: Recorder) -> None:
    """Wrap the methods that the class itself defines; the port's own ``send_messages`` is a loop and no I/O."""
    for name, wrap in (("send_message", _single), ("send_messages", _batch)):
        method: Any = vars(cls).get(name)
        if callable(method) and not hasattr(method, "__crash_observed__"):
            observed = wrap(method, recorder)
            observed.__crash_observed__ = True
            setattr(cls, name, observed)


def _single(method: Callable[..., Any], recorder: Recorder) -> Any:
    @functools.wraps(method)
    def send_message(self: MessageBroker, message: Message) -> Any:
        with recorder.crossing("send", f"{message.message_name} to {message.topic}"):
            return method(self, message)

    return send_message


def _batch(method: Callable[..., Any], recorder: Recorder) -> Any:
    @functools.wraps(method)
    def send_messages(self: MessageBroker, messages: Sequence[Message]) -> Any:
        with recorder.crossing("batch", f"{len(messages)} messages"):
            return method(self, messages)

    return send_messages
