"""The models known by name, and what is said to a name that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dit_tracer.models.catalog import BUNDLED, MODELS, RANDOM, SEVEN, TWINS, Model, find, twin_captions


def test_the_catalog_needs_no_torch() -> None:
    code = "import sys, dit_tracer.models.catalog; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_found() -> None:
    for name, model in (MODELS | TWINS).items():
        assert find(name) is model and model.name == name
    assert list(MODELS) == [*BUNDLED, *SEVEN]


def test_the_seven_are_run_as_the_paper_ran_them() -> None:
    """Steps, size, frames and guidance of arXiv 2411.13588 and its scripts."""
    settings = {
        "flux.1-dev": (28, (1024, 1024), 1, 3.5, "float16", 42),
        "pixart-alpha": (20, (1024, 1024), 1, 4.5, "float16", 42),
        "sd3": (28, (1024, 1024), 1, 7.0, "float16", 42),
        "cogvideox-5b": (50, (480, 720), 9, 6.0, "float16", 42),
        "open-sora": (30, (240, 426), 51, 7.0, "bfloat16", 1024),
        "latte-1": (50, (512, 512), 16, 7.5, "float16", 42),
        "mochi-1-preview": (64, (480, 848), 163, 4.5, "bfloat16", None),
    }
    keys = ("steps", "size", "frames", "guidance", "dtype", "seed")
    assert {name: tuple(model.paper.get(key) for key in keys) for name, model in SEVEN.items()} == settings
    for model in SEVEN.values():
        assert (model.steps, model.dtype) == (model.paper["steps"], model.paper["dtype"])
        assert model.call[model.guidance] == model.paper["guidance"]
        assert model.source == model.repo and model.pipeline.endswith("Pipeline")


def test_it_is_said_where_paper_and_card_differ() -> None:
    for model in SEVEN.values():
        differs = [key for key, value in model.card.items() if value != model.paper[key]]
        assert bool(differs) == bool(model.note)
        assert all(f"{key} {model.paper[key]}" in model.note for key in differs)
    assert SEVEN["cogvideox-5b"].note == (
        "as in the paper: frames 9, dtype float16; the model card says frames 49, dtype bfloat16"
    )


def test_of_mochi_the_heads_are_recorded_too() -> None:
    """The paper takes its A before the output projection."""
    assert [name for name, model in SEVEN.items() if "o" in model.kinds] == ["mochi-1-preview"]
    assert find("tiny:mochi-1-preview").kinds == find("mochi-1-preview").kinds


def test_a_twin_says_that_its_weights_are_random() -> None:
    assert {name for name, model in (MODELS | TWINS).items() if model.random_weights} == set(TWINS)
    assert all(RANDOM in model.about and name.startswith("tiny:") for name, model in TWINS.items())
    assert {f"tiny:{name}" for name in SEVEN} < set(TWINS)


def test_captions_of_twins_are_distinct() -> None:
    assert twin_captions(2) == ["a red bus", "an old photograph of a red bus"]
    assert len(set(twin_captions(64))) == 64


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model_index.json").write_text("{}")
    assert find(str(tmp_path / "mine")) == Model("mine", str(tmp_path / "mine"), "a local folder")


def test_a_repository_is_a_model() -> None:
    model = find("Lightricks/LTX-Video")
    assert (model.name, model.source, model.repo) == ("LTX-Video",) + ("Lightricks/LTX-Video",) * 2


@pytest.mark.parametrize("repo", ["black-forest-labs/FLUX.1-dev", "THUDM/CogVideoX-5b", "zai-org/CogVideoX-5b"])
def test_a_repository_of_the_seven_gets_its_settings(repo: str) -> None:
    assert find(repo) in SEVEN.values()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("flux.9", "unknown model 'flux.9'; known are digits-pixart"),
        ("pixart", "did you mean pixart-alpha"),
        ("Mochi-1", "did you mean mochi-1-preview"),
        ("zzz", "a Hugging Face repository (owner/name)"),
        ("a/b/c", "unknown model"),
        ("./no/such", "unknown model"),
        ("tiny:sd4", "unknown twin 'tiny:sd4'; known are tiny:flux.1-dev"),
        (".", "it has no model_index.json"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(name: str, says: str) -> None:
    with pytest.raises(LookupError) as error:
        find(name)
    assert says in str(error.value)
