import numpy as np
import pytest
import xarray as xr
from dit_analyzer.measures.agreement import agreement
from dit_analyzer.measures.changes import changes

AXES = ("prompt", "kind", "layer", "transition")


def view(prompts: int = 3) -> xr.Dataset:
    l1 = np.random.default_rng(5).lognormal(size=(prompts, 2, 4, 6))
    coordinates = {"kind": ["k", "a"], "layer": range(4), "transition": range(6)}
    return xr.Dataset({"l1": (AXES, l1)}, coordinates, {"num_steps": 7})


def by(records: list[dict], kind: str, quantity: str) -> dict:
    (found,) = [row for row in records if (row["kind"], row["quantity"]) == (kind, quantity)]
    return found


def test_equal_values_do_not_deviate():
    records = agreement(view(), view())
    assert len(records) == 6
    assert all(row["median"] == row["largest"] == 0 for row in records)


def test_a_common_factor_moves_l1_and_not_the_cv():
    sampled = view()
    sampled["l1"][:, 0] *= 1.1
    records = agreement(sampled, view())
    assert by(records, "k", "l1")["median"] == pytest.approx(0.1)
    assert by(records, "k", "cv")["largest"] == pytest.approx(0, abs=1e-12)
    assert by(records, "a", "l1")["largest"] == 0


def test_the_largest_deviation_is_of_one_cell():
    sampled = view()
    sampled["l1"][0, 1, 2, 3] *= 0.5
    found = by(agreement(sampled, view()), "a", "l1")
    assert (found["cells"], found["median"], found["largest"]) == (72, 0, 0.5)


def test_cells_without_a_value_or_change_are_left_out():
    sampled, exact = view(), view()
    sampled["l1"][0, 0, 0, :2] = [np.nan, np.inf]
    exact["l1"][0, 0, 0, 2:4] = [0, np.nan]
    assert by(agreement(sampled, exact), "k", "l1")["cells"] == 68


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_where_nothing_can_be_compared_there_is_no_number(value):
    exact = view()
    exact["l1"][:] = value
    assert all(row["cells"] == 0 and np.isnan(row["median"]) for row in agreement(view(), exact))


def test_probabilities_of_a_change_are_compared_as_they_are():
    exact, sampled = view(), view()
    sampled["l1"][:, 0, :, 3:] *= 9
    apart = np.abs(changes(sampled)["probability"] - changes(exact)["probability"]).sel(kind="k")
    found = by(agreement(sampled, exact), "k", "change")
    assert found["largest"] == pytest.approx(float(apart.max())) and found["largest"] > 0.1
    assert found["cells"] == int(apart.notnull().sum())


def test_one_prompt_has_no_cv():
    assert {row["quantity"] for row in agreement(view(1), view(1))} == {"l1", "change"}


def test_different_cells_are_refused():
    with pytest.raises(ValueError, match="transition 5 and 6"):
        agreement(view().isel(transition=slice(5)), view())
