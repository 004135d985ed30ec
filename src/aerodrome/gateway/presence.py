"""What the reaper is told of sessions that client links hold (gateway.deletion.Presence, over gateway.residents)."""

from __future__ import annotations

from aerodrome.gateway import unloading
from aerodrome.gateway.client import Services


class ResidentPresence:
    """Presence by what links hold and what runs in it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._unloaded: set[tuple[str, str]] = set()

    def is_at_work(self, realm_key: str, session_id: str) -> bool:
        """Say whether something is under way in the session, or it is in a runtime again since we unloaded it."""
        is_loaded = self._services.router.find(realm_key, session_id) is not None
        resident = self._services.residents.find(realm_key, session_id)
        if (realm_key, session_id) in self._unloaded or resident is None:
            self._unloaded.discard((realm_key, session_id))
            return is_loaded
        return resident.is_at_work

    async def unload(self, realm_key: str, session_id: str) -> bool:
        """Unload the session for every link that holds it; its next call would wake it."""
        resident = self._services.residents.find(realm_key, session_id)
        if resident is not None and not await unloading.unload(self._services, resident, "expiry"):
            return False
        self._unloaded.add((realm_key, session_id))
        return self._services.router.find(realm_key, session_id) is None
