"""Carries the caller's trace into messages (W3C Trace Context), where the application uses OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def with_trace_context(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with ``traceparent`` (and what else the propagator adds) of the span that is open here.

    Headers that are there already win. Without OpenTelemetry in the process nothing is added and nothing imported.
    """
    carried: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate

        propagate.inject(carried)
    return {**carried, **headers}
