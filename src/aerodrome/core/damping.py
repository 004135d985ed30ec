"""How much of a flood of refusals is recorded: the first of equal ones, within a budget; the rest is counted.

Two budgets hold at once, each a bucket that fills slowly: that of a member (a user; an address before it has proved who it is)
and that of its group (a tenant; all strangers together): a tenant can name users, and a stranger addresses, without end. What is
recorded and counted is bounded by the groups' budgets alone, on disk and in memory. No I/O: gateway.audit says what is damped.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from aerodrome.core.audit import Entry

#: Refusals that are equal to one recorded this long ago or less are counted, not recorded.
WINDOW_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many different refusals are recorded at once, and how many a second from then on."""

    burst: float
    per_second: float


#: A burst has room for one refusal of every method of the table; then it is an attack, and a few records tell as much as many.
OF_MEMBER = Allowance(1000, 0.5)
OF_GROUP = Allowance(4000, 1.0)


@dataclass(slots=True)
class _Budget:
    allowance: Allowance
    left: float
    at: float

    def refill(self, now: float) -> float:
        """Return what is left now."""
        self.left = min(self.allowance.burst, self.left + max(0.0, now - self.at) * self.allowance.per_second)
        self.at = now
        return self.left

    def is_full(self, now: float) -> bool:
        """Say whether nothing is missing: then it need not be remembered."""
        return self.refill(now) >= self.allowance.burst


@dataclass(slots=True)
class _Held:
    """Refusals that are equal: the first, when it came, and how many were not recorded."""

    entry: Entry
    began: float
    count: int = 0


class Damper:
    """Says of each refusal whether it is recorded now; what is not comes out of `collect`, with a count."""

    def __init__(
        self,
        member: Allowance = OF_MEMBER,
        group: Allowance = OF_GROUP,
        members: int = 10_000,
        held: int = 50_000,
    ) -> None:
        self._of_member = member
        self._of_group = group
        self._max_members = members
        self._max_held = held
        self._groups: dict[str, _Budget] = {}
        self._members: dict[tuple[str, Hashable], _Budget] = {}
        self._held: dict[Entry, _Held] = {}

    def admits(self, group: str, member: Hashable, entry: Entry, now: float) -> bool:
        """Say whether an entry is to be recorded now. A known user's link does not tell two entries apart."""
        key = entry if entry.owner is None else replace(entry, peer=None)
        held = self._held.get(key)
        if held is not None:
            held.count += 1
            return False
        lacking = self._spend(group, member, now)
        if lacking is None:
            self._held[key] = _Held(entry, now)
            return True
        rest = _rest(entry, is_members=lacking == "member")
        self._held.setdefault(rest, _Held(rest, now)).count += 1
        return False

    def _spend(self, group: str, member: Hashable, now: float) -> str | None:
        """Take one from both budgets; if one of them is empty take none, and return which."""
        of_group = self._groups.get(group)
        if of_group is None:
            of_group = self._groups[group] = _Budget(self._of_group, self._of_group.burst, now)
        of_member = self._members.get((group, member))
        if of_group.refill(now) < 1 or len(self._held) >= self._max_held:
            return "group"
        if of_member is None:
            if len(self._members) >= self._max_members:
                return "group"
            of_member = self._members[group, member] = _Budget(self._of_member, self._of_member.burst, now)
        if of_member.refill(now) < 1:
            return "member"
        of_group.left -= 1
        of_member.left -= 1
        return None

    def collect(self, now: float, seconds: float = WINDOW_SECONDS) -> list[Entry]:
        """Return what was counted beside entries that came `seconds` ago or earlier, each with its count, and forget them."""
        over = [key for key, held in self._held.items() if now - held.began >= seconds]
        counted = [self._held.pop(key) for key in over]
        self._groups = {key: budget for key, budget in self._groups.items() if not budget.is_full(now)}
        self._members = {key: budget for key, budget in self._members.items() if not budget.is_full(now)}
        return [replace(held.entry, count=held.count) for held in counted if held.count]

    def __len__(self) -> int:
        return len(self._held)


def _rest(entry: Entry, is_members: bool) -> Entry:
    """Return what is said of refusals that are counted together: who, where one member has used up its own; else whose users."""
    reason = entry.reason.partition(":")[0] if entry.reason is not None else None
    common = replace(
        entry, session_id=None, session_owner=None, method=None, key_id=None, target="several", reason=reason
    )
    if is_members:
        return common if entry.owner is None else replace(common, peer=None)
    tenant = entry.owner.tenant if entry.owner is not None else entry.tenant
    return replace(common, owner=None, tenant=tenant, peer=None)
