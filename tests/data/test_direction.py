"""Captions turned to those of the reversed clip: what is exchanged, and what is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtr.data.direction import lexicon, main, reach


@pytest.mark.parametrize(
    ("caption", "turned"),
    [
        ("A man opens the door", "A man closes the door"),
        ("he walks slowly up the stairs", "he walks slowly down the stairs"),
        ("Into the car, from left to right", "Out of the car, from right to left"),
        ("she picks up a cup and moves to the left", "she puts down a cup and moves to the right"),
        ("he eats before the dog runs", "he eats after the dog runs"),
        ("A cat sits there, then the dog runs away.", "The dog runs away, then a cat sits there."),
        ("it turns anticlockwise", "it turns clockwise"),
    ],
)
def test_a_caption_is_turned_by_its_words_of_direction_or_order(caption: str, turned: str) -> None:
    assert lexicon().turned(caption) == turned


def test_amid_invented_words_the_direction_is_all_that_differs() -> None:
    caption = "a man in a red coat walks slowly up the stairs"
    assert lexicon().unfamiliar(caption, 1) == lexicon().unfamiliar(caption, 1) != lexicon().unfamiliar(caption, 2)
    kept = 0
    for seed in range(200):
        same, turned = lexicon().unfamiliar(caption, seed)
        assert [(a, b) for a, b in zip(same.split(), turned.split()) if a != b] == [("up", "down")]
        kept += sum(a == b for a, b in zip(caption.split(), same.split()))
    assert 0.6 < kept / 200 / len(caption.split()) < 0.8
    assert lexicon().unfamiliar("a dog on a mat", 1) == ("", "")


@pytest.mark.parametrize(
    "caption",
    [
        "a dog on the left of a tree",  # a place
        "a house to the left of a tree",
        "a close up of makeup",
        "he opens and closes the box",  # true of the reversed clip too
        "he sits down then he stands up",
        "he takes a box then runs",  # its second clause has no subject of its own
        "a man looks after a child",
        "",
    ],
)
def test_a_caption_without_a_direction_is_left_alone(caption: str) -> None:
    assert lexicon().turned(caption) == ""


def test_left_and_right_say_nothing_where_clips_are_mirrored() -> None:
    assert lexicon(mirrored=True).turned("it moves left") == ""
    assert lexicon(mirrored=True).turned("it moves left and up") == ""
    assert lexicon(mirrored=True).turned("it moves to the left and goes up") == "it moves to the left and goes down"


def test_every_phrase_turned_twice_is_a_phrase_of_the_first_side() -> None:
    words = lexicon()
    for phrase, side in words._phrases.items():
        assert words._phrases[side.other].pair == side.pair, phrase
        assert words._phrases[side.other].second != side.second, phrase


def test_the_reach_in_a_corpus_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = ["a door opens", "a door", "he walks up", "a cat sits there then a dog barks"]
    assert reach(captions)[:2] == (4, 3)
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"video": f"{i}.mp4", "caption": c} for i, c in enumerate(captions)]))
    assert main([str(path)]) == 0
    assert "3 of 4 captions (75.0 %)" in capsys.readouterr().out
