"""What is killed, and how it comes back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.testing.crash.ledger import Ledger
from cqrs_sync.testing.crash.references import Flow, Reference

Check = Callable[[Ledger], object]
"""Raises if the ledger, or the database, is not as it must be after the recovery."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a kit runs. The functions stand at the top of a module and take a :class:`Case`.

    Attributes:
        run: what is killed.
        prepare: what happens first, in the same process, uncounted: the tables in an empty database, say.
        recover: what a restart does, in a new process; None to look at what the crash left. It runs after the
            undisturbed run too, where it must do no harm.
        settings: JSON values for ``case.settings``: a server's URL, say.
        steady: whether every run reaches the same boundaries. With threads of its own it may not: then say False, and a
            point that three tries do not reach is listed in ``report.missed`` and is no error.
    """

    run: Flow
    prepare: Flow | None = None
    recover: Flow | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steady: bool = True

    def __post_init__(self) -> None:
        for flow in (self.run, self.prepare, self.recover):
            if flow is not None:
                Reference.to(flow)
        try:
            json.dumps(dict(self.settings))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"settings must be JSON values, to get into another process: {error}") from error
