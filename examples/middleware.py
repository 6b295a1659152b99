"""A middleware that repeats a call that failed; each attempt gets a new handler (and a new unit of work)."""

import time
from typing import Any

import punq

import cqrs_sync as cqrs
from cqrs_sync.middlewares.base import HandleType
from cqrs_sync.requests.bootstrap import bootstrap


class Retry:
    """Repeats a call after a ConnectionError, waiting twice as long (in seconds) each time."""

    def __init__(self, attempts: int = 3, delay: float = 0.01) -> None:
        self._attempts = attempts
        self._delay = delay

    def __call__(self, request: Any, handle: HandleType) -> Any:
        for attempt in range(1, self._attempts):
            try:
                return handle(request)
            except ConnectionError as error:
                print(f"attempt {attempt} failed: {error}")
                time.sleep(self._delay * 2 ** (attempt - 1))
        return handle(request)


class RateService:
    """Answers the third time it is asked."""

    asked = 0

    def rate(self, currency: str) -> float:
        self.asked += 1
        if self.asked < 3:
            raise ConnectionError(f"no answer about {currency}")
        return 1.08


class GetRate(cqrs.Request[float]):
    currency: str


class GetRateHandler(cqrs.RequestHandler[GetRate]):
    def __init__(self, service: RateService) -> None:
        self._service = service

    def handle(self, request: GetRate) -> float:
        return self._service.rate(request.currency)


if __name__ == "__main__":
    container = punq.Container()
    container.register(RateService, instance=RateService())
    with bootstrap(container, middlewares=[Retry()], queries_mapper=lambda m: m.bind(GetRate, GetRateHandler)) as rates:
        print(f"the rate is {rates.send(GetRate(currency='USD'))}")
