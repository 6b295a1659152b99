"""Flask with a unit of work, an outbox, and a relay: ``pip install flask``. For gunicorn see docs/outbox.md."""

import sys
import tempfile

import punq
from sqlalchemy import Column, Engine, String, Table, create_engine
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.message_brokers import InMemoryMessageBroker, MessageBroker
from cqrs_sync.outbox import OutboxModel
from cqrs_sync.requests.bootstrap import bootstrap

try:
    import flask
except ImportError:
    print("skipped: this example needs Flask, pip install flask")
    sys.exit()


users = Table("users", OutboxModel.metadata, Column("name", String, primary_key=True))


class Join(cqrs.Request[None]):
    name: str


class JoinHandler(cqrs.RequestHandler[Join]):
    def __init__(self, session: Session) -> None:  # the session of this send; it is committed behind the handler
        self._session = session

    def handle(self, request: Join) -> None:
        self._session.execute(users.insert().values(name=request.name))
        self.events = [cqrs.NotificationEvent(event_name="user_joined", topic="users", payload=request.name)]


def create_app(engine: Engine, broker: MessageBroker) -> flask.Flask:
    sessions = sessionmaker(engine)
    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda commands: commands.bind(Join, JoinHandler),
        unit_of_work=cqrs.SqlAlchemyUnitOfWork(sessions, outbox=cqrs.SqlAlchemyOutboxedEventRepository),
    )
    app = flask.Flask(__name__)
    app.extensions["relay"] = cqrs.OutboxRelay(sessions, broker)  # whoever serves the application starts it

    @app.post("/users/<name>")
    def join(name: str) -> tuple[str, int]:
        mediator.send(Join(name=name))
        return f"welcome {name}", 201

    return app


if __name__ == "__main__":
    cqrs.OutboxedEventMap.register("user_joined", cqrs.NotificationEvent[str])
    with tempfile.TemporaryDirectory() as directory, InMemoryMessageBroker() as broker:
        engine = create_engine(f"sqlite:///{directory}/app.sqlite3")
        OutboxModel.metadata.create_all(engine)
        app = create_app(engine, broker)
        with app.extensions["relay"] as relay:
            print(app.test_client().post("/users/Ada").text)
        relay.drain()  # what its thread had left to do
        engine.dispose()
    print("published:", *(message.payload["payload"] for message in broker.messages))
