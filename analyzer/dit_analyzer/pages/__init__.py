"""What is written about a study: a function for each kind of page, from a study to `Output`s.

An `Output` names its files at once and makes them when asked. A further page is a function, and an entry in `PAGES`.
"""

from __future__ import annotations

from dit_analyzer.pages.changes import changes_pages
from dit_analyzer.pages.claims import claim_pages
from dit_analyzer.pages.findings import depth_pages, stability_pages, variation_pages
from dit_analyzer.pages.index import index_pages
from dit_analyzer.pages.paper import facts_pages, figure_pages, sampling_pages, table_pages

PAGES = (
    table_pages,
    figure_pages,
    variation_pages,
    changes_pages,
    stability_pages,
    depth_pages,
    claim_pages,
    sampling_pages,
    facts_pages,
    index_pages,
)
"""What `dit-analyze study` writes, in this order."""
