import numpy as np
import pytest
from dit_analyzer.measures.defects import curve_weights, half_precision_error, population_bias
from scipy import stats


def exp_2(values: list[float | None]) -> float:
    """The running mean of the published script."""
    mean = 0.0
    for batch, value in enumerate(values):
        if value is None:
            continue
        mean = value if batch == 0 else mean * (batch - 1) / batch + value / batch
    return mean


@pytest.mark.parametrize("missing", [(), (0,), (0, 1), (3,), (0, 1, 2, 3, 4, 5, 6)])
def test_weights_give_what_the_script_computes(missing):
    values = np.random.default_rng(1).lognormal(size=7)
    kept = [None if prompt in missing else value for prompt, value in enumerate(values.tolist())]
    assert curve_weights(7, missing) @ values == pytest.approx(exp_2(kept))


def test_prompt_0_is_dropped_and_the_others_are_averaged():
    assert curve_weights(10)[0] == 0
    np.testing.assert_allclose(curve_weights(10)[1:], 1 / 9)


@pytest.mark.parametrize("num_prompts, weights", [(0, []), (1, [1])])
def test_one_prompt_or_none_is_as_it_should_be(num_prompts, weights):
    assert curve_weights(num_prompts).tolist() == weights


@pytest.mark.parametrize("num_prompts", [2, 10, 1000])
def test_the_bias_of_a_population_deviation_is_that_of_the_chi_distribution(num_prompts):
    expected = stats.chi(num_prompts - 1).mean() / np.sqrt(num_prompts) - 1
    assert population_bias(num_prompts) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_prompts", [0, 1])
def test_a_deviation_of_fewer_than_two_prompts_is_refused(num_prompts):
    with pytest.raises(ValueError, match="two or more"):
        population_bias(num_prompts)


def test_half_precision_rounds_as_numpy_does():
    just_below_half_a_unit = np.float64(1 + half_precision_error(11) * 0.999)
    assert np.float16(just_below_half_a_unit) == 1
    assert np.float16(1 + half_precision_error(11) * 1.001) > 1
