"""A Flask application with one mediator for all its requests: ``pip install flask``."""

import sys

import punq

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap

try:
    import flask
except ImportError:
    print("skipped: this example needs Flask, pip install flask")
    sys.exit()


class Greeting(cqrs.Response):
    text: str


class Greet(cqrs.Request[Greeting]):
    name: str


class GreetHandler(cqrs.RequestHandler[Greet]):
    def handle(self, request: Greet) -> Greeting:
        return Greeting(text=f"hello {request.name}")


def create_app(mediator: cqrs.RequestMediator) -> flask.Flask:
    """Make the application; the mediator is thread-safe and serves every view."""
    app = flask.Flask(__name__)

    @app.get("/greet/<name>")
    def greet(name: str) -> flask.Response:
        return flask.jsonify(mediator.send(Greet(name=name)).to_dict())

    return app


if __name__ == "__main__":
    with bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda commands: commands.bind(Greet, GreetHandler),
    ) as mediator:
        response = create_app(mediator).test_client().get("/greet/Ada")
        print(response.status_code, response.get_json())
