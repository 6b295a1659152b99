"""Circuit breakers by pybreaker, without its lock around the call."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import isgeneratorfunction
from types import GeneratorType
from typing import Any, ParamSpec, TypeVar, cast

from cqrs_sync.errors import ConfigurationError, NotInstalled

try:
    import pybreaker
except ImportError as _missing:
    raise NotInstalled.extra(__name__, "circuit-breaker") from _missing

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

StorageFactory = Callable[[str], pybreaker.CircuitBreakerStorage]


class PyBreakerAdapter:
    """Keeps one circuit per identifier and opens it after ``fail_max`` failures in a row.

    An open circuit refuses calls with ``pybreaker.CircuitBreakerError`` for ``timeout_duration`` seconds. Then
    one call goes through as a trial while the others are still refused: its success closes the circuit, its
    failure opens it again. A trial that has not ended after ``timeout_duration`` gives its place to the next call.

    The error of the call that trips the circuit reaches the caller as it is. An outcome counts only in the state
    its call began in: what started before the circuit opened and fails later neither prolongs nor reopens it.
    ``KeyboardInterrupt`` and its like, and a consumer that leaves a generator early, count as nothing.

    ``exclude`` holds exception classes (or predicates) that mean the service answered, as a business error
    does: they count as success. ``storage_factory`` gets the identifier's name and returns a pybreaker storage, a
    ``CircuitRedisStorage`` say, for circuits shared by several processes; each process then makes its own trial,
    and the storage is read under the circuit's lock.
    """

    def __init__(
        self,
        fail_max: int = 5,
        timeout_duration: float = 60,
        exclude: Sequence[type[Exception] | Callable[[Any], bool]] | None = None,
        storage_factory: StorageFactory | None = None,
    ) -> None:
        if fail_max < 1 or timeout_duration < 0:
            raise ConfigurationError("a circuit breaker needs fail_max >= 1 and timeout_duration >= 0")
        self._fail_max = fail_max
        self._timeout_duration = timeout_duration
        self._exclude = tuple(exclude or ())
        self._storage_factory = _memory_storage if storage_factory is None else storage_factory
        # Guards _circuits while one is added; reading needs no lock.
        self._lock = threading.Lock()
        self._circuits: dict[type | str, _Circuit] = {}

    def call(self, identifier: type | str, func: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run ``func`` unless the circuit of ``identifier`` is open; an identifier is a class or any string.

        For a generator function, or a function that returns a generator, the circuit is asked at the first
        ``next()``, so a generator nobody starts occupies nothing.
        """
        circuit = self._circuit(identifier)
        if isgeneratorfunction(func):
            return cast(_R, _stream(circuit, func(*args, **kwargs)))
        with circuit.attempt() as attempt:
            result = func(*args, **kwargs)
            if isinstance(result, GeneratorType):
                attempt.counts = False
                return cast(_R, _stream(circuit, result))
            return result

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        """Return whether ``exc`` is pybreaker's refusal."""
        return isinstance(exc, pybreaker.CircuitBreakerError)

    def _circuit(self, identifier: type | str) -> _Circuit:
        try:
            return self._circuits[identifier]
        except KeyError:
            pass
        name = identifier if isinstance(identifier, str) else f"{identifier.__module__}.{identifier.__qualname__}"
        with self._lock:
            # A class and the string of its name are one circuit.
            circuit = self._circuits.get(name) or self._new_circuit(name)
            self._circuits[name] = self._circuits[identifier] = circuit
            return circuit

    def _new_circuit(self, name: str) -> _Circuit:
        breaker = pybreaker.CircuitBreaker(
            fail_max=self._fail_max,
            reset_timeout=self._timeout_duration,
            exclude=self._exclude,
            state_storage=self._storage_factory(name),
            name=name,
            throw_new_error_on_trip=False,
        )
        return _Circuit(breaker, name)


AioBreakerAdapter = PyBreakerAdapter
"""The async library's name, for code that moved over."""


def _memory_storage(_: str) -> pybreaker.CircuitBreakerStorage:
    return pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)


def _stream(circuit: _Circuit, items: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    with circuit.attempt():
        return (yield from items)


class _Attempt:
    """One admitted call: the state it began in, and whether its end is to be counted."""

    def __init__(self, state: pybreaker.CircuitBreakerState) -> None:
        self.state = state
        self.started = time.monotonic()
        self.counts = True


class _Circuit(pybreaker.CircuitBreakerListener):
    """A pybreaker circuit that is asked before a call and told after it.

    pybreaker holds its lock while the function of ``CircuitBreaker.call`` runs, which would serialise every
    guarded call of a process. So it only ever runs two functions that return at once, :func:`_ask` and
    :func:`_replay`, and the real one runs in between.
    """

    def __init__(self, breaker: pybreaker.CircuitBreaker, name: str) -> None:
        self._breaker = breaker
        self._name = name
        # Guards what follows and the breaker's counters, which pybreaker increments without a lock of their own.
        # Reentrant: the garbage collector may close an abandoned stream in a thread that holds it.
        self._lock = threading.RLock()
        self._state: pybreaker.CircuitBreakerState = breaker.state
        self._trial: _Attempt | None = None
        self._transitions: deque[tuple[str, str]] = deque()
        breaker.add_listener(self)

    @contextmanager
    def attempt(self) -> Iterator[_Attempt]:
        """Admit the block or raise the refusal; count the block's end, unless it is told not to."""
        attempt = self._admit()
        try:
            yield attempt
        except Exception as error:
            self._end(attempt, error)
            raise
        except BaseException:
            attempt.counts = False
            self._end(attempt, None)
            raise
        else:
            self._end(attempt, None)

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:  # noqa: ARG002 (pybreaker's)
        """Note a new state; pybreaker calls this from within :meth:`_admit` and :meth:`_end`."""
        self._state = new_state
        self._transitions.append((old_state.name, new_state.name))

    def _admit(self) -> _Attempt:
        try:
            with self._lock:
                if self._trial is not None and self._trial_may_run_on(self._trial):
                    raise pybreaker.CircuitBreakerError("A trial call is under way, circuit breaker still half-open")
                self._breaker.call(_ask)
                attempt = _Attempt(self._state)
                self._trial = attempt if self._state.name == pybreaker.STATE_HALF_OPEN else None
                return attempt
        finally:
            self._log_transitions()

    def _trial_may_run_on(self, trial: _Attempt) -> bool:
        return trial.state is self._state and time.monotonic() < trial.started + self._breaker.reset_timeout

    def _end(self, attempt: _Attempt, error: Exception | None) -> None:
        traceback = error.__traceback__ if error is not None else None
        trouble: Exception | None = None
        with self._lock:
            if self._trial is attempt:
                self._trial = None
            if attempt.counts and attempt.state is self._state:
                try:
                    self._breaker.call(_replay, error)
                except pybreaker.CircuitBreakerError:
                    pass  # another process opened the circuit meanwhile
                except Exception as raised:
                    trouble = raised if raised is not error else None
        if error is not None:
            # Raising it again inside of pybreaker put frames there that have nothing to do with it.
            error.__traceback__ = traceback
        if trouble is not None:
            # The call itself is over; its result must not be lost to a counter.
            logger.error("Circuit breaker %s could not count a call", self._name, exc_info=trouble)
        self._log_transitions()

    def _log_transitions(self) -> None:
        # Outside of the lock: a log handler may do I/O.
        while self._transitions:
            with suppress(IndexError):
                logger.warning("Circuit breaker %s: %s -> %s", self._name, *self._transitions.popleft())


def _ask() -> Iterator[None]:
    """A generator that is never started: pybreaker checks its state for it and counts no outcome."""
    yield  # pragma: no cover


def _replay(error: Exception | None) -> None:
    """The outcome of a call that is already over."""
    if error is not None:
        raise error
