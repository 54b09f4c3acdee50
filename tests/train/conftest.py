"""Ranks for the tests of several, all forked from one process."""

import pytest
from ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Launches mmfast on several ranks."""
    launcher = Ranks()
    yield launcher
    launcher.close()
