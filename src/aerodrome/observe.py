"""Every log event name of Aerodrome, in one list, and how logs are written.

Events are `noun.verb_past` with ids as fields; payloads, tokens and prompts never. What looks like a secret all the same is
blanked out twice: by name in the fields, by shape in the finished line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from aerodrome import redaction

#: What each event means; a test holds the code to this list.
EVENTS: dict[str, str] = {
    "admin.called": "an operator drains, cordons, evicts, recycles or reloads through the admin socket",
    "admin.failed": "a verb of the admin socket failed unexpectedly",
    "admin.rejected": "a process may not use the admin socket: another user's, or one too many",
    "admin.unavailable": "the admin socket cannot be had; the gateway serves without it",
    "answer.failed": "finishing an answer for a client failed unexpectedly",
    "audit.failed": "the audit log cannot be written; it is tried again",
    "audit.lost": "records could not be written before the gateway stopped",
    "audit.recovered": "the audit log can be written again",
    "care.failed": "freezing, hibernating or emptying a runtime failed unexpectedly",
    "certificate.reload_failed": "the certificate changed on disk and cannot be used; the old one stays",
    "certificate.reloaded": "the certificate changed on disk; new links are shown the new one",
    "credential.ignored": "a program gave its runtime a GitHub token; it is not passed on to the gateway",
    "egress.refused": "a sandboxed runtime asked for what policy does not let it reach; said once for each reason and runtime",
    "egress.unopened": "a port of loopback that policy names now cannot be opened in a running sandbox; the next one has it",
    "gateway.drained": "a drain is over: nothing runs any more, or its deadline has passed",
    "gateway.draining": "no new work is taken; so many sessions are still at work",
    "gateway.lost": "a forwarder's connection to the gateway ended; it is opened again",
    "gateway.reached": "a forwarder has a connection to the gateway, and its sessions are restored",
    "gateway.refused": "the gateway does not take a forwarder, or cannot prove itself to it; it is not tried again",
    "gateway.started": "the gateway accepts links",
    "gateway.stopped": "the gateway has stopped and left no process behind",
    "gateway.stopping": "a signal or an operator asked the gateway to stop",
    "gateway.unencrypted": "the listener can be reached from other machines and is not encrypted",
    "gateway.unreachable": "a forwarder cannot have a connection to the gateway now; it is tried again",
    "http.answer_not_kept": "the answer of a request with an idempotency key could not be kept; a retry is refused",
    "http.decision_failed": "what was to be answered in a caller's place could not be",
    "http.leftover_failed": "a session of a one-shot question could not be deleted; it is tried again",
    "http.message_failed": "a message for an HTTP user could not be handled",
    "http.program_failed": "the link of an HTTP user failed unexpectedly",
    "http.request_failed": "answering an HTTP request failed unexpectedly",
    "http.turn_not_noted": "open turns could not be noted: if the gateway were killed now, nobody would say that they are over",
    "http.webhook_failed": "a call of a tool that is a webhook failed, after its retries",
    "identity.unproved": "what an identity provider said of someone could not be proved; nobody was signed in",
    "issuer.keys_read": "the keys that an issuer signs with were read",
    "issuer.unavailable": "an issuer's keys could not be read; those at hand are used for a bounded time",
    "limits.unheld": "this host cannot hold a limit that runtimes are to have; said once for each",
    "link.closed_by_policy": "a link was closed because its tenant's runtimes are others now, or the tenant is removed",
    "link.dismissed": "a client link was closed because its principal has ended: expired, revoked, or its tenant removed",
    "link.failed": "serving a client link failed unexpectedly",
    "link.handshake_failed": "a peer did not finish a TLS handshake",
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
    "principals.check_failed": "the principals of open links could not be looked up; it is tried again",
    "provider.call_failed": "a model endpoint could not be reached, or broke off",
    "provider.key_refused": "a model endpoint answers 401 to the key it is configured with",
    "provider.key_unavailable": "the key of a model endpoint could not be read",
    "reaper.pass_failed": "expired sessions could not be looked for; the next pass tries again",
    "reaper.pass_finished": "every expired session was looked at once",
    "reaper.realm_failed": "no runtime of a realm could delete its expired sessions; the next pass tries again",
    "reaper.tenant_failed": "a tenant's expired sessions could not be looked for; the next pass tries again",
    "registry.flush_failed": "times of use could not be written, or what is over not be removed; it is tried again",
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
    "sandbox.missing": "no sandbox can be made, so runtimes with host tools are refused",
    "sandbox.ready": "runtimes with host tools are started in a sandbox; one was made to be sure",
    "sandbox.waived": "by the operator's word, runtimes with host tools are started without a sandbox",
    "seat.failed": "a member's link could not be served in another's session",
    "secret.read_failed": "a secret could not be read again; its last value serves for now",
    "session.directory_kept": "an expired session is deleted, its working directory could not be",
    "session.evicted": "an idle session was unloaded from its runtime by policy",
    "session.reap_failed": "the runtime did not delete an expired session",
    "session.reaped": "an expired session was deleted",
    "session.reattach_failed": "a session could not be brought back for one of the links that hold it",
    "session.reattached": "a session that was lost or evicted is in a runtime again",
    "session.restore_failed": "a session could not be opened again on a new connection",
    "session.restored": "a forwarder has opened a session again on a new connection",
    "session.would_be_reaped": "an expired session would be deleted, were this no dry run",
    "token.granted": "a user signed in at GitHub, and the token is stored for them",
    "token.minted": "the gateway minted a connection token for a user",
    "token.push_failed": "a live session could not be given its user's present GitHub token",
    "token.refresh_failed": "a GitHub token could not be renewed; it serves until it expires",
    "token.refreshed": "a GitHub token was renewed before it expires",
    "token.refused": "a token proves nobody; the client is not told why",
    "token.visit_failed": "the GitHub tokens of live sessions could not be looked after; it is tried again",
    "turn.ended_unsaid": "a runtime does no work in a session whose turn it never said was over",
    "turn.lease_lost": "the lease of a running turn could not be renewed; another may begin",
    "turn.sender_unkept": "who sent a message of a shared session could not be kept for its history",
    "upstream.broke_framing": "a runtime sent bytes that are no frame",
    "upstream.refused_token": "the given upstream does not accept the given token",
    "upstream.unavailable": "no upstream could be had for a client link",
}

#: What each metric means; a test holds the code to this list.
METRICS: dict[str, str] = {
    "aerodrome_browsers_signed_in": "browsers that are signed in, at all gateways of the registry",
    "aerodrome_calls_rejected_total": "calls, links and callers that were rejected, by why",
    "aerodrome_links_open": "client links that are open, of SDK programs and HTTP users",
    "aerodrome_model_tokens_total": "tokens of model calls in turns that are over, by direction",
    "aerodrome_runtime_memory_bytes": "memory that all runtimes and what they started use",
    "aerodrome_runtimes": "runtimes, by state",
    "aerodrome_sessions_active": "sessions that are in a runtime",
    "aerodrome_sessions_at_work": "sessions with something under way",
    "aerodrome_spawns_queued": "spawns for clients that wait for their turn",
    "aerodrome_turn_duration_seconds": "how long completed turns took, from the sending until the session is idle",
    "aerodrome_turns_ended_total": "turns that are over, by how they ended",
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
            _mask_fields,
            renderer,
            _mask_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _mask_fields(_logger: Any, _name: str, event: Any) -> Any:
    return redaction.mask_value(event)


def _mask_line(_logger: Any, _name: str, line: Any) -> Any:
    return redaction.mask(line) if isinstance(line, str) else line


def _keep(_logger: Any, _name: str, event: Any) -> Any:
    return event
