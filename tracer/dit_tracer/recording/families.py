"""What cannot be seen from outside: one row for each transformer class that needs it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Family:
    """How one transformer class lays out its tokens.

    Args:
        text_first: Whether text tokens come before latent tokens where both are attended together.
        single: Modules whose input already joins text and latent tokens, as a pattern over module paths.
    """

    text_first: bool = False
    single: str = ""

    def is_single(self, path: str) -> bool:
        return bool(self.single) and fnmatchcase(path, self.single)


FAMILIES = {
    "FluxTransformer2DModel": Family(text_first=True, single="single_transformer_blocks.*"),
    "CogVideoXTransformer3DModel": Family(text_first=True),
}

PLAIN = Family()
