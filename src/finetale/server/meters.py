"""What a service counts, in Prometheus' format: requests, tokens, the queue, time to the first token and from one to the next."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Meters:
    """The counters of one service; a registry of their own, so that two services in a process keep apart."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "finetale_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self.prompt_tokens = Counter("finetale_prompt_tokens", "Tokens read.", ["model"], registry=self._registry)
        self.completion_tokens = Counter(
            "finetale_completion_tokens", "Tokens made.", ["model"], registry=self._registry
        )
        self.first_token = Histogram(
            "finetale_time_to_first_token_seconds",
            "From a request to its first text.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.each_token = Histogram(
            "finetale_time_per_token_seconds",
            "From one token to the next.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "finetale_queue_length", "Requests that wait for their turn.", ["model"], registry=self._registry
        )
        self._busy = Gauge(
            "finetale_busy_slots", "Completions that are being computed.", ["model"], registry=self._registry
        )

    def watch(self, model: str, waiting: Callable[[], int], busy: Callable[[], int]) -> None:
        """Look at a model's queue and slots whenever the meters are read."""
        self._waiting.labels(model).set_function(waiting)
        self._busy.labels(model).set_function(busy)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
