"""Every metric that archiver exposes, in one registry of its own. Names are fixed: docs/operations.md."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Prometheus instruments; attribute names are metric names without the prefix `archiver_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lag_bytes = self._gauge("lag_bytes", "WAL between the source's position and what is durable")
        self.lag_seconds = self._gauge("lag_seconds", "How long ago the source stood at the durable position")
        self.recovery_point_age_seconds = self._gauge(
            "recovery_point_age_seconds", "How much would be lost if the source vanished now"
        )
        self.slot_retained_bytes = self._gauge("slot_retained_bytes", "WAL that the slot keeps at the source")
        self.slot_seconds_left = self._gauge("slot_seconds_left", "Until the slot is lost, while that is in sight")
        self.slot_seconds_left.set(float("inf"))
        self.stream_breaks = self._gauge(
            "stream_breaks", "Times in a row that the server ended the stream within the same transaction"
        )
        self.region_up = self._gauge("region_up", "1 while the region answers", "region")
        self.region_unreplicated_segments = self._gauge(
            "region_unreplicated_segments", "Change segments that the region does not hold yet", "region"
        )
        self.missing_objects = self._gauge(
            "missing_objects", "Objects that a restore needs and the last look did not find", "region"
        )
        self.unarchived_tables = self._gauge(
            "unarchived_tables", "Tables that nobody excluded, and of which changes or rows are not archived"
        )
        self.messages_total = self._counter("messages", "Replication messages received")
        self.transactions_total = self._counter("transactions", "Commits received")
        self.received_bytes_total = self._counter("received_bytes", "Bytes received from the source")
        self.stored_bytes_total = self._counter("stored_bytes", "Bytes stored", "region")
        self.segments_total = self._counter("segments", "Change segments committed")
        self.gaps_total = self._counter("gaps", "Gaps recorded")
        self.seal_seconds = self._histogram("seal_seconds", "Compressing and encrypting one change segment")
        self.upload_seconds = self._histogram("upload_seconds", "Storing one object in one region", "region")
        self.confirmed_flush_lsn = self._gauge("confirmed_flush_lsn", "Position confirmed to the source, in bytes")
        self.last_snapshot_timestamp_seconds = self._gauge(
            "last_snapshot_timestamp_seconds", "When the newest base snapshot was complete"
        )
        self.last_drill_timestamp_seconds = self._gauge(
            "last_drill_timestamp_seconds", "When the newest drill ended, passed or failed"
        )
        self.last_drill_success = self._gauge("last_drill_success", "1 when the newest drill passed")
        self.degraded = self._gauge("degraded", "1 while fewer regions confirm than the durability policy wants")

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"archiver_{name}", help_text, labels, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"archiver_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(f"archiver_{name}", help_text, labels, registry=self.registry, buckets=_SECONDS)
