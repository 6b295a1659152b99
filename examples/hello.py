"""One command, one handler, one mediator."""

import punq

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap


class UserCreated(cqrs.Response):
    user_id: str


class CreateUser(cqrs.Request[UserCreated]):
    email: str
    name: str


class CreateUserHandler(cqrs.RequestHandler[CreateUser]):
    def handle(self, request: CreateUser) -> UserCreated:
        return UserCreated(user_id=f"user_{request.email}")


if __name__ == "__main__":
    with bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda commands: commands.bind(CreateUser, CreateUserHandler),
    ) as mediator:
        created = mediator.send(CreateUser(email="ada@example.com", name="Ada"))
        print(f"created {created.user_id}")
