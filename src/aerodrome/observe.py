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
    "admin.called": "an operator drains, cordons, evicts, recycles or reloads through the admin socket",
    "admin.failed": "a verb of the admin socket failed unexpectedly",
    "admin.rejected": "a process may not use the admin socket: another user's, or one too many",
    "admin.unavailable": "the admin socket cannot be had; the gateway serves without it",
    "answer.failed": "finishing an answer for a client failed unexpectedly",
    "care.failed": "freezing, hibernating or emptying a runtime failed unexpectedly",
    "gateway.drained": "a drain is over: nothing runs any more, or its deadline has passed",
    "gateway.draining": "no new work is taken; so many sessions are still at work",
    "gateway.started": "the gateway accepts links",
    "gateway.stopped": "the gateway has stopped and left no process behind",
    "gateway.stopping": "a signal or an operator asked the gateway to stop",
    "limits.unheld": "this host cannot hold a limit that runtimes are to have; said once for each",
    "link.closed_by_policy": "a link was closed because its tenant's runtimes are others now, or the tenant is removed",
    "link.failed": "serving a client link failed unexpectedly",
    "link.left_turns": "a client left while turns of it run; they go on without it",
    "link.rejected": "a new link was refused before any cost",
    "link.turns_cut": "turns without their client took too long and were ended",
    "orphans.collected": "processes that an earlier gateway left behind were killed at start",
    "policy.refused": "a tenant's policy in the database is wrong; the one before stays in force for open links",
    "policy.reload_failed": "a changed configuration file is wrong; everything stays as it was",
    "policy.reloaded": "the configuration file was read again, its tenants are in force",
    "policy.tool_refused": "the runtime asked for a client's tool that policy denies, and was refused in the client's place",
    "policy.turn_aborted": "policy does not allow any more what a session at work was opened with; its turn was aborted",
    "policy.unread": "the tenants of the database could not be read; policies stay as they are",
    "reaper.pass_failed": "expired sessions could not be looked for; the next pass tries again",
    "reaper.pass_finished": "every expired session was looked at once",
    "reaper.realm_failed": "no runtime of a realm could delete its expired sessions; the next pass tries again",
    "reaper.tenant_failed": "a tenant's expired sessions could not be looked for; the next pass tries again",
    "registry.flush_failed": "times of use could not be written; they are tried again",
    "request.failed": "forwarding a request failed unexpectedly",
    "runtime.bound": "a warm runtime was given to a realm, for the rest of its life",
    "runtime.cordoned": "nothing new is placed on a runtime; it is replaced when its sessions are idle",
    "runtime.frozen": "a runtime with nothing at work was stopped from running, its memory kept",
    "runtime.hibernated": "a runtime with nothing at work was stopped while its clients stay connected",
    "runtime.lost": "a runtime died or closed its control link",
    "runtime.ready": "a runtime answered connect and ping",
    "runtime.refill_failed": "no runtime could be spawned in advance; it is tried again later",
    "runtime.release_differs": "the runtime is not the pinned release",
    "runtime.spawn_failed": "a spawn attempt failed; it is tried again until the budget is spent",
    "runtime.stopped": "a runtime was stopped on purpose",
    "runtime.unwatched": "the health of a runtime is no longer looked after, by a fault of the gateway",
    "session.directory_kept": "an expired session is deleted, its working directory could not be",
    "session.evicted": "an idle session was unloaded from its runtime by policy",
    "session.reap_failed": "the runtime did not delete an expired session",
    "session.reaped": "an expired session was deleted",
    "session.reattach_failed": "a session could not be brought back for one of the links that hold it",
    "session.reattached": "a session that was lost or evicted is in a runtime again",
    "session.would_be_reaped": "an expired session would be deleted, were this no dry run",
    "turn.ended_unsaid": "a runtime does no work in a session whose turn it never said was over",
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
