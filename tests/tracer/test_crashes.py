"""A run that is killed without a warning, at random moments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CRASHES = Path(__file__).parents[2] / "benchmarks" / "crashes.py"


@pytest.mark.slow
def test_killed_run_loses_no_more_than_is_in_flight_and_resumes_to_the_same_numbers() -> None:
    """In flight are one prompt that runs, and one shard that is being written meanwhile."""
    command = [sys.executable, str(CRASHES), "--kills", "10", "--json"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert found["kills"] == 10 and found["traces_compared"] >= 1 and found["good"]
    assert found["most_lost"] <= 2
    assert found["changed"] == found["damaged"] == found["unequal"] == 0
