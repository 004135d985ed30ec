"""A demo for each module, who plays which part in it, and clients that are gone when their test is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess

from .python_sdk import Cast, Connect, Programs


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoProcess]:
    """A running demo; it must leave nothing behind."""
    with demo_process.running() as running:
        yield running


@pytest.fixture(params=["user", "shared"])
def isolation(request: pytest.FixtureRequest) -> str:
    """Where runtimes are one user's, and where strangers share them."""
    return str(request.param)


@pytest.fixture
def cast(demo: DemoProcess, isolation: str) -> Cast:
    """An owner, a colleague in the same tenant, and a stranger in another."""
    first, second = demo.tenants(isolation)
    return Cast(first[0], first[1], second[0])


@pytest.fixture
async def connect(demo: DemoProcess) -> AsyncIterator[Connect]:
    """Connect unchanged SDK programs to the demo."""
    programs = Programs(demo)
    yield programs.connect
    await programs.aclose()
