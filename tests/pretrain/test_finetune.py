"""Fine-tuning: every task's data and recipe, resume, initialisation, layer decay, self-distillation, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import recognition_data
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES, VideoMamba, VideoMambaConfig
from vtr.errors import UsageError, VtrError
from vtr.pretrain.finetune import main
from vtr.pretrain.recognition.initial import build_model, initial_weights, load_initial
from vtr.pretrain.recognition.layer_decay import layer_number, parameter_groups
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.pretrain.recognition.tasks import differences, load_task, task_names, tune_recipe
from vtr.pretrain.recognition.tune import resolve, tune

SMALL = ("frames=2", "pixels=32", "batch_size=4", "views=[2,1]", 'augment=""', "mixup=0.0")


def settings(root: Path, out: Path, task: str = "k400", **more: object) -> TuneSettings:
    values = {"model": "demo", "workers": 0, "scratch": True, "set": SMALL, "log_every": 1, **more}
    return TuneSettings(task=task, data=str(root), out=out, **values)  # type: ignore[arg-type]


def rows(out: Path) -> list[dict]:
    return [r for r in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in r]


# The other LVU tasks are the same but for their number of classes.
@pytest.mark.parametrize("task", [n for n in task_names() if not n.startswith("lvu-")] + ["lvu-scene", "lvu-view"])
def test_the_dry_run_of_every_recipe_reads_the_data_set_in_its_own_layout(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = recognition_data(task, tmp_path / "data")
    for recipe in ("paper", "released"):
        small = ("frames=1", *SMALL[1:]) if task == "imagenet" else SMALL
        small = (*small[:4], small[5])  # with the recipe's automatic augmentation
        tune(settings(root, tmp_path / "run", task, recipe=recipe, dry_run=True, set=small))
        said = capsys.readouterr().out
        assert "dry run:" in said
        assert "test, 2 videos" in said or task == "coin"
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_ends_as_the_whole_one_does(tmp_path: Path) -> None:
    root = recognition_data("k400", tmp_path / "data", count=8)
    whole, part = tmp_path / "whole", tmp_path / "part"
    tune(settings(root, whole, steps=4))
    # Stopped after step 2: what a kill leaves is its latest checkpoint.
    tune(settings(root, part, steps=4, save_every=2))
    for path in [*(part / "checkpoints").glob("step-00000004.pt"), part / "checkpoints" / "best.pt"]:
        path.unlink()
    with pytest.raises(VtrError, match="--resume latest"):
        tune(settings(root, part, steps=4))
    tune(settings(root, part, steps=4, save_every=2, resume="latest"))
    assert [r["loss"] for r in rows(part)] == [r["loss"] for r in rows(whole)]
    with pytest.raises(VtrError, match=r"recipe\.lr was"):
        tune(settings(root, part, steps=4, resume="latest", set=(*SMALL, "lr=0.5")))


def test_pieces_of_a_batch_give_the_whole_batchs_losses(tmp_path: Path) -> None:
    root = recognition_data("k400", tmp_path / "data", count=8)
    tune(settings(root, tmp_path / "a", steps=2))
    tune(settings(root, tmp_path / "b", steps=2, micro_batch=3))
    for one, other in zip(rows(tmp_path / "a"), rows(tmp_path / "b")):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_regression_is_trained_and_tested_as_one(tmp_path: Path) -> None:
    root = recognition_data("lvu-like", tmp_path / "data")
    tune(settings(root, tmp_path / "run", "lvu-like", steps=1, set=(*SMALL, "window=2.0", "window_stride=1.0")))
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(result["merged"]) == {"mse"}
    # The first video is longer than a window: it is tested in five of them, and still has one vote.
    assert result["videos"] == 4
    views = (tmp_path / "run" / "views.jsonl").read_text().splitlines()
    assert len(views) == (5 + 3) * 2


def test_a_teacher_guides_the_student_until_it_is_told_to_stop(tmp_path: Path) -> None:
    root = recognition_data("k400", tmp_path / "data")
    tune(settings(root, tmp_path / "teacher", steps=1))
    out = tmp_path / "student"
    tune(settings(root, out, steps=2, teacher=str(tmp_path / "teacher"), distill_until=0.5))
    found = rows(out)
    assert [("distill" in r) for r in found] == [True, False]
    model = json.loads((out / "model" / "config.json").read_text())
    assert model["kind"] == "recognition"


def test_unreadable_files_are_left_out_and_stop_the_run_when_they_are_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = recognition_data("k400", tmp_path / "data", count=8)
    broken = sorted((root / "train").rglob("*.mp4"))
    broken[0].write_bytes(b"no video")
    tune(settings(root, tmp_path / "one", steps=2))
    assert "unreadable, left out" in capsys.readouterr().err
    for path in broken:
        path.write_bytes(b"no video")
    with pytest.raises(VtrError, match="--max-bad-fraction"):
        tune(settings(root, tmp_path / "all", steps=2))


def test_missing_files_and_wrong_labels_are_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = recognition_data("k400", tmp_path / "data")
    next((root / "val").rglob("*.mp4")).unlink()
    with pytest.raises(VtrError, match="1 of 4 files are missing"):
        tune(settings(root, tmp_path / "run"))
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a.mp4 400\n")
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(VtrError, match="label 400; k400 has classes 0 to 399"):
        tune(settings(tmp_path, tmp_path / "run", train=wrong, test=wrong))
    assert main(["--task", "k4000"]) == 2
    assert "did you mean 'k400'" in capsys.readouterr().err


def test_a_recipe_that_starts_from_a_model_asks_for_it(tmp_path: Path) -> None:
    root = recognition_data("k400", tmp_path / "data")
    with pytest.raises(UsageError, match="starts from the ImageNet-1K model"):
        tune(settings(root, tmp_path / "run", scratch=False))


def test_an_image_model_is_inflated_and_a_masked_model_loses_its_branch() -> None:
    torch.manual_seed(0)
    video = VideoMamba(VideoMambaConfig(image_size=32, dim=32, depth=2, num_frames=4, num_classes=5))
    image = VideoMamba(
        VideoMambaConfig(image_size=64, dim=32, depth=2, num_frames=1, temporal=False, num_classes=7, align_dim=8)
    )
    said = load_initial(video, image.state_dict(), "image")
    assert any("inflated to 4 frames" in line for line in said)
    assert any("head of 7 classes is left out" in line for line in said)
    assert torch.equal(video.layers[1].mixer.in_proj.weight, image.layers[1].mixer.in_proj.weight)
    assert float(video.temporal_pos_embedding.detach().abs().max()) == 0
    wrong = {**image.state_dict(), "layers.0.mixer.D": torch.ones(3)}
    with pytest.raises(VtrError, match=r"layers\.0\.mixer\.D"):
        load_initial(video, wrong, "image")


def test_weights_are_found_in_runs_model_folders_and_checkpoint_files(tmp_path: Path) -> None:
    recipe = tune_recipe(load_task("k400"), "paper", "tiny", frames=2, pixels=32)
    model = build_model("demo", recipe)
    model.save_pretrained(tmp_path / "run" / "model")
    torch.save({"model": model.encoder.state_dict()}, tmp_path / "a.pth")
    for name in (tmp_path / "run", tmp_path / "run" / "model", tmp_path / "a.pth"):
        assert torch.equal(initial_weights(str(name))["head.weight"], model.encoder.head.weight)


def test_layer_decay_falls_with_depth_and_the_released_rule_only_freezes_the_embeddings() -> None:
    with torch.device("meta"):
        encoder = VideoMamba(VIDEOMAMBA_SIZES["tiny"])
    groups = parameter_groups(encoder, weight_decay=0.05, layer_decay=0.75, rule="right")
    assert min(g["scale"] for g in groups) == pytest.approx(0.75**25)
    assert len({g["scale"] for g in groups}) == 26
    assert sum(len(g["params"]) for g in groups) == len(list(encoder.parameters()))
    released = parameter_groups(encoder, weight_decay=0.05, layer_decay=0.75, rule="released")
    assert {g["scale"] for g in released} == {0.75**25, 1.0}
    assert layer_number(encoder, "layers.3.mixer.D", "right") == 4
    assert layer_number(encoder, "temporal_pos_embedding", "released") == 25


def test_recipes_are_the_papers_and_the_scripts_where_they_differ() -> None:
    k400 = load_task("k400")
    found = tune_recipe(k400, "released", "middle", frames=64, masked=True)
    assert (found.lr, found.epochs, found.drop_path, found.layer_decay, found.batch_size) == (1e-4, 45, 0.4, 0.8, 64)
    # Scripts: 32 GPUs' worth of 64 clips x 2, base lr 2e-4 for 256.
    tiny = tune_recipe(k400, "released", "tiny")
    assert tiny.lr * tiny.scale == pytest.approx(2e-4 * 512 * 2 / 256)
    assert ("lr", 4e-4, 2e-4) in differences(k400, "tiny")
    assert tune_recipe(load_task("ssv2"), "paper", "middle").flip is False
    assert load_task("lvu-year").classes == 9
    assert tune_recipe(load_task("lvu-view"), "paper", "tiny").mixup == 0
    with pytest.raises(UsageError, match="middle model"):
        tune_recipe(k400, "paper", "tiny", masked=True)
    with pytest.raises(UsageError, match="drop_path"):
        resolve(TuneSettings(task="k400", set=("drop_pat=0.1",)))
