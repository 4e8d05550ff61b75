"""Another scheduler in a pipeline: which one is meant, whether it fits, and that it is the one that runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from dit_tracer.models import tiny
from dit_tracer.models.catalog import DIGITS, find
from dit_tracer.models.schedulers import PRESETS, num_steps, replace

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"


def latents(name: str, pipeline: Any, steps: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    call = find(f"tiny:{name}").call | {"num_inference_steps": steps, "output_type": "latent"}
    return pipeline(prompt="a red bus", generator=generator, return_dict=False, **call)[0]


def runs(name: str, scheduler: str) -> bool:
    """Whether the pipeline gets through with this scheduler, made without any help of ours."""
    pipeline = tiny.build(name)
    kind = getattr(diffusers, scheduler)
    pipeline.scheduler = kind.from_config(dict(pipeline.scheduler.config))
    try:
        latents(name, pipeline)
    except (ValueError, TypeError, AttributeError, AssertionError):
        return False
    return True


def test_flux_with_the_configuration_of_sd3() -> None:
    """The same as making the scheduler by hand; its sigmas are those of shift 3, whatever the size of the picture."""
    ours, theirs = tiny.build("flux.1-dev"), tiny.build("flux.1-dev")
    replace(ours, "sd3")
    config = {"num_train_timesteps": 1000, "shift": 3.0}
    theirs.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    before = latents("flux.1-dev", tiny.build("flux.1-dev"))
    changed = latents("flux.1-dev", ours)
    assert torch.equal(changed, latents("flux.1-dev", theirs))
    assert not torch.allclose(changed, before)
    sigmas = torch.tensor([1.0, 2 / 3, 1 / 3])
    torch.testing.assert_close(ours.scheduler.sigmas[:3], 3 * sigmas / (1 + 2 * sigmas))


def test_file_folder_and_name_mean_the_same(tmp_path: Path) -> None:
    config = tmp_path / "pipe" / "scheduler" / "scheduler_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(PRESETS["sd3"]))
    shutil.copy(config, tmp_path / "mine.json")
    found = []
    for spec in ("sd3", str(tmp_path / "mine.json"), str(tmp_path / "pipe"), str(config.parent)):
        pipeline = tiny.build("flux.1-dev")
        replace(pipeline, spec)
        found.append((type(pipeline.scheduler), dict(pipeline.scheduler.config)))
    assert all(one == found[0] for one in found)


def test_bundled_model_lends_its_scheduler() -> None:
    pipeline = tiny.build("flux.1-dev")
    replace(pipeline, "digits-flux")
    own = json.loads((DIGITS / "digits-flux" / "scheduler" / "scheduler_config.json").read_text())
    assert pipeline.scheduler.config.shift == own["shift"]


def test_class_alone_keeps_the_configuration_of_the_pipeline() -> None:
    pipeline = tiny.build("sd3")
    shift = pipeline.scheduler.config.shift
    replace(pipeline, HEUN)
    assert type(pipeline.scheduler).__name__ == HEUN and pipeline.scheduler.config.shift == shift
    assert pipeline.config["scheduler"] == ("diffusers", HEUN), "what the pipeline saves is what it runs"


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler"])
def test_general_solvers_sample_the_flow(name: str) -> None:
    """They read the model's output as noise unless told otherwise, and nobody would see it."""
    pipeline = tiny.build("sd3")
    shift = pipeline.scheduler.config.shift
    replace(pipeline, name)
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.use_flow_sigmas, config.flow_shift) == ("flow_prediction", True, shift)
    assert latents("sd3", pipeline).isfinite().all()


@pytest.mark.parametrize("name", ["flux.1-dev", "sd3", "mochi-1-preview", "cogvideox-5b", "latte-1", "sana"])
@pytest.mark.parametrize("scheduler", [EULER, HEUN, "DDIMScheduler", "DPMSolverMultistepScheduler", "RePaintScheduler"])
def test_what_is_accepted_runs_and_what_is_refused_could_not(name: str, scheduler: str) -> None:
    """Refused is what cannot run, and what would run on outputs that mean something else."""
    pipeline = tiny.build(name)
    own = pipeline.scheduler
    try:
        replace(pipeline, scheduler, steps=3)
    except LookupError as error:
        assert pipeline.scheduler is own, "a refusal changes nothing"
        assert "whose model predicts" in str(error) or not runs(name, scheduler)
    else:
        assert latents(name, pipeline).isfinite().all()


@pytest.mark.parametrize(
    ("name", "scheduler", "reason"),
    [
        ("flux.1-dev", HEUN, "FluxPipeline, which hands it sigmas, mu, and it takes none"),
        ("sd3", "DDIMScheduler", "whose model predicts flow, and this scheduler would take that for epsilon"),
        ("sd3", "RePaintScheduler", "which gives its step no mask, original_image"),
        ("mochi-1-preview", "flux.1-dev", "`mu` must be passed when `use_dynamic_shifting`"),
    ],
)
def test_refusal_says_why(name: str, scheduler: str, reason: str) -> None:
    with pytest.raises(LookupError, match=reason):
        replace(tiny.build(name), scheduler)


def test_prediction_of_a_file_must_be_that_of_the_model(tmp_path: Path) -> None:
    pipeline = tiny.build("pixart-alpha")
    own = pipeline.scheduler.config.prediction_type
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", "prediction_type": "sample"}))
    with pytest.raises(LookupError, match=f"predicts {own}, and this scheduler would take that for sample"):
        replace(pipeline, str(path))
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", "prediction_type": own}))
    replace(pipeline, str(path))


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"_class_name": "Unheard"}', '{"_class_name": "FluxPipeline"}'])
def test_file_that_is_no_scheduler_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(LookupError, match="_class_name|not JSON|unknown scheduler"):
        replace(tiny.build("flux.1-dev"), str(path))


def test_configuration_that_no_scheduler_can_be_made_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(PRESETS["sd3"] | {"num_train_timesteps": "many"}))
    with pytest.raises(LookupError, match=f"{EULER}: cannot be made of its configuration"):
        replace(tiny.build("flux.1-dev"), str(path))


def test_misspelt_class_is_guessed() -> None:
    with pytest.raises(LookupError, match=f"did you mean {EULER}"):
        replace(tiny.build("sd3"), "FlowMatchEulerDiscrete")


def test_every_twin_can_be_given_its_own_scheduler_again() -> None:
    """What is checked beforehand must not refuse what works already."""
    for name in tiny.TWINS:
        pipeline = tiny.build(name)
        kind = type(pipeline.scheduler)
        if hasattr(diffusers, kind.__name__):  # Open-Sora's is ours
            replace(pipeline, kind.__name__)
            assert num_steps(pipeline, 4) is not None, name


def test_number_of_steps_is_the_schedulers() -> None:
    pipeline = tiny.build("sd3")
    assert num_steps(pipeline, 5) == 5
    replace(pipeline, HEUN)
    assert num_steps(pipeline, 5) == 9
