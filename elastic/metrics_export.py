"""What the OpenTelemetry SDK needs to export a peer's numbers. Only imported if the run file wants metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from wsgiref.simple_server import WSGIServer

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, start_http_server

from elastic.config_local import MetricsConfig
from elastic.metrics import BOUNDS, INSTRUMENTS, Instrument, Labels, Meters
from elastic.trace_file import read_secret, run_file_alone

logger = logging.getLogger(__name__)

EXPORT_SECONDS = 5.0
"""One OTLP request, retries included, may take so long."""
RESOURCE_LABELS = frozenset({"service.name", "service.namespace", "service.instance.id"})
"""Of the resource what Prometheus shows on every number: which peer, of which run."""


class Exports:
    """The exporters of one peer's numbers, until they are closed. None of them ever raises or is waited for."""

    def __init__(self, config: MetricsConfig, meters: Meters, resource: dict[str, str]) -> None:
        """Start what the run file names; what cannot be started is a warning."""
        self._provider: MeterProvider | None = None
        self._server: WSGIServer | None = None
        self.address = ""
        """Of the Prometheus endpoint, if there is one: "http://127.0.0.1:9464/metrics"."""
        with run_file_alone():
            self._start(config, meters, resource)

    def _start(self, config: MetricsConfig, meters: Meters, resource: dict[str, str]) -> None:
        readers: list[MetricReader] = []
        if config.prometheus:
            readers += self._endpoint(config.prometheus)
        if config.otlp:
            with _warned("no metrics go to %s, training goes on: %s", config.otlp):
                readers.append(_periodic(config))
        if readers:
            self._provider = MeterProvider(
                metric_readers=readers,
                resource=Resource(resource),
                exemplar_filter=AlwaysOffExemplarFilter(),
                shutdown_on_exit=False,
            )
            register(self._provider.get_meter("elastic"), meters)

    def close(self) -> None:
        """Export once more and stop; returns within about `EXPORT_SECONDS`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._provider is not None:
            with _warned("%s: the last metrics may be lost: %s", "OTLP"):
                self._provider.shutdown(timeout_millis=1000 * EXPORT_SECONDS)

    def _endpoint(self, where: str) -> list[MetricReader]:
        """A Prometheus endpoint; none if its port is taken."""
        host, _, port = where.rpartition(":")
        registry = CollectorRegistry()  # not the global one, in which Ray or others may count too
        with _warned("no Prometheus endpoint at %s, training goes on: %s", where):
            self._server, _ = start_http_server(int(port), host.strip("[]"), registry)
            self.address = f"http://{host}:{self._server.server_port}/metrics"
            return [
                PrometheusMetricReader(
                    scope_info_enabled=False, registry=registry, resource_attribute_filter=RESOURCE_LABELS.__contains__
                )
            ]
        return []


def register(meter: Meter, meters: Meters) -> None:
    """Make every instrument of the table, fed by a peer's numbers."""
    histograms: dict[str, Any] = {}
    for each in INSTRUMENTS:
        about = {"name": each.name, "unit": each.unit, "description": each.description}
        if each.kind == "histogram":
            histograms[each.name] = meter.create_histogram(**about, explicit_bucket_boundaries_advisory=BOUNDS)
        elif each.kind == "counter":
            meter.create_observable_counter(**about, callbacks=[_asking(each, meters)])
        else:
            meter.create_observable_gauge(**about, callbacks=[_asking(each, meters)])

    def tell(name: str, seconds: float, labels: Labels) -> None:
        histograms[name].record(seconds, dict(labels))

    meters.on_seconds.append(tell)


def _asking(instrument: Instrument, meters: Meters) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def ask(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, dict(labels)) for labels, value in meters.numbers(instrument.name).items()]

    return ask


def _periodic(config: MetricsConfig) -> MetricReader:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    headers = {"Authorization": read_secret(config.authorization)} if config.authorization is not None else {}
    exporter = OTLPMetricExporter(config.otlp, headers=headers, timeout=EXPORT_SECONDS, compression=Compression.Gzip)
    return PeriodicExportingMetricReader(
        Guarded(exporter),
        export_interval_millis=1000 * config.seconds,
        export_timeout_millis=1000 * EXPORT_SECONDS,
    )


class Guarded(MetricExporter):
    """Any exporter, made harmless: it never raises, and says once that it fails."""

    def __init__(self, inner: MetricExporter) -> None:
        super().__init__()
        self._inner, self._failing = inner, False
        # The SDK logs every failed request; one line at the first and one at the recovery is enough.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        reason = "the endpoint did not take them"
        try:
            result = self._inner.export(metrics_data, timeout_millis, **kwargs)
        except Exception as error:  # noqa: BLE001  telemetry never takes down training
            reason, result = str(error), MetricExportResult.FAILURE
        failing = result is not MetricExportResult.SUCCESS
        if failing and not self._failing:
            logger.warning("metrics are lost, training goes on: %s", reason)
        if self._failing and not failing:
            logger.info("metrics are exported again")
        self._failing = failing
        return result

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        with suppress(Exception):  # telemetry never takes down training
            self._inner.shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


@contextmanager
def _warned(message: str, what: str) -> Iterator[None]:
    """Whatever goes wrong here is a line in the log."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  telemetry never takes down training
        logger.warning(message, what, error)
