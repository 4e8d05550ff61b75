"""What the analyzer says of published configurations is what the tracer counts in them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from dit_analyzer.measures.paper import LEFT_OUT
from dit_analyzer.printed import CONFIGURED, PAPER
from dit_tracer.cli import main


@pytest.mark.parametrize("name", PAPER)
def test_layers_and_parameters_are_those_of_the_published_configuration(name: str) -> None:
    told = json.loads(CliRunner().invoke(main, ["models", name, "--json"]).stdout)
    layers = sum(one["type"] not in LEFT_OUT for one in told["layers"])
    assert (layers, sum(told["parameters"].values())) == CONFIGURED[name]
