"""Every transformer class of diffusers that can be built in miniature: traced, and its layers labelled right.

`tests/zoo` holds what is right, established by reading each class. What is not traced, or not labelled in full, stands
here with the reason, and in docs/models.md.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import dit_tracer
import numpy as np
import pytest
import torch
from dit_formats import open_trace
from dit_formats.reader import Trace
from zoo import images, sounds, videos
from zoo.bench import attention_seen, bench
from zoo.case import Case, Expected

UNTRACED = {
    "AnyFlowFARTransformer3DModel": "causal attention through flex_attention alone",
    "Cosmos3OmniTransformer": "packs text and video without a batch axis, and attends twice in a layer",
    "Kandinsky6SRTransformer3DModel": "attends through flex_attention alone",
    "T5FilmDecoder": "an attention of its own, without scaled dot-product attention",
    "TransformerTemporalModel": "a part of U-Nets that takes frames for its batch",
}
PARTLY = {
    "BriaFibo2Transformer2DModel": "text tokens inside the single sequence cannot be counted from outside",
    "HunyuanVideoFramepackTransformer3DModel": "tokens of the reference image count as text",
    "MotifVideoTransformer3DModel": "decoder blocks attend to latent tokens of the encoder, which count as text",
    "SanaWMTransformer3DModel": "its gated linear attention is of a class of its own and is left out",
}
CASES = [*images.CASES, *videos.CASES, *sounds.CASES]


def named(cases: list[Case]) -> list[Any]:
    seen: dict[str, int] = {}
    for case in cases:
        seen[case.transformer] = seen.get(case.transformer, 0) + 1
    count: dict[str, int] = {}
    params = []
    for case in cases:
        count[case.transformer] = count.get(case.transformer, 0) + 1
        suffix = f"-{count[case.transformer]}" if seen[case.transformer] > 1 else ""
        params.append(pytest.param(case, id=case.transformer + suffix))
    return params


TRACED = [case for case in CASES if case.transformer not in UNTRACED]
LABELLED = [case for case in TRACED if case.transformer not in PARTLY]


def test_reach_is_what_is_claimed() -> None:
    assert len({case.transformer for case in TRACED}) >= 60
    assert len({case.transformer for case in LABELLED}) >= 50


def test_what_is_missing_stands_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 3}
    listed = {name: row for name, row in rows.items() if name in {case.transformer for case in CASES}}
    assert set(listed) == set(UNTRACED) | set(PARTLY)
    assert {name for name, row in listed.items() if "not traced" in row} == set(UNTRACED)
    classes, traced, labelled = (len({case.transformer for case in cases}) for cases in (CASES, TRACED, LABELLED))
    assert f"has {classes} transformer classes" in page and f"{traced} are traced, {labelled} of them" in page


@pytest.mark.parametrize("case", named(TRACED))
def test_transformer_is_traced_and_computes_the_same(case: Case, tmp_path: Path) -> None:
    pipeline = bench(case)
    untraced = pipeline(case=case)
    with trace(pipeline, case, tmp_path) as found:
        assert all(torch.equal(one, other) for one, other in zip(found.predictions, untraced, strict=True))
        names = {layer.name.removeprefix("transformer.") for layer in found.layers}
    assert names, "no layer"
    assert names <= {path for path, _ in pipeline.transformer.named_modules()}


@pytest.mark.parametrize("case", named(LABELLED))
def test_layers_are_labelled_as_they_are(case: Case, tmp_path: Path) -> None:
    pipeline = bench(case)
    wanted = {
        path: expected
        for path, _ in pipeline.transformer.named_modules()
        if (expected := next((e for pattern, e in case.layers.items() if fnmatchcase(path, pattern)), None))
    }
    with attention_seen(pipeline.transformer) as seen:
        pipeline(case=case, num_inference_steps=1)
    with trace(pipeline, case, tmp_path) as found:
        rows = {layer.name.removeprefix("transformer."): row for row, layer in enumerate(found.layers)}
        assert set(rows) == set(wanted)
        assert {path: found.layers[row].type for path, row in rows.items()} == {p: e.type for p, e in wanted.items()}
        for path, expected in wanted.items():
            assert tokens(found, "k", rows[path]) == expected.kv, path
            assert tokens(found, "v", rows[path]) == expected.kv, path
            assert tokens(found, "a", rows[path]) == expected.a, path
        branches = case.branches
        assert set(found.branches("latent")) == set(branches)
        for path, expected in wanted.items():
            if expected.type != "linear":
                for place, branch in enumerate(branches):
                    for stream, total in reference(seen[path], expected, case, place).items():
                        row = found.branches(stream).index(branch), 0, rows[path], 0, 0
                        assert found.step_sums(stream)[0][row] == pytest.approx(total, rel=1e-5), (path, branch, stream)


@pytest.mark.parametrize("case", named([case for case in CASES if case.transformer in UNTRACED]))
def test_what_cannot_be_traced_says_so(case: Case, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError)), trace(bench(case), case, tmp_path):
        pass
    assert not list(tmp_path.rglob("*.h5"))


class trace:  # noqa: N801
    """A trace of two steps of a case, opened."""

    def __init__(self, pipeline: Any, case: Case, folder: Path) -> None:
        self.path = folder / "a.trace"
        with dit_tracer.record(pipeline, self.path, model=case.transformer) as recorder, recorder.prompt("a"):
            self.predictions = pipeline(case=case)

    def __enter__(self) -> Trace:
        self._trace = open_trace(self.path)
        self._trace.predictions = self.predictions
        return self._trace

    def __exit__(self, *error: object) -> None:
        pass


def tokens(found: Trace, kind: str, row: int) -> dict[str, int]:
    """Tokens by stream of one kind of a layer."""
    counts = {s: int(found.geometry(s, "num_tokens")[found.kinds(s).index(kind), row]) for s in found.streams}
    return {stream: count for stream, count in counts.items() if count}


def reference(keys: list[torch.Tensor], expected: Expected, case: Case, place: int) -> dict[str, float]:
    """Sum of |K| by stream in the branch at `place`, from the K that the layer's attention calls got."""
    halves = len(case.branches) if case.guidance == "batched" else 1
    if case.guidance != "batched":
        calls = len(keys) // len(case.branches)
        keys = keys[place * calls : (place + 1) * calls]
    if halves > 1 and all(len(key) == 1 for key in keys) and len(keys) == halves:
        keys, halves, place = [keys[place]], 1, 0  # attended one by one
    place = place if halves > 1 else 0
    parts = {stream: None for stream in expected.kv}
    whole = [key for key in keys if key.shape[2] * (len(key) // halves) == sum(expected.kv.values())]
    if whole:
        key = whole[0 if case.first_call else -1].unflatten(0, (halves, -1))[place]
        start = 0
        for stream, count in expected.kv.items():
            parts[stream] = key if len(expected.kv) == 1 else key[:, :, start : start + count]
            start += count
    else:  # each stream in a call of its own
        for stream, count in expected.kv.items():
            (key,) = (key for key in keys if key.shape[2] == count)
            parts[stream] = key.unflatten(0, (halves, -1))[place]
    return {stream: float(np.abs(part.double().numpy()).sum()) for stream, part in parts.items()}
