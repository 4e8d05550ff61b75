"""dit-analyze as people use it, and as hurried people misuse it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_formats.schema import Shard, Timing
from dit_formats.writer import write_shard


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_summary_shows_what_the_trace_holds(trace_folder: Path) -> None:
    result = run("summary", trace_folder)
    assert result.exit_code == 0
    first, *rest = result.stdout.splitlines()
    assert first == "hand-made · 1 layer, 1 cross · 5 steps · Euler · 3 prompts"
    assert any(line.split()[0] == "K" and "%" in line for line in rest)
    assert f"next: dit-analyze figures {trace_folder}" in result.stderr


def test_summary_says_that_statistics_alone_are_no_archive(
    tmp_path: Path, shard: Callable[..., Shard], trace_folder: Path
) -> None:
    write_shard(tmp_path, shard(positions=0))
    assert "statistics only, no archive" in run("summary", tmp_path).stdout
    assert "no archive" not in run("summary", trace_folder).stdout


def test_summary_tells_how_the_sample_agrees(tmp_path: Path, shard: Callable[..., Shard], trace_folder: Path) -> None:
    assert "sample:        holds all elements; exact values differ by" in run("summary", trace_folder).stdout
    one = shard(positions=6)
    stream = one.streams["latent"]
    stream.arrays["weight"][...] = 1 / 6
    write_shard(tmp_path, one)
    assert "sample:        against exact, z " in run("summary", tmp_path).stdout
    (told,) = json.loads(run("summary", tmp_path, "--json").stdout)
    assert told["archive"] and told["audit"]["cells"] > 0 and len(told["audit"]["worst"]) == 3


def test_summary_gives_cvs_their_interval_and_names_what_has_none(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    for index in range(4):
        one = shard(index)
        one.streams["latent"].arrays["transition_sums"][:, :, 0, 0, 0, 2] = 0
        write_shard(tmp_path, one)
    result = run("summary", tmp_path)
    assert "without a CV:  1 that never change: layer 0 (transformer.blocks.0.attn1), k: transitions 2" in result.stdout
    (told,) = json.loads(run("summary", tmp_path, "--json").stdout)
    row = told["rows"][0]
    assert row["cv_low"] < row["cv"] < row["cv_high"] and row["left_out"][0]["why"] == "constant"
    assert told["design"] == "seed not varied" and told["spread"]["k"]["cv_seed"] is None


def test_summary_is_json_for_programs(trace_folder: Path) -> None:
    (one,) = json.loads(run("summary", trace_folder, "--json").stdout)
    assert (one["prompts"], one["steps"], one["layer_types"]) == (3, 5, {"self": 1, "cross": 1})
    assert [row["kind"] for row in one["rows"]] == ["k", "v", "a", "a"]
    assert len(one["rows"][0]["curve"]) == 4


def test_summary_tells_where_the_time_of_a_step_goes(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    """Layer 0 is at work for a quarter of a second in every step of one second, and layer 1 for an eighth."""
    timing = Timing({"a": np.array([0.25, 0.125]), "f": np.array([np.nan, 0.5])}, np.ones(5))
    write_shard(tmp_path, replace(shard(0), timing=timing))
    assert "a step takes:  1 s; attention 38%, feed-forward 50%" in run("summary", tmp_path).stdout
    (one,) = json.loads(run("summary", tmp_path, "--json").stdout)
    assert one["time"] == {"step": 1.0, "attention": 0.375, "feed_forward": 0.5}


def test_summary_from_samples_agrees(trace_folder: Path) -> None:
    results = [run("summary", trace_folder, "--json", "--source", source) for source in ("exact", "sample")]
    exact, sampled = (json.loads(result.stdout)[0]["rows"][0]["l1"] for result in results)
    assert sampled == pytest.approx(exact)


def test_figures_are_written_and_not_replaced(trace_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "figures"
    result = run("figures", trace_folder, "-o", output)
    assert result.exit_code == 0
    names = {f"hand-made-{name}.{ending}" for name in ("redundancy", "heatmap") for ending in ("pdf", "png")}
    assert set(os.listdir(output)) == names
    before = {name: (output / name).read_bytes() for name in names}
    again = run("figures", trace_folder, "-o", output)
    assert again.exit_code == 1 and "--force" in again.stderr and len(again.stderr.splitlines()) == 1
    assert run("figures", trace_folder, "-o", output, "--force").exit_code == 0
    assert {name: (output / name).read_bytes() for name in names} == before


def test_check_tells_whole_from_damaged(trace_folder: Path) -> None:
    assert run("check", trace_folder).exit_code == 0
    shard = next(trace_folder.glob("000001*"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    result = run("check", trace_folder)
    assert result.exit_code == 3 and str(shard) in result.stdout
    found = run("check", trace_folder, "--json")
    assert found.exit_code == 3 and json.loads(found.stdout)[0]["problems"]


COMMANDS = [("summary",), ("check",), ("figures", "-o", "out")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_missing_trace_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    result = run(command[0], tmp_path / "none.trace", *command[1:])
    assert result.exit_code == 2
    assert result.stderr == f"dit-analyze: {tmp_path / 'none.trace'}: no such trace; dit-trace run writes one\n"
    assert not result.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_empty_folder_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    result = run(command[0], tmp_path, *command[1:])
    assert result.exit_code == 3 and len(result.stderr.splitlines()) == 1
    assert "not a trace" in result.stderr


@pytest.mark.parametrize("command", COMMANDS[::2], ids=" ".join)
def test_other_file_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    result = run(command[0], path, *command[1:])
    assert result.exit_code == 3 and len(result.stderr.splitlines()) == 1
    assert "not a trace" in result.stderr


def test_check_looks_at_every_trace_though_one_is_missing(trace_folder: Path, tmp_path: Path) -> None:
    result = run("check", tmp_path / "none", trace_folder)
    assert result.exit_code == 2 and "no such trace" in result.stderr
    assert f"{trace_folder}: whole" in result.stdout


def test_figures_of_two_traces_of_one_name_are_refused(trace_folder: Path, tmp_path: Path) -> None:
    result = run("figures", trace_folder, trace_folder, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "same name" in result.stderr
    assert not (tmp_path / "out").exists()


def test_summary_of_a_narrow_terminal_cuts_no_number(trace_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = run("summary", trace_folder).stdout
    monkeypatch.setenv("COLUMNS", "40")
    assert run("summary", trace_folder).stdout == wide and "…" not in wide


def test_check_of_another_file_says_it_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    result = run("check", path)
    assert result.exit_code == 3 and "not a trace" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("sumary",), ("summary",), ("summary", "x", "--colour"), ("figures", "x")])
def test_wrong_usage_is_one_line_and_exit_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    if arguments:
        assert len(result.stderr.splitlines()) == 1 and "--help" in result.stderr


def test_names_in_a_trace_cannot_send_control_codes(tmp_path: Path, shard: object) -> None:
    from dit_formats.writer import write_shard

    write_shard(tmp_path, shard(model="\x1b[31mred\x1b]0;title\x07 [bold]markup"))
    result = run("summary", tmp_path)
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert "[bold]markup" in result.stdout


def test_packed_trace_is_one_more_trace(trace_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "one trace.h5"
    result = run("pack", trace_folder, "-o", target)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{target}: 3 prompts, ")
    assert result.stderr == f"next: dit-analyze summary '{target}'\n"
    assert run("summary", target).stdout == run("summary", trace_folder).stdout
    again = run("pack", trace_folder, "-o", target)
    assert again.exit_code == 1 and "--force" in again.stderr and len(again.stderr.splitlines()) == 1
    stats = run("pack", trace_folder, "-o", target, "--force", "--stats-only", "--json")
    assert json.loads(stats.stdout)["bytes"] == target.stat().st_size
    told = run("summary", trace_folder).stdout.splitlines()
    of_statistics = run("summary", target).stdout.replace(" · statistics only, no archive", "").splitlines()
    assert of_statistics == [line for line in told if not line.startswith("sample:")]


def test_summary_says_what_changes_were_taken_over(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(recorded={"transitions": "subset of 262144"}))
    assert "taken over a subset of 262144 elements" in run("summary", tmp_path).stdout
    assert json.loads(run("summary", tmp_path, "--json").stdout)[0]["transitions"] == "subset of 262144"
