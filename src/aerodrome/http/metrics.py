"""`/metrics`: the flight recorder's counters and the present, as Prometheus reads them. No tenant, user or session is a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from aerodrome import observe
from aerodrome.core.runtime import RuntimeState
from aerodrome.core.series import TALLY_SECONDS
from aerodrome.fleet.pool import RuntimePool
from aerodrome.http import callers
from aerodrome.http.site import Site

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def show(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(callers.BEARER)]
) -> Response:
    """Return all metrics: to an operator, or to anyone where the configuration says so."""
    site = callers.site_of(request)
    if not site.settings.has_open_metrics:
        await callers.admit_operator(request, await callers.recognize_caller(request, given))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Site(site, await site.browsers.count()))
    return Response(generate_latest(registry), headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE_LATEST)


class _Site(Collector):
    """The metrics of a site, as they are now; `browsers` are signed in."""

    def __init__(self, site: Site, browsers: int) -> None:
        self._site = site
        self._browsers = browsers

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        yield from self._turns()
        yield from self._present()
        if isinstance(self._site.services.fleet, RuntimePool):
            yield from self._fleet(self._site.services.fleet)

    def _turns(self) -> Iterator[Metric]:
        kept = self._site.services.recorder
        yield _counter("aerodrome_turns_ended_total", "end", {end.value: count for end, count in kept.ended.items()})
        yield _counter("aerodrome_calls_rejected_total", "reason", kept.rejected)
        directions = {"input": kept.tokens.taken, "output": kept.tokens.given}
        yield _counter("aerodrome_model_tokens_total", "direction", directions)
        buckets = [
            ("+Inf" if bound == TALLY_SECONDS[-1] else str(bound), float(count))
            for bound, count in zip(TALLY_SECONDS, kept.took.counts, strict=True)
        ]
        name = "aerodrome_turn_duration_seconds"
        yield HistogramMetricFamily(name, observe.METRICS[name], buckets=buckets, sum_value=kept.took.seconds)

    def _present(self) -> Iterator[Metric]:
        site = self._site
        yield _gauge("aerodrome_sessions_active", len(site.services.router))
        yield _gauge("aerodrome_sessions_at_work", site.services.drainer.at_work)
        yield _gauge("aerodrome_links_open", len(site.gateway.clients))
        yield _gauge("aerodrome_browsers_signed_in", self._browsers)

    def _fleet(self, pool: RuntimePool) -> Iterator[Metric]:
        views = pool.describe()
        states = Counter(view.state for view in views)
        runtimes = GaugeMetricFamily("aerodrome_runtimes", observe.METRICS["aerodrome_runtimes"], labels=["state"])
        for state in RuntimeState:
            runtimes.add_metric([state.value], states[state.value])
        yield runtimes
        yield _gauge("aerodrome_runtime_memory_bytes", sum(view.memory_bytes or 0 for view in views))
        yield _gauge("aerodrome_spawns_queued", pool.describe_pool().queued)


def _counter(name: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, observe.METRICS[name], labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, observe.METRICS[name], value=value)
