"""Importing the library has no effect beside the import, and every promised path leads somewhere."""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
import pickle
import pydoc
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import NotInstalled

ROOT = pathlib.Path(cqrs.__file__).parents[1]

SUITES = (".py", ".pyc", ".so", ".pyd", ".dylib")
"""How files of modules end."""

UNWANTED = (
    "celery",
    "click",
    "confluent_kafka",
    "dependency_injector",
    "dishka",
    "django",
    "dotenv",
    "flask",
    "google",
    "kafka",
    "prometheus_client",
    "psycopg2",
    "pybreaker",
    "rich",
    "sqlalchemy",
)
"""What belongs to an extra, or to a database."""

EFFECTS = """
import json, logging, os, sys, threading
import punq, pydantic, typing_extensions

class Warm(pydantic.BaseModel):  # pydantic looks for plugins when the first model is made
    field: int = 1

pydantic.TypeAdapter(int)
events, armed = [], True

def note(name, arguments):
    if armed and (name in ("open", "os.putenv", "os.system", "subprocess.Popen", "os.fork", "_thread.start_new_thread")
            or name.startswith("socket.")):
        events.append([name, str(arguments[0]) if arguments else ""])

modules, environment = set(sys.modules), dict(os.environ)
sys.addaudithook(note)
{imports}
armed = False
own = [logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict) if name.startswith("cqrs")]
print(json.dumps({{
    "events": events,
    "modules": sorted(set(sys.modules) - modules),
    "threads": [thread.name for thread in threading.enumerate()],
    "environment": dict(os.environ) == environment,
    "levels": {{logger.name: logger.level for logger in [logging.root, *own] if logger.level}},
    "handlers": {{
        logger.name: [type(handler).__name__ for handler in logger.handlers]
        for logger in [logging.root, *own] if logger.handlers
    }},
    "propagates": all(logger.propagate and not logger.disabled for logger in own),
}}))
"""


def python(program: str, cwd: pathlib.Path) -> Any:
    """Run a program in an interpreter of its own, away from the checkout, and return the JSON it prints."""
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return json.loads(finished.stdout)


@pytest.fixture(
    scope="module",
    params=[
        "import cqrs_sync",
        "from cqrs_sync import *",
        "import cqrs_sync.requests.bootstrap, cqrs_sync.events.bootstrap, cqrs_sync.message_brokers.memory",
    ],
    ids=["root", "star", "bootstrap"],
)
def effects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one kind of import did, in a directory with files that a curious library would read."""
    directory = tmp_path_factory.mktemp("curious")
    for name in (".env", "cqrs.toml", "cqrs_sync.ini", "logging.conf"):
        (directory / name).write_text("DEFAULT_OUTPUT_TOPIC=found\n")
    found: dict[str, Any] = python(EFFECTS.format(imports=request.param), directory)
    return found | {"imports": request.param}


def test_import_loads_the_library(effects: dict[str, Any]) -> None:
    """Otherwise the other tests would prove nothing."""
    assert "cqrs_sync.mediator" in effects["modules"]
    assert any(name == "open" and "cqrs_sync" in path for name, path in effects["events"])


def test_import_opens_module_files_only(effects: dict[str, Any]) -> None:
    """No settings, no environment file, no data file."""
    opened = [path for name, path in effects["events"] if name == "open"]
    assert [path for path in opened if not path.endswith(SUITES)] == []


def test_import_starts_nothing(effects: dict[str, Any]) -> None:
    """No thread, no process, no socket, and the environment stays as it is."""
    assert [event for event in effects["events"] if event[0] != "open"] == []
    assert effects["threads"] == ["MainThread"]
    assert effects["environment"]


def test_import_sets_no_log_level_and_adds_one_null_handler(effects: dict[str, Any]) -> None:
    """What is logged, and where to, is the application's decision."""
    levels = {name: level for name, level in effects["levels"].items() if name != "root"}
    assert levels == {}
    assert effects["levels"]["root"] == 30
    assert effects["handlers"] == {"cqrs_sync": ["NullHandler"]}
    assert effects["propagates"]


def test_import_loads_no_optional_dependency(effects: dict[str, Any]) -> None:
    """Neither what extras bring nor SQLAlchemy, unless the program asks for every name there is."""
    packages = {name.partition(".")[0] for name in effects["modules"]}
    asked_for = {"sqlalchemy"} if effects["imports"] == "from cqrs_sync import *" else set()
    assert packages & set(UNWANTED) <= asked_for


def test_lazy_name_loads_its_module_on_first_use(tmp_path: pathlib.Path) -> None:
    """``cqrs.SqlAlchemyUnitOfWork`` is what brings SQLAlchemy in, not the import before it."""
    program = """
    import json, sys
    import cqrs_sync
    before = "sqlalchemy" in sys.modules
    unit_of_work = cqrs_sync.SqlAlchemyUnitOfWork
    print(json.dumps([before, "sqlalchemy" in sys.modules, unit_of_work.__module__]))
    """
    assert python(textwrap.dedent(program), tmp_path) == [False, True, "cqrs_sync.unit_of_work.sqlalchemy"]


def test_import_defines_no_model(tmp_path: pathlib.Path) -> None:
    """The first model makes pydantic load most of itself, which takes longer than all of the library."""
    program = """
    import json, sys
    import cqrs_sync
    before = "pydantic.main" in sys.modules
    request = cqrs_sync.Request
    print(json.dumps([before, "pydantic.main" in sys.modules, request.__module__]))
    """
    assert python(textwrap.dedent(program), tmp_path) == [False, True, "cqrs_sync.requests.pydantic_request"]


MODELS = {
    "cqrs_sync.requests.pydantic_request": (["cqrs_sync.requests.request", "cqrs_sync.requests"], ["Request"]),
    "cqrs_sync.pydantic_response": (["cqrs_sync.response"], ["Response"]),
    "cqrs_sync.events.pydantic_event": (
        ["cqrs_sync.events.event", "cqrs_sync.events"],
        ["Event", "DomainEvent", "NotificationEvent"],
    ),
}
"""Where the models live, where else they are offered beside the root, and their short names."""


@pytest.mark.parametrize(
    ("home", "offered", "name"),
    [(home, offered, name) for home, (offered, names) in MODELS.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_model_is_the_same_class_wherever_it_is_offered(home: str, offered: list[str], name: str) -> None:
    """By both of its names; after the first use it is a global, and a pickle finds it."""
    model = getattr(importlib.import_module(home), f"Pydantic{name}")
    assert (model.__module__, model.__qualname__) == (home, f"Pydantic{name}")
    assert pickle.loads(pickle.dumps(model)) is model
    for path in ["cqrs_sync", *offered]:
        module = importlib.import_module(path)
        for alias in (name, f"Pydantic{name}"):
            assert alias in module.__all__
            assert alias in dir(module)
            assert getattr(module, alias) is model
            assert vars(module)[alias] is model


# --- paths ---------------------------------------------------------------------------------------------------

MODULES = {
    "requests": ("bootstrap", "request", "request_handler", "cor_request_handler", "map", "fallback", "mermaid"),
    "events": ("bootstrap", "event", "event_handler", "event_emitter", "event_processor", "map", "fallback"),
    "message_brokers": ("protocol", "devnull", "kafka", "memory"),
    "outbox": ("map", "mock", "models", "relay", "repository", "sqlalchemy"),
    "adapters": ("circuit_breaker",),  # kafka-python warns of its own accord when it is imported
    "container": ("protocol", "di", "punq", "scope"),
    "dispatcher": ("event", "exceptions", "models", "request", "streaming"),
    "middlewares": ("base", "logging"),
    "serializers": ("default", "json", "protobuf", "protocol"),
    "deserializers": ("json", "protobuf", "exceptions"),
    "compressors": ("protocol", "zlib"),
    "unit_of_work": ("protocol", "memory", "sqlalchemy"),
    "saga": (
        "bootstrap",
        "saga",
        "step",
        "models",
        "fallback",
        "recovery",
        "map",
        "mediator",
        "mermaid",
        "parallel",
        "retry",
    ),
    "saga.storage": ("protocol", "memory", "sqlalchemy", "enums", "models"),
}

PATHS = [
    *(f"cqrs_sync.{package}" for package in MODULES),
    *(f"cqrs_sync.{package}.{module}" for package, modules in MODULES.items() for module in modules),
    *(f"cqrs_sync.{module}" for module in ("response", "mediator", "producer", "errors", "circuit_breaker")),
]


FRESH = """
import importlib, json, sys
found = {{}}
for path in {paths!r}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cqrs_sync"]:
        del sys.modules[name]
    found[path] = dir(importlib.import_module(path))
print(json.dumps(found))
"""


def test_each_promised_module_can_be_imported_first(tmp_path: pathlib.Path) -> None:
    """No order of imports runs into a circle."""
    assert set(python(FRESH.format(paths=PATHS), tmp_path)) == set(PATHS)


@pytest.mark.parametrize(
    ("path", "dependency"),
    [
        ("cqrs_sync.adapters.circuit_breaker", "pybreaker"),
        ("cqrs_sync.adapters.confluent", "confluent_kafka"),
        ("cqrs_sync.adapters.kafka", "kafka"),
        ("cqrs_sync.container.dependency_injector", "dependency_injector"),
        ("cqrs_sync.container.dishka", "dishka"),
    ],
)
def test_module_of_an_extra_names_the_extra_where_it_is_missing(
    path: str, dependency: str, tmp_path: pathlib.Path
) -> None:
    """The error is the library's own, with the command that helps."""
    program = f"""
    import importlib, json, sys
    sys.modules[{dependency!r}] = None  # what makes an import fail
    from cqrs_sync.errors import NotInstalled
    try:
        importlib.import_module({path!r})
    except NotInstalled as error:
        print(json.dumps([error.feature, str(error)]))
    """
    extras = {
        "confluent_kafka": "confluent",
        "dependency_injector": "dependency-injector",
        "pybreaker": "circuit-breaker",
    }
    extra = extras.get(dependency, dependency)
    feature, text = python(textwrap.dedent(program), tmp_path)
    assert feature == path
    assert text == f"{path} is not installed: run pip install 'cqrs-sync[{extra}]'"


@pytest.mark.parametrize(
    ("path", "dependency"),
    [
        ("cqrs_sync.adapters.circuit_breaker", "pybreaker"),
        ("cqrs_sync.adapters.confluent", "confluent_kafka"),
        ("cqrs_sync.adapters.kafka", "kafka"),
        ("cqrs_sync.container.dependency_injector", "dependency_injector"),
        ("cqrs_sync.container.dishka", "dishka"),
    ],
)
def test_module_of_an_extra_can_be_imported_where_it_is_installed(path: str, dependency: str) -> None:
    """The extras' modules are paths like any other."""
    pytest.importorskip(dependency)
    assert importlib.import_module(path).__name__ == path


PACKAGE_NAMES = {
    "cqrs_sync.container": [
        "Container",
        "DIContainer",
        "PunqContainer",
        "ScopeAwareContainer",
        "ScopeStrategy",
        "SupportsScope",
        "bind_scope",
        "current_container",
        "enter_scope",
    ],
    "cqrs_sync.dispatcher": [
        "EventDispatcher",
        "RequestDispatchResult",
        "RequestDispatcher",
        "RequestHandlerDoesNotExist",
        "RequestHandlerTypeError",
        "SagaConcurrencyError",
        "SagaDoesNotExist",
        "StreamingRequestDispatcher",
    ],
    "cqrs_sync.events": [
        "DCDomainEvent",
        "DCEvent",
        "DCNotificationEvent",
        "DomainEvent",
        "Event",
        "EventEmitter",
        "EventHandler",
        "EventHandlerFallback",
        "EventMap",
        "EventProcessor",
        "IDomainEvent",
        "IEvent",
        "INotificationEvent",
        "NotificationEvent",
        "PydanticDomainEvent",
        "PydanticEvent",
        "PydanticNotificationEvent",
    ],
    "cqrs_sync.message_brokers": [
        "BrokerUnavailable",
        "DevnullMessageBroker",
        "InMemoryMessageBroker",
        "Message",
        "MessageBroker",
        "MessageRejected",
    ],
    "cqrs_sync.middlewares": ["LoggingMiddleware", "Middleware", "MiddlewareChain"],
    "cqrs_sync.requests": [
        "CORRequestHandler",
        "CoRMermaid",
        "DCRequest",
        "IRequest",
        "PydanticRequest",
        "Request",
        "RequestHandler",
        "RequestHandlerFallback",
        "RequestMap",
        "SagaMap",
        "StreamingRequestHandler",
    ],
    "cqrs_sync.saga": [
        "Fallback",
        "Parallel",
        "Retry",
        "Saga",
        "SagaContext",
        "SagaMap",
        "SagaMediator",
        "SagaMermaid",
        "SagaOutcome",
        "SagaStepHandler",
        "SagaStepResult",
        "SagaTransaction",
        "StepExecution",
        "TransactionalSagaStep",
        "recover_saga",
    ],
    "cqrs_sync.saga.storage": [
        "MemorySagaStorage",
        "NewSaga",
        "SagaLogEntry",
        "SagaState",
        "SagaStatus",
        "SagaStepStatus",
        "SagaStorage",
        "SagaStore",
        "SagaWrite",
        "SqlAlchemySagaStorage",
    ],
    "cqrs_sync.unit_of_work": ["MemoryUnitOfWork", "SqlAlchemyUnitOfWork", "Transaction", "UnitOfWork"],
}


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in PACKAGE_NAMES.items() for name in names]
)
def test_name_at_package_level_is_the_thing_itself(package: str, name: str) -> None:
    """``cqrs_sync.events.EventMap`` is ``cqrs_sync.events.map.EventMap``, wherever it really lives."""
    found = getattr(importlib.import_module(package), name)
    home = importlib.import_module(found.__module__)
    assert getattr(home, found.__name__) is found
    assert found.__module__.startswith("cqrs_sync.")


def test_dir_lists_the_names_of_a_package(tmp_path: pathlib.Path) -> None:
    """Completion in a shell offers what the package has, before the first use too."""
    names = PACKAGE_NAMES | {"cqrs_sync": list(cqrs.__all__)}
    listed = python(FRESH.format(paths=list(names)), tmp_path)
    missing = {package: sorted(set(names[package]) - set(listed[package])) for package in names}
    assert not any(missing.values()), missing


@pytest.mark.parametrize("package", ["cqrs_sync", *PACKAGE_NAMES])
def test_unknown_name_of_a_package_is_an_attribute_error(package: str) -> None:
    """``hasattr`` and ``from ... import`` behave as for any module."""
    module = importlib.import_module(package)
    assert not hasattr(module, "nothing_of_this_name")
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing_of_this_name'"):
        getattr(module, "nothing_of_this_name")  # noqa: B009 (a name that no checker knows)


def test_every_name_of_the_root_exists() -> None:
    """``__all__`` has no name twice and none that is not there."""
    assert len(set(cqrs.__all__)) == len(cqrs.__all__)
    assert [name for name in cqrs.__all__ if not hasattr(cqrs, name)] == []


@pytest.mark.parametrize("package", ["cqrs_sync", *PACKAGE_NAMES])
def test_help_and_introspection_work(package: str) -> None:
    """No name that ``dir()`` lists is one that cannot be had."""
    module = importlib.import_module(package)
    assert dict(inspect.getmembers(module)).keys() >= set(PACKAGE_NAMES.get(package, ()))
    assert package in pydoc.render_doc(module)


def test_star_import_brings_every_name_of_the_root() -> None:
    """``from cqrs_sync import *`` works and needs no extra."""
    namespace: dict[str, Any] = {}
    exec("from cqrs_sync import *", namespace)
    assert set(cqrs.__all__) <= set(namespace)


ASYNC_NAMES = [
    "RequestMediator",
    "EventMediator",
    "StreamingRequestMediator",
    "Request",
    "PydanticRequest",
    "DCRequest",
    "IRequest",
    "Response",
    "PydanticResponse",
    "DCResponse",
    "IResponse",
    "Event",
    "DomainEvent",
    "NotificationEvent",
    "PydanticEvent",
    "PydanticDomainEvent",
    "PydanticNotificationEvent",
    "DCEvent",
    "DCDomainEvent",
    "DCNotificationEvent",
    "IEvent",
    "IDomainEvent",
    "INotificationEvent",
    "RequestHandler",
    "StreamingRequestHandler",
    "EventHandler",
    "RequestMap",
    "EventMap",
    "EventEmitter",
    "EventHandlerFallback",
    "RequestHandlerFallback",
    "ICircuitBreaker",
    "EventSerializer",
    "EventCodec",
    "JsonEventSerializer",
    "ProtobufEventSerializer",
    "ProtobufDeserializer",
    "DeserializeProtobufError",
    "Container",
    "DIContainer",
    "SupportsScope",
    "ScopeAwareContainer",
    "ScopeStrategy",
    "bind_scope",
    "enter_scope",
    "current_container",
    "Compressor",
    "ZlibCompressor",
    "CoRMermaid",
    "OutboxedEventMap",
    "OutboxedEventRepository",
    "OutboxedEvent",
    "EventStatus",
    "SqlAlchemyOutboxedEventRepository",
    "rebind_outbox_model",
    "EventProducer",
    "SagaMediator",
    "SagaMap",
    "Saga",
    "SagaStepHandler",
    "SagaStepResult",
    "Resp",
    "ContextT",
    "SagaMermaid",
]


@pytest.mark.parametrize("name", ASYNC_NAMES)
def test_name_that_the_async_library_has_at_its_root_is_here_too(name: str) -> None:
    """``import cqrs_sync as cqrs`` is all that changes."""
    assert name in cqrs.__all__


@pytest.mark.parametrize("path", ["cqrs_sync.message_brokers.amqp", "cqrs_sync.adapters.amqp"])
def test_path_of_what_is_not_here_says_what_to_do(path: str) -> None:
    """RabbitMQ, which the async library has."""
    with pytest.raises(NotInstalled, match=f"{path} is not installed: RabbitMQ .* implement MessageBroker"):
        importlib.import_module(path)


def test_saga_map_has_its_place_beside_the_request_map() -> None:
    """``cqrs_sync.requests.map.SagaMap`` is where the async library has it."""
    from cqrs_sync.requests import map as requests_map

    assert requests_map.SagaMap is cqrs.SagaMap
