"""cache-dit at work by its own configuration file."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dit_tracer.engines.before import EngineError, as_before

NEEDS = 'this needs {}, which is not installed; pip install "ditscope[trace,replay]"'


@contextmanager
def cache_dit(pipeline: Any, text: str, *, fresh: bool = True) -> Iterator[None]:
    """cache-dit, as this content of its YAML file says; it clears what it keeps before each generation by itself.

    Raises:
        EngineError: It is not installed, or refuses the file or the pipeline.
    """
    try:
        import cache_dit as engine
    except ModuleNotFoundError as error:
        raise EngineError(NEEDS.format(error.name)) from None
    configs = _cache_dit_configs(engine, text)
    with _quiet(), as_before(pipeline):
        try:
            engine.enable_cache(pipeline, **{name: value for name, value in configs.items() if value is not None})
        except (ValueError, AssertionError, TypeError) as error:
            raise EngineError(f"cache-dit refuses {type(pipeline).__name__}: {error}") from None
        try:
            yield
        finally:
            engine.disable_cache(pipeline)


def _cache_dit_configs(engine: Any, text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "plan.yaml"
        file.write_text(text)
        try:
            return engine.load_configs(str(file))
        except Exception as error:  # of its parsers too, and it raises plain ones
            raise EngineError(f"cache-dit refuses the file: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush what cache-dit reports of itself on the standard output, where results stand."""
    names = [name for name in logging.root.manager.loggerDict if name.lower().startswith("cache_dit")]
    loggers = [logging.getLogger(name) for name in names]
    with ExitStack() as undo:
        for one in loggers:
            undo.callback(one.setLevel, one.level)
            one.setLevel(logging.ERROR)
        yield
