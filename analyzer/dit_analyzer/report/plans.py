"""The 41 plans of a trace as rows, each with the command that makes it."""

from __future__ import annotations

import shlex
from typing import Any

from dit_formats.plan import Plan
from dit_formats.reader import Trace

from dit_analyzer.plans.asked import SHARE, Asked, planner_of
from dit_analyzer.plans.planner import SHARES
from dit_analyzer.show.plans import MEANT, _caveats, _error


def plans_of(trace: Trace, path: str, dask: Any = None) -> dict[str, Any]:
    """Rows for all of `SHARES`, and which is the default; it raises what `planner_of` does.

    Args:
        path: As the user wrote it, for the commands.
    """
    plans = planner_of(trace, Asked(), dask).curve()
    rows = [_row(plan, share, path) for plan, share in zip(plans, SHARES)]
    default = min(range(len(SHARES)), key=lambda place: abs(SHARES[place] - SHARE))
    return {
        "rows": rows,
        "default": default,
        "distinct": [place for place, row in enumerate(rows) if row["mask"] not in {r["mask"] for r in rows[:place]}],
        "meant": MEANT[plans[0].made["signal"]],
        "predictor": plans[0].predictor,
        "caveats": list(_caveats(plans[0])),
    }


def _row(plan: Plan, share: float, path: str) -> dict[str, Any]:
    seconds = plan.predicted.get("seconds")
    faster = f"{plan.predicted['seconds_uncached'] / max(seconds, 1e-9):.2f}" if seconds is not None else ""
    return {
        "asked": f"{share:.0%}",
        "share": f"{plan.computed_share:.1%}",
        "steps": int(plan.steps_mask.sum()),
        "of": plan.request.num_steps,
        "mask": "".join(str(int(one)) for one in plan.rows[0].compute),
        "error": _error(plan.predicted),
        "faster": faster,
        "verdict": plan.predicted["verdict"],
        "command": f"dit-analyze plan {shlex.quote(path)} --reuse {1 - share:.0%}",
    }
