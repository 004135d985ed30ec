"""The gateway's figures as they are shown: the last hour in points, and the present. Reads the flight recorder; keeps nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from aerodrome.core import series
from aerodrome.core.flights import TurnEnd
from aerodrome.core.series import Bucket, Durations
from aerodrome.fleet.pool import RuntimePool
from aerodrome.gateway import recorder
from aerodrome.gateway.recorder import FlightRecorder
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.admin_shapes import Figure, Figures

SAMPLE_SECONDS = 5.0
#: Levels that are looked at on schedule.
SESSIONS, LINKS, RUNTIMES, QUEUED = "active_sessions", "links", "runtimes", "queued"
FAILURES = (TurnEnd.FAILED, TurnEnd.LOST)


@dataclass(frozen=True, slots=True)
class Point:
    """Some buckets together. Durations in seconds; None where there were no turns, levels None where nobody looked."""

    begins: float
    turns: int
    failed: int
    rejections: Counter[str]
    p50: float | None
    p95: float | None
    levels: dict[str, float]


def points(kept: FlightRecorder, together: int = 1) -> list[Point]:
    """Return the last hour, so many buckets to a point, the oldest first."""
    window = kept.series.window(kept.now())
    return [_point(window[at : at + together]) for at in range(0, len(window), together)]


def of_the_hour(kept: FlightRecorder) -> Figures:
    """Return the last hour as /v1/admin shows it."""
    figures = [
        Figure(
            begins=point.begins,
            turns=point.turns,
            failed_turns=point.failed,
            rejections=point.rejections.total(),
            turn_seconds_p50=point.p50,
            turn_seconds_p95=point.p95,
            active_sessions=_level(point, SESSIONS),
            links=_level(point, LINKS),
            runtimes=_level(point, RUNTIMES),
        )
        for point in points(kept)
    ]
    return Figures(bucket_seconds=series.BUCKET_SECONDS, figures=figures)


def latency(kept: FlightRecorder) -> Durations:
    """Return how long the completed turns of the last hour took."""
    return series.merge(_durations(kept.series.window(kept.now())))


def look(gateway: TenantGateway, runtimes: int | None, queued: int | None) -> None:
    """Note how much there is now."""
    services = gateway.services
    now, kept = services.recorder.now(), services.recorder.series
    kept.measure(now, SESSIONS, len(services.router))
    kept.measure(now, LINKS, len(gateway.clients))
    for name, level in ((RUNTIMES, runtimes), (QUEUED, queued)):
        if level is not None:
            kept.measure(now, name, level)


async def look_on_schedule(gateway: TenantGateway) -> None:
    """Note how much there is, until cancelled; so that what is shown does not depend on who looks."""
    fleet = gateway.services.fleet
    while True:
        pool = fleet.describe_pool() if isinstance(fleet, RuntimePool) else None
        look(gateway, pool.runtimes if pool else None, pool.queued if pool else None)
        await asyncio.sleep(SAMPLE_SECONDS)


def _point(buckets: list[Bucket]) -> Point:
    counts: Counter[str] = Counter()
    levels: dict[str, float] = {}
    for bucket in buckets:
        counts.update(bucket.counts)
        for name, level in bucket.levels.items():
            levels[name] = max(level, levels.get(name, level))
    took = series.merge(_durations(buckets))
    rejections = Counter(
        {
            name.removeprefix(f"{recorder.REJECTIONS}."): count
            for name, count in counts.items()
            if name.startswith(f"{recorder.REJECTIONS}.")
        }
    )
    return Point(
        begins=buckets[0].begins,
        turns=sum(counts[f"{recorder.TURNS}.{end.value}"] for end in TurnEnd),
        failed=sum(counts[f"{recorder.TURNS}.{end.value}"] for end in FAILURES),
        rejections=rejections,
        p50=took.percentile(0.5),
        p95=took.percentile(0.95),
        levels=levels,
    )


def _durations(buckets: list[Bucket]) -> list[Durations]:
    return [found for bucket in buckets if (found := bucket.durations.get(recorder.TURN_SECONDS)) is not None]


def _level(point: Point, name: str) -> int | None:
    return int(point.levels[name]) if name in point.levels else None
