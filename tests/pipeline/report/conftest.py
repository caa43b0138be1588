"""A browser, for tests of what people see."""

from collections.abc import Iterator

import pytest

from tests.browser import CHROMIUM, Browser, chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium")
    with chromium() as running:
        yield running
