"""Read what the headers of an answer say of time (RFC 9110)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

CLOCKS_AGREE = timedelta(minutes=1)
"""An answer may have been on its way for half of it."""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks for (a number or a date), None when it does not say."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    until = _instant(value)
    return None if until is None else max(0.0, (until - datetime.now(UTC)).total_seconds())


def ahead_of(now: datetime, headers: Mapping[str, str]) -> timedelta:
    """Return how far the sender's clock (`Date`, whole seconds) is ahead of `now`; zero where they agree, or unsaid."""
    sent_at = _instant(headers.get("date", ""))
    ahead = sent_at - now if sent_at is not None else timedelta(0)
    return ahead if abs(ahead) > CLOCKS_AGREE else timedelta(0)


def _instant(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return found.replace(tzinfo=found.tzinfo or UTC)
