from __future__ import annotations

import json
from pathlib import Path

import pytest
from dit_formats.errors import PromptError
from dit_formats.prompts import Request, read_prompts, read_requests

COCO = {
    "images": [{"id": 9}, {"id": 4}, {"id": 5}],
    "annotations": [
        {"id": 3, "image_id": 4, "caption": "second of four"},
        {"id": 2, "image_id": 4, "caption": " first of four "},
        {"id": 1, "image_id": 9, "caption": "nine"},
    ],
}

FILES = {
    "a.txt": ("one\n\n  two \n", ["one", "two"]),
    "a.csv": ('id,Prompt\n1,one\n2,"two, and a half"\n', ["one", "two, and a half"]),
    "a.jsonl": ('"one"\n{"prompt": "two"}\n', ["one", "two"]),
    "a.json": (json.dumps(COCO), ["nine", "first of four"]),
}


@pytest.mark.parametrize("name", FILES)
def test_file_gives_its_prompts(tmp_path: Path, name: str) -> None:
    text, prompts = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(str(tmp_path / name)) == prompts


def test_line_may_bring_arguments(tmp_path: Path) -> None:
    two = {"prompt": " two ", "negative_prompt": "x", "height": 16, "seed": 3}
    lines = ['"one"', json.dumps(two), '{"prompt": "", "seed": 4}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read_requests(str(tmp_path / "a.jsonl")) == [
        Request("one"), Request("two", {"negative_prompt": "x", "height": 16, "seed": 3}),
    ]  # fmt: skip


def test_picture_is_found_beside_its_list(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one.png", "two.JPG"):
        (folder / name).write_bytes(b"")
    paths = ["pictures/one.png", str(folder / "two.JPG")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": "a", "image": path}) for path in paths))
    found = [request.arguments["image"] for request in read_requests(str(tmp_path / "a.jsonl"))]
    assert found == [str(folder / "one.png"), str(folder / "two.JPG")]


def test_missing_picture_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"one"\n{"prompt": "two", "image": "no.png"}\n')
    with pytest.raises(FileNotFoundError, match="a.jsonl: line 2: no.png: no such picture in "):
        read_requests(str(tmp_path / "a.jsonl"))


def test_sentence_that_ends_like_a_picture_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "negative_prompt": "a scan of some.png"}')
    (request,) = read_requests(str(tmp_path / "a.jsonl"))
    assert request.arguments == {"negative_prompt": "a scan of some.png"}


def test_text_is_a_prompt() -> None:
    assert read_prompts("a cat, v1.5 style") == ["a cat, v1.5 style"]


@pytest.mark.parametrize("name", [*FILES, "list.yaml", "list.tsv"])
def test_missing_file_is_no_prompt(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such prompt file"):
        read_prompts(f"nowhere/{name}")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(text)
    with pytest.raises(PromptError, match="holds no prompts"):
        read_prompts(str(path))


def test_existing_file_of_another_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("one")
    with pytest.raises(PromptError, match="not a file of prompts"):
        read_prompts(str(tmp_path / "list"))


@pytest.mark.parametrize("text", ["", " "])
def test_empty_text_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        read_prompts(text)


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", "text\nhello\n"),
    ("a.jsonl", "{broken\n"),
    ("a.jsonl", '{"text": "no prompt"}\n'),
    ("a.json", "[]"),
    ("a.json", '{"images": []}'),
])  # fmt: skip
def test_wrong_content_is_refused_with_the_file_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=name):
        read_prompts(str(tmp_path / name))


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(PromptError, match="a.txt"):
        read_prompts(str(tmp_path / "a.txt"))
