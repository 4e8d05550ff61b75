"""Asks one question about every part of a trace: here, in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit_analyzer.workers import MOST, by_processes, cores

WORTH = 1.5
"""Seconds of work below which starting processes costs more than it saves."""

PATIENCE = 10
"""Seconds within which a cluster has to answer."""

SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")


class ClusterError(RuntimeError):
    """A Dask cluster that cannot be used."""

    exit_code = 1


def mapped(
    function: Callable[[Any, Any], Any],
    common: Any,
    parts: Sequence[Any],
    *,
    seconds: float,
    dask: Any = None,
) -> Iterator[tuple[int, Any]]:
    """Place and `function(common, part)` of every part, in the order in which they are done.

    Args:
        function: Known by its name to every process.
        seconds: How long one core will take, about.
        dask: Address of a scheduler (`tcp://host:8786`), its file, or a `distributed.Client`; its workers must have
            this package, and see the trace at the same path.
    """
    count = min(cores(), MOST, len(parts))
    if dask is not None:
        return _on_cluster(function, common, parts, dask)
    if count > 1 and seconds > WORTH:
        return by_processes(function, common, parts, count)
    return ((place, function(common, part)) for place, part in enumerate(parts))


def _on_cluster(
    function: Callable[[Any, Any], Any], common: Any, parts: Sequence[Any], dask: Any
) -> Iterator[tuple[int, Any]]:
    with _client(dask) as client:
        from distributed import as_completed

        with _mended(dask):
            shared = client.scatter(common, broadcast=True)
        places: dict[str, int] = {}

        def submit(place: int) -> Any:
            future = client.submit(function, shared, parts[place], pure=False)
            places[future.key] = place
            return future

        few = min(len(parts), 4 * max(sum(client.nthreads().values()), 1))
        running = as_completed([submit(place) for place in range(few)], loop=client.loop)
        following = iter(range(few, len(parts)))
        for future in running:
            with _mended(dask):
                answer = future.result()
            for place in following:
                running.add(submit(place))
                break
            yield places.pop(future.key), answer


@contextmanager
def _mended(dask: Any) -> Iterator[None]:
    """What Dask raises if scheduler or workers lack something, or are lost, as one line."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except (KilledWorker, ImportError, CancelledError, CommClosedError, RuntimeError) as error:
        if type(error) is RuntimeError and "deseriali" not in str(error):
            raise  # of our own work
        what = f"{_name(dask)}: the cluster lost the work or cannot do it ({(str(error).splitlines() or ['?'])[0]})"
        raise ClusterError(f"{what}; scheduler and workers need ditscope as it is here, and memory") from error


@contextmanager
def _client(dask: Any) -> Iterator[Any]:
    """A client of the cluster; one that was given stays open."""
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError('Dask is not installed; run pip install "ditscope[dask]"') from None
    if isinstance(dask, Client):
        yield dask
        return
    try:
        client = Client(_address(dask), timeout=PATIENCE, set_as_default=False)
    except OSError as error:
        what = f"{dask}: no Dask scheduler answers there"
        raise ClusterError(f"{what}; give its address as dask scheduler prints it, or its file") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise ClusterError(f"{dask}: has no workers; start some with dask worker {dask}") from None
        yield client


def _address(dask: Any) -> str:
    """The address itself, or what the scheduler wrote into its file."""
    address = str(dask)
    try:
        address = json.loads(Path(address).read_text())["address"] if Path(address).is_file() else address
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ClusterError(f"{dask}: not a file that dask scheduler wrote; give tcp://host:8786") from error
    if not str(address).startswith(SCHEMES):
        raise ClusterError(f"{dask}: neither a file nor an address; give tcp://host:8786 as dask scheduler prints it")
    return str(address)


def _name(dask: Any) -> str:
    return str(getattr(getattr(dask, "scheduler", None), "address", dask))
