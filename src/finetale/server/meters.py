"""Metrics in Prometheus' format: requests, tokens, queue length, time to first token and time per token."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Meters:
    """The metrics of one service. Each service has its own registry, so that one process can have several."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "finetale_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self.prompt_tokens = Counter("finetale_prompt_tokens", "Tokens read.", ["model"], registry=self._registry)
        self.completion_tokens = Counter(
            "finetale_completion_tokens", "Tokens generated.", ["model"], registry=self._registry
        )
        self.first_token = Histogram(
            "finetale_time_to_first_token_seconds",
            "Seconds from a request to its first text.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.each_token = Histogram(
            "finetale_time_per_token_seconds",
            "Seconds from one token to the next.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge("finetale_queue_length", "Requests in the queue.", ["model"], registry=self._registry)
        self._busy = Gauge("finetale_busy_slots", "Completions being generated.", ["model"], registry=self._registry)

        self._kv_bytes = Gauge(
            "finetale_kv_cache_bytes",
            "Memory of the keys and values of attention.",
            ["model"],
            registry=self._registry,
        )

        self._rates = Gauge(
            "finetale_engine_tokens_per_second",
            "Speed of each engine when the model's engine was chosen.",
            ["model", "engine"],
            registry=self._registry,
        )

    def compared(self, model: str, rates: Mapping[str, float]) -> None:
        """Report the speeds of the engines that were compared for a model."""
        for engine, rate in rates.items():
            self._rates.labels(model, engine).set(rate)

    def watch(
        self, model: str, waiting: Callable[[], int], busy: Callable[[], int], kv_bytes: Callable[[], int]
    ) -> None:
        """Read a model's queue length, busy slots and memory whenever the metrics are read."""
        self._kv_bytes.labels(model).set_function(kv_bytes)
        self._waiting.labels(model).set_function(waiting)
        self._busy.labels(model).set_function(busy)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
