"""The layer tables that `dit-trace models NAME` prints."""

from __future__ import annotations

import json

import pytest
from dit_tracer.models.catalog import BUNDLED, DIGITS, SEVEN
from dit_tracer.models.table import show, table_of

SELF_ATTENTION = {
    "flux.1-dev": {"joint": 19, "single": 38},
    "pixart-alpha": {"self": 28, "cross": 28},
    "sd3": {"joint": 24},
    "cogvideox-5b": {"joint": 42},
    "open-sora": {"spatial": 28, "temporal": 28, "cross": 56},
    "latte-1": {"spatial": 28, "temporal": 28, "cross": 28},
    "mochi-1-preview": {"joint": 48},
}


@pytest.mark.parametrize("name", SEVEN)
def test_layers_of_the_seven_are_counted_at_full_size(name: str) -> None:
    table = table_of(name)
    types = [row.type for row in table.rows]
    assert {kind: types.count(kind) for kind in types} == SELF_ATTENTION[name]
    assert all(row.heads and row.channels and row.tokens for row in table.rows)


def test_tokens_are_those_of_the_model_at_its_size() -> None:
    (first, *_, last) = table_of("flux.1-dev").rows
    assert first.tokens["k"] == {"latent": 4096, "text": 512} == last.tokens["a"]
    assert (first.heads, first.channels) == (24, 3072)
    temporal = next(row for row in table_of("latte-1").rows if row.type == "temporal")
    assert temporal.tokens["k"] == {"latent": 16 * 1024}


def test_equal_layers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show("sd3", as_json=False)
    out = capsys.readouterr().out
    assert "2.03 B parameters" in out
    lines = [line.split() for line in out.splitlines() if "transformer_blocks" in line]
    assert [line[:3] for line in lines] == [["24", "transformer.transformer_blocks.0-23.attn", "joint"]]


def test_layers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show("tiny:wan2.2", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert set(found["networks"]) == {"transformer", "transformer_2"}
    assert {layer["type"] for layer in found["layers"]} == {"self", "cross"}
    assert found["kinds"] == ["k", "v", "a"]


@pytest.mark.parametrize("name", BUNDLED)
def test_folder_is_shown_without_its_weights(name: str) -> None:
    rows = table_of(str(DIGITS / name)).rows
    assert [row.name for row in rows] == sorted(
        (row.name for row in table_of(name).rows), key=[r.name for r in rows].index
    )
    assert {row.type for row in rows} <= {"-", "spatial", "temporal"}
