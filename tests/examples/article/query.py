import punq

import cqrs_sync as cqrs
from cqrs_sync.requests import bootstrap


class GetUserByEmail(cqrs.Request):
    email: str


class UserDto(cqrs.Response):
    user_id: str
    name: str


class GetUserHandler(cqrs.RequestHandler[GetUserByEmail, UserDto]):
    def handle(self, request: GetUserByEmail) -> UserDto:
        return UserDto(user_id="u1", name="Ada")  # e.g. DB / cache read


mediator = bootstrap.bootstrap(
    di_container=punq.Container(),
    commands_mapper=lambda m: m.bind(GetUserByEmail, GetUserHandler),
)

user = mediator.send(GetUserByEmail(email="a@b.c"))
