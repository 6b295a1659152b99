"""A request that is answered piece by piece; who stops early stops the handler too."""

from collections.abc import Iterator
from contextlib import closing

import punq

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap_streaming


class FileDone(cqrs.Response):
    name: str
    done: int
    of: int


class ScanFiles(cqrs.Request[FileDone]):
    names: list[str]


class ScanFilesHandler(cqrs.StreamingRequestHandler[ScanFiles]):
    def handle(self, request: ScanFiles) -> Iterator[FileDone]:
        try:
            for number, name in enumerate(request.names, start=1):
                yield FileDone(name=name, done=number, of=len(request.names))
        finally:
            print("scanner closed")


if __name__ == "__main__":
    with bootstrap_streaming(
        di_container=punq.Container(),
        commands_mapper=lambda commands: commands.bind(ScanFiles, ScanFilesHandler),
    ) as mediator:
        for piece in mediator.stream(ScanFiles(names=["a.txt", "b.txt"])):
            print(f"{piece.done} of {piece.of}: {piece.name}")

        with closing(mediator.stream(ScanFiles(names=["c.txt", "d.txt", "e.txt"]))) as pieces:
            print(f"only the first: {next(pieces).name}")
