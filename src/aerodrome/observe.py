"""Every log event name of Aerodrome, in one list, and how logs are written.

Events are `noun.verb_past` with ids as fields; payloads, tokens and prompts never. Imports nothing of ours.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

#: What each event means; a test holds the code to this list.
EVENTS: dict[str, str] = {
    "answer.failed": "finishing an answer for a client failed unexpectedly",
    "gateway.started": "the gateway accepts links",
    "gateway.stopped": "the gateway has stopped and left no process behind",
    "gateway.stopping": "a signal asked the gateway to stop",
    "link.failed": "serving a client link failed unexpectedly",
    "link.rejected": "a new link was refused before any cost",
    "registry.flush_failed": "times of use could not be written; they are tried again",
    "request.failed": "forwarding a request failed unexpectedly",
    "runtime.bound": "a warm runtime was given to a realm, for the rest of its life",
    "runtime.cordoned": "nothing new is placed on a runtime; it is replaced when its sessions are idle",
    "runtime.lost": "a runtime died or closed its control link",
    "runtime.ready": "a runtime answered connect and ping",
    "runtime.refill_failed": "no runtime could be spawned in advance; it is tried again later",
    "runtime.release_differs": "the runtime is not the pinned release",
    "runtime.spawn_failed": "a spawn attempt failed; it is tried again until the budget is spent",
    "runtime.stopped": "a runtime was stopped on purpose",
    "runtime.unwatched": "the health of a runtime is no longer looked after, by a fault of the gateway",
    "session.reattached": "a lost session was brought back on a fresh runtime",
    "upstream.broke_framing": "a runtime sent bytes that are no frame",
    "upstream.refused_token": "the given upstream does not accept the given token",
    "upstream.unavailable": "no upstream could be had for a client link",
}

LEVELS = ("debug", "info", "warning", "error")


def configure_logs(level: str, as_json: bool) -> None:
    """Write logs to standard error, as JSON lines or for people; standard output stays for answers."""
    # The default for people prints every local variable beside a traceback: tokens and prompts among them.
    plain = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = structlog.processors.JSONRenderer() if as_json else plain
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _keep(_logger: Any, _name: str, event: Any) -> Any:
    return event
