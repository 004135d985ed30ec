"""Where a Vault is and what it is asked with, for vault.py. By itself, because settings need no HTTP client to be read."""

from __future__ import annotations

from dataclasses import dataclass

from aerodrome.core.secret import Reference

SERVICE_ACCOUNT = Reference("k8s", "/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Where a Vault is and how the gateway proves itself: by `token`, or by the role of a Kubernetes service account."""

    address: str
    token: Reference | None = None
    namespace: str | None = None
    kubernetes_role: str | None = None
    kubernetes_mount: str = "kubernetes"
    kubernetes_jwt: Reference = SERVICE_ACCOUNT
    timeout_seconds: float = 10.0
