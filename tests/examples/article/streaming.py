import time
import typing

import punq

import cqrs_sync as cqrs
from cqrs_sync.message_brokers import devnull
from cqrs_sync.requests import bootstrap
from cqrs_sync.requests.request_handler import StreamingRequestHandler


class ProcessFilesCommand(cqrs.Request):
    file_ids: list[str]


class FileResult(cqrs.Response):
    file_id: str
    status: str


class FileDone(cqrs.DomainEvent):
    file_id: str


class OnFileDone(cqrs.EventHandler[FileDone]):
    def handle(self, event: FileDone) -> None:
        return


def domain_events(m: cqrs.EventMap) -> None:
    m.bind(FileDone, OnFileDone)


class ProcessFilesHandler(StreamingRequestHandler[ProcessFilesCommand, FileResult]):
    def __init__(self) -> None:
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(
        self,
        request: ProcessFilesCommand,
    ) -> typing.Iterator[FileResult]:
        for file_id in request.file_ids:
            time.sleep(0.01)  # simulate work
            self._events.append(FileDone(file_id=file_id))
            yield FileResult(file_id=file_id, status="ok")  # one chunk per file


mediator = bootstrap.bootstrap_streaming(
    di_container=punq.Container(),
    commands_mapper=lambda m: m.bind(ProcessFilesCommand, ProcessFilesHandler),
    domain_events_mapper=domain_events,
    message_broker=devnull.DevnullMessageBroker(),  # swap for real broker if you publish from here
    max_concurrent_event_handlers=5,
)


def run_stream() -> None:
    for chunk in mediator.stream(
        ProcessFilesCommand(file_ids=["1", "2", "3"]),
    ):
        if chunk:
            print(chunk.file_id, chunk.status)  # noqa: T201
