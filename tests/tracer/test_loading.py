"""From a name to a pipeline that runs, or to one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from dit_tracer.models.catalog import DIGITS, Model, find
from dit_tracer.models.loading import LoadError, load
from safetensors.torch import load_file

TWIN = "tiny:flux.1-dev"


SCHEDULER = json.dumps({"_class_name": "DDIMScheduler", "beta_end": 0.0195}).encode()


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face Hub does: a gated repository shows its files and refuses them."""

    def do_GET(self) -> None:
        status, headers, body = self.answer()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        repo = next((name for name in ("gated", "missing", "old", "shared") if f"owner/{name}" in self.path), "")
        if repo == "gated" and "/api/" in self.path:
            listed = {"id": "owner/gated", "sha": "0" * 40, "siblings": [{"rfilename": "model_index.json"}]}
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
        if repo == "shared" and self.path.endswith("/scheduler/scheduler_config.json"):
            return 200, {"ETag": '"1"', "X-Repo-Commit": "0" * 40}, SCHEDULER
        codes = {"gated": (403, "GatedRepo"), "missing": (401, "RepoNotFound"), "old": (404, "RevisionNotFound")}
        status, code = codes.get(repo, (404, "EntryNotFound"))
        return status, {"X-Error-Code": code}, b""

    def log_message(self, *arguments: Any) -> None:
        pass


def said_of(calls: Iterable[str], folder: Path, **variables: str) -> list[str]:
    """What these expressions give or say, in a fresh process with an empty cache."""
    code = (
        "import sys\nfrom dit_tracer.models.catalog import find\nfrom dit_tracer.models import schedulers\n"
        "from dit_tracer.models.loading import LoadError, load\n"
        "for call in sys.argv[1:]:\n"
        "    try: print(eval(call))\n"
        "    except (LoadError, LookupError) as error: print(error)\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean = {key: value for key, value in kept.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        [sys.executable, "-c", code, *calls],
        capture_output=True, text=True, check=True, env=clean | {"HF_HOME": str(folder)} | variables,
    )  # fmt: skip
    return done.stdout.splitlines()


ASKED = (
    "load(find('owner/gated'))",
    "load(find('owner/missing'))",
    "load(find('owner/old'), revision='v0')",
    *(f"schedulers.find('owner/{name}')" for name in ("shared", "gated", "missing", "other")),
)


@pytest.fixture(scope="module")
def hub_says(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What comes of everything in `ASKED`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = said_of(ASKED, tmp_path_factory.mktemp("cache"), HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    return said


def test_hub_refusals_say_what_to_do(hub_says: list[str]) -> None:
    gated, missing, old, *_ = hub_says
    assert gated == (
        "gated: the repository owner/gated is gated: accept its licence at https://huggingface.co/owner/gated, then "
        "run `hf auth login`"
    )
    assert missing == (
        "missing: there is no repository owner/missing, or it is private: check the name, or run `hf auth login`"
    )
    assert old == "old: the repository owner/old has no revision 'v0'; give a branch, a tag or a commit of it"


def test_scheduler_of_a_repository_is_all_that_is_fetched(hub_says: list[str]) -> None:
    *_, shared, gated, missing, other = hub_says
    assert "DDIMScheduler" in shared and "'beta_end': 0.0195" in shared
    assert gated.startswith("--scheduler owner/gated: the repository owner/gated is gated: accept its licence at ")
    assert missing.startswith("--scheduler owner/missing: there is no repository owner/missing, or it is private")
    assert other == "--scheduler owner/other: the repository has no scheduler/scheduler_config.json"


OFFLINE = {
    "load(find('flux.1-dev'))": ("black-forest-labs/FLUX.1-dev", ""),
    "load(find('owner/name'), revision='v1')": ("owner/name", " --revision v1"),
    "load(find('open-sora'))": ("hpcai-tech/OpenSora-STDiT-v3", ""),
    "schedulers.find('owner/name')": ("owner/name", ""),
    "schedulers.find('latte-1')": ("maxin-cn/Latte-1", ""),
}


def test_offline_names_the_download_that_is_missing(tmp_path: Path) -> None:
    lines = said_of(OFFLINE, tmp_path, HF_HUB_OFFLINE="1")
    for line, (repo, revision) in zip(lines, OFFLINE.values(), strict=True):
        assert f"the repository {repo} is not on this machine, and HF_HUB_OFFLINE is set" in line
        assert f"run `hf download {repo}{revision}`" in line and "give the folder of a copy with --weights" in line
        assert ("its text encoder comes from" in line) == (repo == "hpcai-tech/OpenSora-STDiT-v3")


def test_unreachable_hub_is_told_from_offline_mode(tmp_path: Path) -> None:
    (line,) = said_of(["load(find('owner/name'))"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "is not on this machine, and huggingface.co cannot be reached" in line


@pytest.mark.parametrize(
    ("part", "safe", "pickled"),
    [
        ("transformer", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_are_refused(part: str, safe: str, pickled: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DIGITS / "digits-flux", tmp_path / "mine"))
    torch.save(load_file(folder / part / safe), folder / part / pickled)
    (folder / part / safe).unlink()
    with pytest.raises(LoadError, match="mine: some of its weights are not there as .safetensors"):
        load(find(str(folder)))


@pytest.mark.parametrize("where", [".", "transformer"])
def test_code_that_comes_with_a_model_is_not_run(where: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DIGITS / "digits-flux", tmp_path / "mine"))
    index = json.loads((folder / "model_index.json").read_text())
    if where == ".":
        index["_class_name"] = ["own", "FluxPipeline"]
    else:
        index["transformer"] = ["own", "FluxTransformer2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / where / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(LoadError, match="Python code of its own, which is never run"):
        load(find(str(folder)))
    assert not (tmp_path / "executed").exists()


def test_damaged_weights_name_the_model(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DIGITS / "digits-flux", tmp_path / "mine"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LoadError, match="mine: cannot be loaded on cpu: "):
        load(find(str(folder)))


def test_twin_is_built_in_the_dtype_asked_for() -> None:
    pipeline = load(find(TWIN), "bfloat16")
    assert {part.dtype for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae)} == {torch.bfloat16}
    assert load(find(TWIN)).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloading_that_needs_a_gpu_says_so(way: str) -> None:
    with pytest.raises(LoadError, match=f"--cpu-offload {way} moves weights to a GPU .* --cpu-offload group"):
        load(find(TWIN), cpu_offload=way)


@pytest.mark.parametrize("name", [TWIN, "tiny:open-sora", "tiny:cogvideox-5b"])
def test_group_offloading_changes_no_latent(name: str) -> None:
    latents = [generate(find(name), load(find(name), device="cpu", cpu_offload=way)) for way in (None, "group")]
    assert torch.equal(*latents)


@pytest.mark.parametrize("name", [TWIN, "digits-flux"])
def test_revision_is_for_repositories(name: str) -> None:
    with pytest.raises(LoadError, match="--revision is for repositories"):
        load(find(name), revision="main")


def generate(model: Model, pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "output_type": "latent", "return_dict": False}
    return pipeline(prompt="a red bus", generator=generator, **call, **model.call)[0]
