"""What of `[runtime]` reaches the fleet, and under which policy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from aerodrome import settings, tailoring
from aerodrome.adapters.distribution.release import RuntimeRelease
from aerodrome.core.vitals import DriftLimits
from aerodrome.fleet.spec import FleetSettings, HealthSettings


@pytest.fixture
def release(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return RuntimeRelease(**{**{field.name: None for field in fields(RuntimeRelease)}, "kind": "native"})


def test_every_key_of_health_recycling_and_storms_reaches_the_fleet(release):
    section = {
        "spawn_queue": 1,
        "max_runtimes": 2,
        "warm_runtimes": 3,
        "warm_runtimes_max": 4,
        "health_interval_seconds": 5.5,
        "health_deadline_seconds": 6.5,
        "health_failures": 7,
        "recycle_memory_bytes": 8,
        "recycle_threads": 9,
        "recycle_processes": 10,
        "recycle_age_seconds": 11.5,
        "recycle_sessions": 12,
        "recycle_ping_factor": 13.5,
        "recycle_ping_floor_seconds": 14.5,
        "max_open_files": 1000,
    }
    fleet = tailoring.fleet_settings(settings.load(runtime=section), release)
    assert (fleet.spawn_queue, fleet.max_runtimes, fleet.warm_runtimes, fleet.warm_runtimes_max) == (1, 2, 3, 4)
    assert fleet.health == HealthSettings(5.5, 6.5, 7)
    assert fleet.drift_limits == DriftLimits(8, 9, 800, 10, 11.5, 12, 13.5, 14.5)


def test_the_defaults_of_settings_and_fleet_agree_but_for_warm_runtimes(release):
    fleet = tailoring.fleet_settings(settings.load(), release)
    bare = FleetSettings(Path(), True, "", Path())
    assert (fleet.health, fleet.drift) == (bare.health, bare.drift)
    assert (fleet.spawn_queue, fleet.max_runtimes, fleet.warm_runtimes_max) == (
        bare.spawn_queue,
        bare.max_runtimes,
        bare.warm_runtimes_max,
    )
    assert (fleet.warm_runtimes, bare.warm_runtimes) == (2, 0)


def test_the_transparent_policy_keeps_nothing_warm(release):
    assert tailoring.fleet_settings(settings.load(policy="transparent"), release).warm_runtimes == 0
