"""The caller's trace travels with messages, and OpenTelemetry is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cqrs_sync.outbox.encoding import EventEncoder
from cqrs_sync.testing.outbox import EVENTS, Numbered
from cqrs_sync.tracing import with_trace_context

TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def span() -> object:
    """An open span of a remote parent; the API alone is enough."""
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(TRACE_ID, SPAN_ID, is_remote=False, trace_flags=trace.TraceFlags(1))
    return trace.use_span(trace.NonRecordingSpan(context))


def test_the_open_span_goes_into_the_headers(span: object) -> None:
    """As W3C Trace Context has it; the given headers stay as they are."""
    given = {"a": "1"}
    with span:  # type: ignore[attr-defined]
        assert with_trace_context(given) == {"traceparent": TRACEPARENT, "a": "1"}
    assert given == {"a": "1"}
    assert with_trace_context({"a": "1"}) == {"a": "1"}


def test_a_header_that_is_there_wins(span: object) -> None:
    """An event may carry another trace."""
    with span:  # type: ignore[attr-defined]
        assert with_trace_context({"traceparent": "mine"}) == {"traceparent": "mine"}


def test_the_outbox_stores_the_trace_of_the_handler(span: object) -> None:
    """It is long over when the event is published."""
    encoder = EventEncoder(EVENTS)
    with span:  # type: ignore[attr-defined]
        assert TRACEPARENT in encoder.encode(Numbered())["headers"]
    assert encoder.encode(Numbered())["headers"] is None


def test_nothing_is_imported_where_the_application_has_no_opentelemetry() -> None:
    """Not even looked for."""
    program = """
import sys
from cqrs_sync.tracing import with_trace_context
assert with_trace_context({"a": "1"}) == {"a": "1"}
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
