"""Probation: for a while after a swap, whether the new version is worse than the endpoint's rule allows.

It is judged by what this worker has answered with it: the share of requests that failed, and the 99th percentile of
their time in the server, both against the version before. That one stays loaded meanwhile, so that going back takes no
loading and no registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noa.settings import RollbackSettings
    from noa_serving._crew import Content
    from noa_serving._generation import Generation
    from noa_serving._statistics import ModelStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Probation:
    """Of the version `content`, which `move` of the alias put in place of `before`. Times are on one clock, seconds."""

    rule: RollbackSettings
    content: Content
    move: int
    before: Generation
    began_at: float

    def judge(self, now: ModelStatistics) -> str | None:
        """Return what breaks the rule, or None while nothing does or too few requests came to tell."""
        return self._judge_errors(now) or self._judge_latency(now)

    def is_over(self, moment: float) -> bool:
        """Tell whether the version has passed."""
        return moment - self.began_at >= self.rule.within_s

    def _judge_errors(self, now: ModelStatistics) -> str | None:
        limit, requests = self.rule.max_error_rate, now.requests
        if limit is None or requests < self.rule.min_requests:
            return None
        share, was = now.failed_requests / requests, self.before.statistics.failed_share
        if share - was <= limit:
            return None
        return f"{share:.2%} of {requests} requests failed, {was:.2%} before; the rule allows {limit:.2%} more"

    def _judge_latency(self, now: ModelStatistics) -> str | None:
        limit, was = self.rule.max_latency_ratio, self.before.statistics.stages
        fewest = self.rule.min_requests
        if limit is None or now.stages.total_count < fewest or was.total_count < fewest:
            return None
        p99_ns, was_ns = now.stages.total_percentile_ns(0.99), was.total_percentile_ns(0.99)
        if p99_ns is None or was_ns is None or p99_ns <= limit * was_ns:
            return None
        return (
            f"p99 is {p99_ns / 1e6:.3g} ms in {now.stages.total_count} requests, {was_ns / 1e6:.3g} ms before; "
            f"the rule allows {limit:g} times that"
        )
