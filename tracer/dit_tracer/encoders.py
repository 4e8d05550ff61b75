"""Runs the text encoders of a pipeline once for all prompts, and then lets them go: T5 takes 9.5 GB.

Generating is begun for every prompt and stopped at the first call of a denoising network; by then all that is to be
encoded has been. Whether a pipeline gives its network the same with stored results as with its encoders is tried out
on the first prompt; where it does not, because it uses them in another way than calling them, it keeps them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves

from dit_tracer.calls import generate
from dit_tracer.playback import Shelf, StandIn
from dit_tracer.recording.sites import find_networks
from dit_tracer.work import Task

Begin = Callable[[Task], Any]
"""Begins a generation, and gives the call of a network that it comes to."""


def encode_once(pipeline: Any, tasks: Iterable[Task], call: dict[str, Any], *, others: bool = False) -> bool:
    """Whether the text encoders of `pipeline` are gone and their results in their place, for these tasks.

    Nothing is changed where the encoders are offloaded already, or where results would not do in their place.

    Args:
        call: Arguments of the pipeline beside prompt and generator.
        others: Whether further tasks may come, as those of another process that this one helps. The encoders then
            wait on the host.
    """
    encoders, distinct = _movable(pipeline), _distinct(tasks)
    if not encoders or not distinct:
        return False
    begin = partial(_network_call, pipeline, find_networks(pipeline), call=call)
    stand_ins = _tried_out(pipeline, encoders, begin, distinct[0])
    if not stand_ins or not _encode_further(begin, distinct[1:]):
        vars(pipeline).update(encoders)
        return False
    for stand_in in stand_ins:
        stand_in.put_away() if others else stand_in.release()
    encoders.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def _tried_out(pipeline: Any, encoders: dict[str, nn.Module], begin: Begin, task: Task) -> list[StandIn]:
    """Stand-ins, put into the pipeline; none if a network is called with something else then."""
    shelf = Shelf()
    try:
        with Reading(encoders) as reading:
            wanted = begin(task)
            reading.note(wanted)
        stand_ins = {name: StandIn(name, part, reading.read[name], shelf) for name, part in encoders.items()}
        vars(pipeline).update(stand_ins)
        same = wanted is not None and alike(wanted, begin(task))
    except Exception:  # whatever a pipeline makes of a stand-in, or of this prompt
        same = False
    return list(stand_ins.values()) if same else []


def _encode_further(begin: Begin, tasks: list[Task]) -> bool:
    """Whether there was room for what all these tasks need."""
    for task in tasks:
        try:
            begin(task)
        except OSError:
            return False
        except Exception:  # which it will be again when its turn comes, and then be told
            continue
    return True


def _movable(pipeline: Any) -> dict[str, nn.Module]:
    """The text encoders of a pipeline, if nobody else moves them or looks into them."""
    components = getattr(pipeline, "components", {})
    found = {
        name: part
        for name, part in components.items()
        if name.startswith("text_encoder") and isinstance(part, nn.Module)
    }
    compiled = any(hasattr(part, "_orig_mod") for part in components.values())
    bound = compiled or any(part.training or _is_hooked(part) for part in found.values())
    own = all(vars(pipeline).get(name) is part for name, part in found.items())
    return found if own and not bound else {}


def _is_hooked(part: nn.Module) -> bool:
    """Whether accelerate or diffusers moves the weights of a part, or of something in it."""
    return any(hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") for module in part.modules())


def _distinct(tasks: Iterable[Task]) -> list[Task]:
    """One task of those that differ in their seed alone."""
    return list({repr((task.text, sorted(task.arguments.items()))): task for task in tasks}.values())


class _Reached(BaseException):
    """A denoising network is called. No `Exception`, for pipelines may catch those."""

    def __init__(self, *call: Any) -> None:
        self.call = call


def _network_call(pipeline: Any, networks: dict[str, nn.Module], task: Task, call: dict[str, Any]) -> Any:
    """Which network generating calls first, and with what; it goes no further. None if it calls none."""

    def stop(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(list(networks.values()).index(network), args, kwargs)

    device = getattr(pipeline, "device", torch.device("cpu"))
    hooks = [n.register_forward_pre_hook(stop, with_kwargs=True, prepend=True) for n in networks.values()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            generate(pipeline, task, call)
    except _Reached as reached:
        return reached.call
    finally:
        for hook in hooks:
            hook.remove()
    return None


class Reading(TorchFunctionMode):
    """Within a `with` block, notes which of the tensors that the encoders return are read by anything."""

    def __init__(self, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.read: dict[str, set[int]] = {name: set() for name in encoders}
        self._encoders = encoders
        self._places: dict[int, list[tuple[str, int]]] = {}
        self._kept: list[Any] = []

    def __enter__(self) -> Reading:
        self._hooks = [
            part.register_forward_hook(partial(self._on_output, name)) for name, part in self._encoders.items()
        ]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def note(self, values: Any) -> None:
        """These are read."""
        for value in tree_leaves(values):
            for name, place in self._places.get(id(value), ()):
                self.read[name].add(place)

    def _on_output(self, name: str, encoder: nn.Module, args: Any, output: Any) -> None:
        leaves = tree_leaves(output)
        self._kept.append(leaves)  # so that no other tensor takes their identity
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._places.setdefault(id(leaf), []).append((name, place))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs))
        return function(*args, **(kwargs or {}))


def alike(one: Any, other: Any) -> bool:
    """Whether two structures hold the same to the bit, tensors also laid out alike in memory."""
    (leaves, form), (others, its) = tree_flatten(one), tree_flatten(other)
    return form == its and all(map(_same, leaves, others))


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other or (type(one) is type(other) and bool(one == other))
    layouts = [(value.dtype, value.device, value.shape, value.stride()) for value in (one, other)]
    return layouts[0] == layouts[1] and torch.equal(one, other)
