"""The registry suite over every adapter (conftest.py says which)."""

from __future__ import annotations

from .registry_suite import KeyStoreContract, SessionRegistryContract, TenantStoreContract


class TestSessionRegistry(SessionRegistryContract):
    pass


class TestKeyStore(KeyStoreContract):
    pass


class TestTenantStore(TenantStoreContract):
    pass
