"""Official checkpoints: the registry, every published layout, refusals with their reasons, work without a network."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vtr
import vtr.models.official
from tests.helpers import WORDS, write_videos
from vtr.cli import main
from vtr.data.text import Tokenizer
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES, VideoMamba, VideoMambaConfig
from vtr.errors import UsageError, VtrError
from vtr.eval.zero_shot import main as zero_shot
from vtr.models.official import convert, load_checkpoint
from vtr.models.registry import find, registry
from vtr.models.video_text import VideoTextModel

RETRIEVAL, MASKED = "videomamba_middle.25m_f8", "videomamba_middle.k400_mask_pt_f8"
VIDEO, IMAGE, LONG = "videomamba_tiny.k400_f8", "videomamba_tiny.in1k_res224", "videomamba_middle.breakfast_mask_ft_f64"
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def small(small_release: Callable[..., Tokenizer]) -> Tokenizer:
    sizes = {n: VideoMambaConfig(dim=dim, depth=2) for n, dim in (("tiny", 32), ("small", 48), ("middle", 64))}
    return small_release(VIDEOMAMBA_SIZES, sizes, hidden=32)


def encoder(name: str, **changes: Any) -> VideoMamba:
    """A random encoder of the sizes that the registry gives for a name."""
    torch.manual_seed(1)
    row = find(name)
    values: dict[str, Any] = {
        "dim": VIDEOMAMBA_SIZES[row.size].dim,
        "depth": 2,
        "image_size": row.image_size,
        "num_frames": row.frames,
        "num_classes": row.classes,
        "temporal": row.task != "image",
        "align_dim": 512 if row.task == "masked" else 0,
        "init": "official",
        **changes,
    }
    built = VideoMamba(VideoMambaConfig(**values))
    for name_, value in built.named_parameters():
        if "temporal" in name_ or "cls" in name_:
            torch.nn.init.normal_(value)  # zeros would hide a mistake
    return built


def official(name: str, **changes: Any) -> State:
    """The state dict of a random model as the official code of this task names it."""
    row = find(name)
    if row.task == "retrieval":
        torch.manual_seed(1)
        video = encoder(name, pool_norm=True, **changes)
        tokenizer = Tokenizer.load(vtr.models.official.cache_folder() / "tokenizer.json")
        model = VideoTextModel(vtr.models.official._retrieval_config(video.config), tokenizer)
        model.vision_encoder = video
        out = {}
        for key, value in model.state_dict().items():
            if key.startswith("text_encoder.") and not key.startswith("text_encoder.cls."):
                key = "text_encoder.bert." + key.removeprefix("text_encoder.")
            out[key] = value
        out["text_encoder.bert.embeddings.position_ids"] = torch.arange(64)[None]
        out["text_encoder.cls.predictions.decoder.weight"] = out["text_encoder.bert.embeddings.word_embeddings.weight"]
        out["text_encoder.cls.predictions.decoder.bias"] = out["text_encoder.cls.predictions.bias"]
        return out
    state = dict(encoder(name, **changes).state_dict())
    if row.task != "masked":
        state["norm_f.weight"] = state.pop("norm.weight")
    if row.task == "image":
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    return state


def saved(folder: Path, content: Any, name: str = "file.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({k: v.clone().contiguous() for k, v in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def mapped(state: State, change: Callable[[str], str]) -> State:
    return {change(k): v for k, v in state.items()}


def training_record(state: State) -> dict[str, Any]:
    """What a training script saves: the model among its optimiser and its settings."""
    return {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3,
            "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.95))}  # fmt: skip


LAYOUTS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "bare": (VIDEO, lambda s: s),
    "wrapped in model": (VIDEO, lambda s: {"model": s}),
    "wrapped in module": (VIDEO, lambda s: {"module": s}),
    "among optimiser and settings": (MASKED, training_record),
    "of a wrapped module": (VIDEO, lambda s: mapped(s, "module.{}".format)),
    "masked pretraining": (MASKED, lambda s: s),
    "bf16": (RETRIEVAL, lambda s: {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in s.items()}),
    "with the bert prefix and the language head": (RETRIEVAL, lambda s: {"model": s}),
    "without the bert prefix": (
        RETRIEVAL,
        lambda s: mapped({k: v for k, v in s.items() if ".cls." not in k}, lambda k: k.replace(".bert.", ".")),
    ),
    "with the teacher": (
        RETRIEVAL,
        lambda s: {
            **s,
            "clip_teacher.class_embedding": torch.zeros(8),
            "clip_teacher.conv1.weight": torch.zeros(8, 3, 1, 2, 2),
        },
    ),
    "2-D patches of an image model": (IMAGE, lambda s: {"model": s}),
    "with the head of self-distillation": (IMAGE, lambda s: {**s, "distill_head.0.weight": torch.ones(32)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_loads(layout: str, tmp_path: Path) -> None:
    name, arrange = LAYOUTS[layout]
    state = official(name)
    model = load_checkpoint(name, file=saved(tmp_path, arrange(state)), device="cpu")
    own = model.state_dict()
    prefix = "" if find(name).task == "retrieval" else "encoder."
    compared = 0
    for key, value in state.items():
        ours = prefix + key.replace("norm_f.", "norm.").replace("text_encoder.bert.", "text_encoder.")
        if ours in own and not ("without" in layout and ".cls." in ours):
            expected = value.to(torch.bfloat16) if layout == "bf16" and value.is_floating_point() else value
            assert torch.equal(own[ours].flatten(), expected.float().flatten())
            compared += 1
    assert compared >= len(own) - (8 if "without" in layout else 0)
    assert not model.training
    again = load_checkpoint(name, device="cpu")  # from safetensors
    assert {k: v.sum() for k, v in again.state_dict().items()} == {k: v.sum() for k, v in own.items()}


def test_settings_of_a_class_that_is_not_here_are_passed_over(tmp_path: Path) -> None:
    module = types.ModuleType("utils.easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "utils.easydict"})  # type: ignore[attr-defined]
    sys.modules.update({"utils": types.ModuleType("utils"), "utils.easydict": module})
    settings = module.EasyDict(lr=0.1, inner=module.EasyDict(a=[1]))
    settings.lr = 0.1  # as that class keeps its keys: twice
    path = saved(tmp_path, {"model": official(VIDEO), "config": settings})
    del sys.modules["utils"], sys.modules["utils.easydict"]
    assert load_checkpoint(VIDEO, file=path, device="cpu").registered == VIDEO


def test_a_safetensors_file_loads_like_a_pth_file(tmp_path: Path) -> None:
    state = official(VIDEO)
    model = load_checkpoint(VIDEO, file=saved(tmp_path, state, "file.safetensors"), device="cpu")
    assert torch.equal(model.encoder.state_dict()["head.weight"], state["head.weight"])


def test_logits_are_those_of_the_official_model(tmp_path: Path) -> None:
    source = encoder(VIDEO).eval()
    model = load_checkpoint(VIDEO, file=saved(tmp_path, official(VIDEO)), device="cpu")
    frames = torch.randn(1, 8, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.classify(frames), source.classify(frames), rtol=1e-4, atol=1e-5)


def test_a_file_with_a_known_short_temporal_table_is_stretched_and_the_defect_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = official(LONG, num_frames=32)
    model = load_checkpoint(LONG, file=saved(tmp_path, state), device="cpu")
    table = model.encoder.temporal_pos_embedding
    assert table.shape[1] == 64
    assert torch.equal(table[0, 0], state["temporal_pos_embedding"][0, 0])
    assert "temporal-32" in capsys.readouterr().err
    with pytest.raises(VtrError, match="frames is 16, expected 64"):
        load_checkpoint(LONG, file=saved(tmp_path, official(LONG, num_frames=16), "other.pth"))
    with pytest.raises(VtrError, match="frames is 32, expected 64"):  # no such defect is known of this one
        load_checkpoint("videomamba_tiny.k400_f64", file=saved(tmp_path, official(VIDEO, num_frames=32), "third.pth"))


def _spoilt(state: State, key: str, value: Tensor | None) -> State:
    out = {k: v.clone() for k, v in state.items()}
    if value is None:
        del out[key]
    else:
        out[key] = value
    return out


def _code(folder: Path) -> Path:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("this must not run",))

    path = folder / "file.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "x": Runs()}, path)
    return path


def _bytes(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "file.pth").write_bytes(content)
        return folder / "file.pth"

    return write


def _cut(folder: Path) -> Path:
    path = saved(folder, official(VIDEO))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


REFUSED: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "empty": (VIDEO, _bytes(b""), "is empty: the download did not finish"),
    "cut": (VIDEO, _cut, "damaged or cut"),
    "a web page": (VIDEO, _bytes(b"\n<!doctype html><html>"), "is a web page"),
    "a Git LFS pointer": (VIDEO, _bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "Git LFS pointer"),
    "with code": (VIDEO, _code, "holds more than tensors"),
    "without tensors": (VIDEO, lambda f: saved(f, {"model": {"a": 1}}), "holds no tensors"),
    "another network": (VIDEO, lambda f: saved(f, {"conv1.weight": torch.zeros(3)}), "is no VideoMamba"),
    "of another size": (VIDEO, lambda f: saved(f, official("videomamba_small.k400_f8")), "width is 48, expected 32"),
    "of another number of classes": (VIDEO, lambda f: saved(f, official("videomamba_tiny.ssv2_f8")), "classes is 174, expected 400"),
    "of another number of frames": (VIDEO, lambda f: saved(f, official("videomamba_tiny.k400_f16")), "frames is 16, expected 8"),
    "of another resolution": (IMAGE, lambda f: saved(f, official("videomamba_tiny.in1k_res448")), "image size is 448, expected 224"),
    "of another task": (RETRIEVAL, lambda f: saved(f, official(MASKED)), "task is masked, expected retrieval"),
    "a tensor is missing": (VIDEO, lambda f: saved(f, _spoilt(official(VIDEO), "layers.1.mixer.A_b_log", None)), "A_b_log is missing"),
    "a tensor too many": (VIDEO, lambda f: saved(f, _spoilt(official(VIDEO), "layers.1.extra", torch.zeros(1))), "layers.1.extra is unexpected"),
    "a tensor of another shape": (
        VIDEO,
        lambda f: saved(f, _spoilt(official(VIDEO), "layers.0.mixer.D", torch.zeros(3))),
        r"layers.0.mixer.D is \(3,\), expected \(64,\)",
    ),
    "not finite": (
        VIDEO,
        lambda f: saved(f, _spoilt(official(VIDEO), "layers.0.norm.weight", torch.full((32,), torch.nan))),
        "layers.0.norm.weight holds NaN or infinity",
    ),
    "half a language head": (
        RETRIEVAL,
        lambda f: saved(f, _spoilt(official(RETRIEVAL), "text_encoder.cls.predictions.bias", None)),
        "text_encoder.cls.predictions.bias is missing",
    ),
    "without the text side": (
        RETRIEVAL,
        lambda f: saved(f, {k: v for k, v in official(RETRIEVAL).items() if not k.startswith("text_encoder.bert.")}),
        "text_encoder.embeddings.* is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_not_the_one_is_refused_with_its_reason(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, make, reason = REFUSED[what]
    with pytest.raises(VtrError, match=reason) as error:
        vtr.load(name, "cpu", file=make(tmp_path))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "file.pth") in str(error.value)
    assert "this must not run" not in capsys.readouterr().out
    with pytest.raises(VtrError, match="cannot be downloaded"):  # nothing was left behind
        vtr.load(name, "cpu")


def test_the_file_behind_a_wrong_link_is_refused_with_what_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": official("videomamba_middle.in1k_res224")})
    with pytest.raises(VtrError, match=r"width is 64, expected 32.*the zoo's link of this row leads to another"):
        load_checkpoint("videomamba_tiny.in1k_res448", file=path)


def test_every_row_of_the_official_table_is_registered(shared: Path) -> None:
    with (shared / "reference" / "checkpoints.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    entries = [c for c in registry().values() if c.model == "VideoMamba"]
    known = {c.file: c for c in entries}
    assert len(known) == len(entries)
    assert len(rows) == len(known)
    sizes = {"Ti": "tiny", "S": "small", "M": "middle", "B": "base"}
    for row in rows:
        # The zoo gives two files of masked pretraining the name of those without it; the note has the right one.
        name = row["note"].split()[-1] if "by analogy" in row["note"] else row["file"]
        entry = known[name]
        assert entry.size == sizes[row["model"].split("-")[1].split()[0]]
        assert (str(entry.image_size), str(entry.frames)) == (row["resolution"], row["frames"])
        assert entry.top1 == (float(row["top1"]) if row["top1"] else None)
        assert ("name-by-analogy" in entry.defects) == ("by analogy" in row["note"])
        assert ("wrong-link" in entry.defects) == ("hub link" in row["note"])
        assert entry.classes == {"ImageNet-1K": 1000, "K400": 400, "SthSthV2": 174, "Breakfast": 10, "COIN": 180}.get(
            row["task"], 0
        )
        if entry.views:
            assert entry.views.replace("×", "x") == row["views"]


def test_a_converted_checkpoint_needs_its_file_no_more(tmp_path: Path) -> None:
    path = saved(tmp_path, official(VIDEO))
    first = load_checkpoint(VIDEO, file=path, device="cpu")
    path.unlink()
    again = vtr.load(VIDEO, "cpu")
    assert again.registered == VIDEO
    assert torch.equal(again.encoder.head.weight, first.encoder.head.weight)
    by_folder = vtr.load(tmp_path / "cache" / VIDEO, "cpu")
    assert by_folder.registered == VIDEO
    source = json.loads((tmp_path / "cache" / VIDEO / "source.json").read_text())
    assert (source["file"], source["name"]) == ("file.pth", VIDEO)


def test_another_file_given_by_hand_replaces_what_was_converted(tmp_path: Path) -> None:
    state = official(VIDEO)
    load_checkpoint(VIDEO, file=saved(tmp_path, state), device="cpu")
    state["head.bias"] = torch.ones(400)
    model = load_checkpoint(VIDEO, file=saved(tmp_path, state), device="cpu")
    assert model.encoder.head.bias.min() == 1
    assert load_checkpoint(VIDEO, device="cpu").encoder.head.bias.min() == 1


def test_an_interrupted_conversion_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, official(VIDEO))
    folder = tmp_path / "cache" / VIDEO

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(vtr.models.official, "_sha256", stops)  # after the weights, before the note of what they are
        with pytest.raises(KeyboardInterrupt):
            convert(find(VIDEO), path, folder)
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(VtrError, match="cannot be downloaded"):
        vtr.load(VIDEO, "cpu")
    assert vtr.load(VIDEO, "cpu", file=path).registered == VIDEO


def test_without_a_network_one_line_says_which_file_to_put_where(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "videomamba_m16_25M_f8_res224.pth"
    with pytest.raises(VtrError) as error:
        vtr.load(RETRIEVAL)
    assert "https://huggingface.co/OpenGVLab/VideoMamba/resolve/main/videomamba_m16_25M_f8_res224.pth" in str(
        error.value
    )
    assert f"put it at {place}" in str(error.value)
    assert "\n" not in str(error.value)
    torch.save(official(RETRIEVAL), place)
    assert vtr.load(RETRIEVAL, "cpu").registered == RETRIEVAL


def test_a_file_named_by_analogy_that_cannot_be_had_says_so() -> None:
    with pytest.raises(VtrError, match=r"mask_ft_f16_res224\.pth; known of this row: the zoo's table names the file"):
        vtr.load("videomamba_middle.k400_mask_ft_f16")


def test_without_a_network_the_vocabulary_is_named_too(tmp_path: Path) -> None:
    state = official(RETRIEVAL)
    (tmp_path / "cache" / "tokenizer.json").unlink()
    with pytest.raises(VtrError, match=r"tokenizer\.json of google-bert/bert-base-uncased.*put it at"):
        vtr.load(RETRIEVAL, file=saved(tmp_path, state))


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    state = official(RETRIEVAL)
    Tokenizer.train(WORDS, 40).save(tmp_path / "small.json")
    with pytest.raises(VtrError, match="the vocabulary has 40 words"):
        load_checkpoint(RETRIEVAL, file=saved(tmp_path, state), vocabulary=tmp_path / "small.json")


def test_a_download_goes_through_the_hub_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, **_: Any) -> str:
        asked.append((repository, file))
        return str(saved(tmp_path, official(VIDEO)))

    monkeypatch.setattr(vtr.models.official, "reach_hub", lambda: None)
    monkeypatch.setattr(vtr.models.official, "hf_hub_download", download)
    assert vtr.load(VIDEO, "cpu").registered == VIDEO
    vtr.load(VIDEO, "cpu")
    assert asked == [("OpenGVLab/VideoMamba", "videomamba_t16_k400_f8_res224.pth")]


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"videomamba_middle\.25m_f8"):
        vtr.load("videomamba_middle.26m_f8")
    with pytest.raises(UsageError, match="belongs to the name of an official checkpoint"):
        vtr.load("runs/none", file="x.pth")


def test_a_model_without_text_is_refused_where_texts_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_checkpoint(VIDEO, file=saved(tmp_path, official(VIDEO)), device="cpu")
    write_videos(tmp_path / "v", 1)
    (tmp_path / "test.json").write_text(json.dumps([{"video": "clip0.mp4", "caption": "a dog"}]))
    out = ["--data-root", str(tmp_path / "v"), "--out", str(tmp_path / "r")]
    assert zero_shot(["--model", VIDEO, "--data", str(tmp_path / "test.json"), *out]) == 2
    assert main(["index", "build", str(tmp_path / "v"), "--model", VIDEO, "--out", str(tmp_path / "l")]) == 2
    assert capsys.readouterr().err.count("has no text side") == 2


def test_the_command_lists_describes_and_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("videomamba_", "umt_")) for line in lines) == len(registry())
    assert main(["models", RETRIEVAL]) == 0
    out = capsys.readouterr().out
    assert "msrvtt: text to video 35.6/58.1/69.5, video to text 29.1/51.6/62.2" in out
    assert "OpenGVLab/VideoMamba, videomamba_m16_25M_f8_res224.pth" in out
    assert main(["models", "breakfast", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8
    path = saved(tmp_path, official(VIDEO))
    assert main(["models", VIDEO, "--file", str(path)]) == 0
    assert "ready" in capsys.readouterr().out
    assert main(["models", VIDEO]) == 0
    assert f"here    {tmp_path / 'cache' / VIDEO}" in capsys.readouterr().out
    assert main(["models", "videomamba_midle"]) == 2
    assert main(["models", "--get"]) == 2
