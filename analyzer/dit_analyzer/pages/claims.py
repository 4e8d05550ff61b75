"""The page of the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator

from dit_analyzer.claims import judged
from dit_analyzer.show import claims, papertables
from dit_analyzer.study import Output, Study, text_of


def claim_pages(study: Study) -> Iterator[Output]:
    """What the paper claims, with a verdict each."""

    def page() -> list[bytes]:
        found = judged(study)
        rows = list(claims.records(found))
        return [text_of(study, claims.page(found, study.members)), papertables.records_to_csv(rows).encode()]

    yield Output(("claims.md", "claims.csv"), page)
