"""Fine-tuning on own classes: words as labels, their number from the list, the real batch's learning rate, the selection."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import vtr
from tests.helpers import recognition_data
from tests.pretrain.test_finetune import settings
from vtr.data.decode import read_frames
from vtr.data.labels import load_split
from vtr.errors import UsageError, VtrError
from vtr.models.recognition import RecognitionModel
from vtr.pretrain.recognition.data import load_splits, number_of_classes, small_copies
from vtr.pretrain.recognition.tasks import load_task
from vtr.pretrain.recognition.tune import describe, resolve, selection, settled, tune
from vtr.ranks import Ranks


def test_words_become_classes_and_the_model_knows_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = recognition_data("own", tmp_path / "data"), tmp_path / "run"
    tune(settings(root, out, "own", steps=2))
    said = capsys.readouterr()
    result = json.loads((out / "results.json").read_text())
    assert result["class_names"] == ["a dog", "rain, heavy"]
    assert result["merged"].keys() == {"top1"}  # the best five of two are always right
    assert "best of the validations on the test split itself" in result["checkpoint"]
    assert "optimistic" in said.out
    assert "optimistic" in said.err
    model = vtr.load(str(out))
    assert isinstance(model, RecognitionModel)
    assert model.config.class_names == ("a dog", "rain, heavy")
    with pytest.raises(UsageError, match="4 layers of width 96, --model tiny has 24 of 192: name the size"):
        tune(settings(root, tmp_path / "other", "own", steps=1, init=str(out), model=None))
    # A test alone numbers the words as the model does, not as its own list would.
    (root / "test.csv").write_text('video,class\nvideos/clip1.mp4,"rain, heavy"\n')
    tune(settings(root, tmp_path / "again", "own", test_only=True, init=str(out)))
    assert json.loads((tmp_path / "again" / "results.json").read_text())["class_names"] == ["a dog", "rain, heavy"]


def test_small_copies_of_videos_are_made_once_and_read_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = settings(
        recognition_data("own", tmp_path / "data"), tmp_path, "own", short_side=16, data_root=tmp_path / "root"
    )
    splits = load_splits(own, load_task("own"), -1)
    small = small_copies(own, splits, Ranks())
    assert [i.name for i in small["train"].items] == [i.name for i in splits["train"].items]
    assert {i.path.parent for i in small["train"].items} == {tmp_path / "root" / "copies" / "16"}
    before, after = (read_frames(s["train"].items[0].path, range) for s in (splits, small))
    assert len(after.frames) == len(before.frames)
    assert min(after.frames.shape[1:3]) == 16
    assert small_copies(own, splits, Ranks()) == small
    assert capsys.readouterr().err.strip().endswith("0 are made")
    with pytest.raises(UsageError, match="--short-side 8: expected 16"):
        small_copies(replace(own, short_side=8), splits, Ranks())


def test_a_class_that_the_training_list_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    root = recognition_data("own", tmp_path / "data")
    (root / "test.csv").write_text("video,class\nvideos/clip1.mp4,a cat\n")
    with pytest.raises(VtrError, match=r"line 2.*'a cat'.*a dog"):
        load_splits(settings(root, tmp_path, "own"), load_task("own"), -1)


def test_class_numbers_are_counted_and_checked_against_the_recipe(tmp_path: Path) -> None:
    root = recognition_data("own", tmp_path / "data")
    for name in ("train", "test"):
        (root / f"{name}.csv").write_text("videos/clip0.mp4,0\nvideos/clip1.mp4,2\n")
    own = settings(root, tmp_path, "own")
    assert number_of_classes(load_splits(own, load_task("own"), -1)) == 3
    with pytest.raises(VtrError, match="label 2; own has classes 0 to 1"):
        load_splits(own, load_task("own"), 2)
    (root / "train.csv").write_text("videos/clip0.mp4,0.5\n")
    with pytest.raises(VtrError, match=r"label 0\.5; expected words, or whole numbers"):
        load_splits(own, load_task("own"), -1)


def test_a_batch_larger_than_the_list_is_cut_and_the_learning_rate_with_it(tmp_path: Path) -> None:
    root = recognition_data("own", tmp_path / "data")
    asked = replace(settings(root, tmp_path, "own"), set=("batch_size=256", "repeats=1"))
    task, recipe = resolve(asked)
    splits = load_splits(asked, task, recipe.classes)
    real = settled(recipe, splits)
    assert (real.batch_size, real.classes) == (4, 2)
    assert real.lr * real.scale == pytest.approx(recipe.lr * 4 / 256)
    said = describe(asked, task, recipe, splits)
    assert f"{recipe.lr * 4 / 256:.3g} for 4 x 1 clips a step, all that the list has of the recipe's 256" in said


def test_a_selection_on_other_files_says_so_and_files_of_two_splits_are_counted(tmp_path: Path) -> None:
    root = recognition_data("own", tmp_path / "data")
    train, test = (load_split("own", root, name) for name in ("train", "test"))
    assert "shares no file" in selection({"val": train, "test": test})
    half = replace(test, items=(*train.items[:1], *test.items[:1]))
    assert "1 of the 2 test files" in selection({"val": train, "test": half})
    asked = settings(root, tmp_path, "own")
    task, recipe = resolve(asked)
    said = describe(asked, task, recipe, {"train": train, "val": half, "test": half})
    assert "1 of the 2 test files are in the training list too" in said
