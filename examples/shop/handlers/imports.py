"""Importing a file of orders, as a stream."""

from collections.abc import Iterator

import pydantic

import cqrs_sync as cqrs
from examples.shop.errors import OrderRejected
from examples.shop.messages import ImportedLine, ImportOrders, PlaceOrder, Rejection

REASONS = {"json_invalid": "broken JSON", "missing": "missing field"}


class ImportOrdersHandler(cqrs.StreamingRequestHandler[ImportOrders]):
    """Places one order per line, each in a unit of work of its own: a bad line stops nothing."""

    def __init__(self, mediator: cqrs.RequestMediator) -> None:
        self._mediator = mediator

    def handle(self, request: ImportOrders) -> Iterator[ImportedLine]:
        with request.path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield self._place(number, line.strip())

    def _place(self, number: int, line: str) -> ImportedLine:
        try:
            confirmation = self._mediator.send(PlaceOrder.model_validate_json(line))
        except pydantic.ValidationError as error:
            return ImportedLine(number=number, rejection=_unreadable(error))
        except OrderRejected as error:
            return ImportedLine(number=number, rejection=Rejection(reason=error.reason, detail=str(error)))
        return ImportedLine(number=number, confirmation=confirmation)


def _unreadable(error: pydantic.ValidationError) -> Rejection:
    """Name the first thing that is wrong with a line."""
    problem = error.errors()[0]
    field = ".".join(map(str, problem["loc"]))
    reason = REASONS.get(problem["type"], f"bad {field}")
    return Rejection(reason=reason, detail=f"{field}: {problem['msg']}" if field else problem["msg"])
