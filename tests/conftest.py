"""What all tests share: the same examples of properties every time, and a log of their own."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def _restored_log() -> Iterator[None]:
    """Whoever configures the log does it for one test."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
