import punq

import cqrs_sync as cqrs
from cqrs_sync.requests import bootstrap


# 1) Contract: what goes in / what comes out (CQRS: this is a “write” path).
class CreateUserCommand(cqrs.Request):
    email: str
    name: str


class CreateUserResponse(cqrs.Response):
    user_id: str


# 2) Pure handler: no FastAPI, no Kafka—only business logic.
class CreateUserHandler(cqrs.RequestHandler[CreateUserCommand, CreateUserResponse]):
    def handle(self, request: CreateUserCommand) -> CreateUserResponse:
        user_id = f"user_{request.email}"
        return CreateUserResponse(user_id=user_id)


# 3) Mediator: map command type → handler, resolve via DI.
mediator = bootstrap.bootstrap(
    di_container=punq.Container(),
    commands_mapper=lambda m: m.bind(CreateUserCommand, CreateUserHandler),
)

result = mediator.send(
    CreateUserCommand(email="user@example.com", name="John"),
)
