"""What a policy says of one method, tool, model or address, which rule decides, and where that rule was written.

The same functions decide here as do for calls (core.policy, protocol.methods, protocol.hardening_tools), so that an explanation
cannot differ from what happens. Whose a session is, and values of parameters, are not asked here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aerodrome import errors
from aerodrome.core import egress
from aerodrome.core.identity import Tenant
from aerodrome.core.patterns import SOURCES
from aerodrome.core.policy import Access, HostTools, Policy
from aerodrome.core.policy_document import WORD_OF
from aerodrome.protocol import hardening_tools, methods
from aerodrome.protocol.methods import Verdict

_VERDICTS = {
    Verdict.PASS: "goes to the runtime as it is",
    Verdict.OWN: "goes to the runtime where the session is the caller's",
    Verdict.FILTER: "goes to the runtime; of the answer, only what is the caller's comes back",
    Verdict.VIRTUAL: "is answered by the gateway",
    Verdict.POLICY: "goes to the runtime with parameters that policy allows",
    Verdict.DENY: "is refused",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether it is allowed, and why, a line for each reason."""

    is_allowed: bool
    reasons: tuple[str, ...]


class Explainer:
    """Explains the policy of a tenant, or of one user of it.

    `hold`: what becomes of host tools in this gateway, and why; asked for a policy that gives any.
    """

    def __init__(self, tenant: Tenant, user: str | None, hold: Callable[[], tuple[HostTools, str]]) -> None:
        self._tenant = tenant
        self._user = user
        self._hold = hold
        self.policy = tenant.policy if user is None else tenant.policy_for(user)

    def origin(self, field: str) -> str:
        """Return where the value of a policy's field comes from."""
        place = "the configuration" if self._tenant.source == "config" else "the database"
        override = self._tenant.users.get(self._user or "")
        if override is not None and field in override.said:
            return f"user {self._user} in {place}"
        is_default = getattr(self._tenant.policy, field) == getattr(Policy(), field)
        return "default" if is_default else f"tenant in {place}"

    def explain(self, subject: str) -> Explanation:
        """Explain `tool:SOURCE:NAME`, `model:NAME`, `url:URL`, or a method by its name.

        Raises:
            errors.ConfigError: it is none of them.
        """
        kind, colon, rest = subject.partition(":")
        explainers = {"tool": self._tool, "model": self._model, "url": self._url}
        if not colon:
            return self._held(self._method(subject), self._needs_runtime(subject))
        if kind not in explainers or not rest:
            raise errors.ConfigError(
                f"expected a method, tool:SOURCE:NAME, model:NAME or url:URL, found {subject!r}; for example tool:mcp:git/log"
            )
        return self._held(explainers[kind](rest))

    def _needs_runtime(self, name: str) -> bool:
        return methods.judge(name, self.policy.access, has_session=True) is not Verdict.VIRTUAL

    def _held(self, found: Explanation, needs_runtime: bool = True) -> Explanation:
        """Add what becomes of it where the runtime must be held by a sandbox, and there is none or there is one."""
        if not self.policy.gives_host_tools or not found.is_allowed or not needs_runtime:
            return found
        hold, why = self._hold()
        if hold is HostTools.REFUSED:
            return Explanation(False, (*found.reasons, f"but runtimes with host tools are refused: {why}"))
        return Explanation(True, (*found.reasons, f"runtimes with host tools are started {why}"))

    def _method(self, name: str) -> Explanation:
        access = self.policy.access
        row, verdict = methods.lookup(name), methods.judge(name, access, has_session=True)
        column = f"column {access.value!r} of the method table ({self._why_access()})"
        if row is None:
            what = "passes if it names a session of the caller's" if verdict is not Verdict.DENY else "is refused"
            return Explanation(verdict is not Verdict.DENY, (f"{name} is not in the method table: it {what}", column))
        why = f": {row.reason}" if row.reason not in ("", "-") else ""
        return Explanation(
            verdict is not Verdict.DENY, (f"{name} {_VERDICTS[verdict]}{why}", f"{verdict.value} by {column}")
        )

    def _tool(self, tool: str) -> Explanation:
        source, colon, name = tool.partition(":")
        if source not in SOURCES or not colon or not name or (source == "mcp" and "/" not in name):
            raise errors.ConfigError(
                f"expected tool:builtin:NAME, tool:custom:NAME or tool:mcp:SERVER/TOOL, found 'tool:{tool}'"
            )
        if self.policy.access is Access.OPEN:
            return self._open()
        if source == "builtin" and name not in hardening_tools.builtin_tools(self.policy):
            return Explanation(False, (self._why_no_builtin(name),))
        decision = self.policy.judge_tool(tool)
        allowed, reasons = self._decided("tools", decision.is_allowed, decision.pattern)
        if source == "builtin" and name in hardening_tools.HOST_TOOLS:
            reasons = (*reasons, self._said("host_tools"))
        return Explanation(allowed, reasons)

    def _why_no_builtin(self, name: str) -> str:
        if name in hardening_tools.HOST_TOOLS:
            return f"builtin:{name} reaches the host; {self._said('host_tools')}"
        return f"no guarded session has a built-in tool {name}"

    def _model(self, model: str) -> Explanation:
        if self.policy.access is Access.OPEN:
            return self._open()
        decision = self.policy.judge_model(model)
        return Explanation(*self._decided("models", decision.is_allowed, decision.pattern))

    def _url(self, url: str) -> Explanation:
        if self.policy.access is Access.OPEN:
            return self._open()
        as_model, as_server = self.policy.allows_provider(url), self.policy.allows_mcp(url)
        reasons = (
            f"as a model provider: {_word(as_model)}; {self._said('provider_urls')}",
            f"as an MCP server: {_word(as_server)}; {self._said('mcp_urls')}",
        )
        return Explanation(as_model or as_server, (*reasons, *self._reached(url)))

    def _reached(self, url: str) -> tuple[str, ...]:
        """Say what of it a sandbox lets out, for whatever agents run."""
        target = egress.split(egress.target_of(url)) if self.policy.gives_host_tools else None
        if target is None:
            return ()
        lets_out = egress.is_allowed(*target, egress.targets_of(self.policy))
        host, port = target
        return (f"for programs of agents {host}:{port}: {_word(lets_out)} by a sandbox; {self._said('egress')}",)

    def _decided(self, field: str, is_allowed: bool, pattern: str | None) -> tuple[bool, tuple[str, ...]]:
        origin = f"{WORD_OF[field]}, {self.origin(field)}"
        if getattr(self.policy, field) is None:
            return is_allowed, (f"allowed: there are no patterns ({origin})",)
        which = f"pattern {pattern!r}" if pattern is not None else "no pattern matches, and "
        which = (
            which if pattern is not None else which + ("the list only denies" if is_allowed else "the rest is denied")
        )
        return is_allowed, (f"{_word(is_allowed)}: {which} ({origin})",)

    def _open(self) -> Explanation:
        return Explanation(True, (f"allowed: the host is open to this tenant ({self._why_access()})",))

    def _why_access(self) -> str:
        return f"{self._said('isolation')}; {self._said('trust')}"

    def _said(self, field: str) -> str:
        return f"{WORD_OF[field]} = {words(getattr(self.policy, field))} ({self.origin(field)})"


def words(value: Any) -> str:
    """Return a policy's value as people read it."""
    if value is None:
        return "any"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(getattr(value, "value", value))


def _word(is_allowed: bool) -> str:
    return "allowed" if is_allowed else "refused"
