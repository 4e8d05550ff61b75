"""Which prompts two runs have in common: the same text, seed and image."""

from __future__ import annotations

import xarray as xr


class ComparisonError(ValueError):
    """Two runs that cannot be compared; the message says why."""

    exit_code = 1


KEY = ("text", "seed", "image")


def common_prompts(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Both views with the prompts that they have in common, in the order of the first.

    Raises:
        ComparisonError: There are none, and why.
    """
    mine, theirs = _keys(one), _keys(other)
    shared = [key for key in mine if key in theirs]
    if not shared:
        raise ComparisonError(f"no common prompts: {_reason(mine, theirs)}")
    first, second = ([places[key] for key in shared] for places in (mine, theirs))
    return one.isel(prompt=first), other.isel(prompt=second)


def share_prompts(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether some prompt is in both."""
    return bool(_keys(one).keys() & _keys(other).keys())


def common_kinds(one: xr.Dataset, other: xr.Dataset) -> list[str]:
    """The kinds that both views have.

    Raises:
        ComparisonError: There are none.
    """
    mine, theirs = (view.kind.values.tolist() for view in (one, other))
    kinds = [kind for kind in mine if kind in theirs]
    if not kinds:
        raise ComparisonError(
            f"no common kinds: one has {', '.join(mine) or 'none'}, the other {', '.join(theirs) or 'none'}"
        )
    return kinds


def _keys(view: xr.Dataset) -> dict[tuple[str, int, int], int]:
    """The place of each prompt."""
    if missing := [name for name in KEY if name not in view.coords]:
        raise ComparisonError(f"prompts cannot be matched without their {missing[0]}; take the view from `distances`")
    return {key: place for place, key in enumerate(zip(*(view[name].values.tolist() for name in KEY)))}


def _reason(mine: dict[tuple[str, int, int], int], theirs: dict[tuple[str, int, int], int]) -> str:
    if {text for text, *_ in mine}.isdisjoint(text for text, *_ in theirs):
        return f"none of the {len(mine)} texts of the one is among the {len(theirs)} of the other; give both the same"
    seeds = [", ".join(map(str, sorted({seed for _, seed, _ in keys})[:3])) for keys in (mine, theirs)]
    return f"texts agree, but seeds do not ({seeds[0]} against {seeds[1]}); trace both with the same --seed"
