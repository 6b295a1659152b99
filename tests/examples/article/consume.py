import functools

import punq
import pydantic

import cqrs_sync as cqrs
from cqrs_sync.events import bootstrap


class UserCreatedPayload(pydantic.BaseModel):
    user_id: str


class OnUserCreated(cqrs.EventHandler[cqrs.NotificationEvent[UserCreatedPayload]]):
    def handle(
        self,
        e: cqrs.NotificationEvent[UserCreatedPayload],
    ) -> None:
        _ = e.payload.user_id  # your integration logic


@functools.lru_cache(maxsize=1)  # one mediator per process
def mediator_factory() -> cqrs.EventMediator:
    def em(m: cqrs.EventMap) -> None:
        m.bind(
            cqrs.NotificationEvent[UserCreatedPayload],
            OnUserCreated,
        )

    return bootstrap.bootstrap(di_container=punq.Container(), events_mapper=em)


# The article's FastStream broker and subscriber stand around this function.
def on_message(
    body: cqrs.NotificationEvent[UserCreatedPayload],
    mediator: cqrs.EventMediator,
) -> None:
    mediator.send(body)  # same handlers as in your service
