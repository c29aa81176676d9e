"""UMT's released files: every layout loads strictly, others are refused with what differs, figures and protocol are known."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vtr
import vtr.models.official
from tests.helpers import WORDS, small_model, write_videos
from vtr.cli import main
from vtr.data.text import Tokenizer
from vtr.encoders.bert import Bert
from vtr.encoders.video_text import VideoTextNetwork
from vtr.encoders.vit import VIT_SIZES, ViT, ViTConfig
from vtr.errors import VtrError
from vtr.eval.benchmarks import load_benchmark
from vtr.eval.evaluate import Options, evaluate
from vtr.eval.report import published_rows
from vtr.models.load import load_encoder
from vtr.models.official import load_checkpoint
from vtr.models.recognition import RecognitionModel
from vtr.models.registry import find, registry, release_protocol
from vtr.models.video_text import VideoTextModel

State = dict[str, Tensor]
NAMES = [name for name, c in registry().items() if c.model == "UMT"]
BASE, LARGE, MASKED = "umt_base.25m", "umt_large.25m", "umt_base.k710_mask_pt_f8"
TUNED, ASKED = "umt_base.25m_msrvtt", "umt_base.25m_qa_msrvtt"
LM_HEAD = "text_encoder.cls.predictions"


@pytest.fixture(autouse=True)
def small(small_release: Callable[..., Tokenizer]) -> None:
    sizes = (("umt_base", 32), ("umt_large", 64))
    small_release(VIT_SIZES, {n: ViTConfig(dim=dim, depth=7, heads=4, num_frames=4, pool="avg") for n, dim in sizes})


def official(name: str) -> State:
    """A random file of this row as the release's code names it (its key list: section 6 of the fact sheet)."""
    torch.manual_seed(1)
    row = find(name)
    second = row.task == "retrieval" and row.frames == 4
    size = {"umt_base": (512, 6), "umt_large": (768, 6)}[row.size] if second or row.task == "masked" else (0, 1)
    video = dataclasses.replace(
        VIT_SIZES[row.size], pool_norm=row.task != "masked", align_dim=size[0], align_layers=size[1]
    )
    if row.task == "masked":
        return dict(ViT(video).state_dict())
    config = vtr.models.official._retrieval_config(video)
    network = VideoTextNetwork(video, config.text, config.embed_dim)
    for value in network.parameters():
        nn.init.normal_(value)  # zeros and ones would hide a mistake
    out = {}
    for key, value in network.state_dict().items():
        if second and key.startswith("text_encoder.") and not key.startswith("text_encoder.cls."):
            key = key.replace("text_encoder.", "text_encoder.bert.", 1)
        if second or not key.startswith("text_encoder.cls."):
            out[key] = value
    bert = "text_encoder.bert" if second else "text_encoder"
    out[f"{bert}.embeddings.position_ids"] = torch.arange(64)[None]
    if second:
        out[f"{LM_HEAD}.decoder.weight"] = out[f"{bert}.embeddings.word_embeddings.weight"]
        out[f"{LM_HEAD}.decoder.bias"] = out[f"{LM_HEAD}.bias"]
        out["clip_teacher.conv1.weight"] = torch.randn(8, 3, 1, 4, 4)
        out["clip_teacher.transformer.resblocks.0.ln_1.weight"] = torch.ones(8)
    if row.task == "qa":
        out = {k: v for k, v in out.items() if not k.startswith(("vision_proj", "text_proj", "itm_head", "temp"))}
        decoder = Bert(dataclasses.replace(config.text, layers=2, fusion_layer=0))
        out |= {f"text_decoder.bert.{k}": v for k, v in decoder.state_dict().items()}
    return out


def saved(folder: Path, content: object, name: str = "file.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def spoilt(state: State, changes: dict[str, Tensor | None]) -> State:
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize("name", NAMES)
def test_every_released_file_loads_with_its_own_values(name: str, tmp_path: Path) -> None:
    state, row = official(name), find(name)
    model = vtr.load(name, "cpu", file=saved(tmp_path, {"model": state, "epoch": 9}))
    assert model.registered == name
    own = model.state_dict()
    prefix = "" if row.task == "retrieval" else "encoder."
    compared = 0
    for key, value in state.items():
        ours = key.replace("text_encoder.bert.", "text_encoder.")
        ours = prefix + ours.removeprefix("vision_encoder.") if prefix else ours
        if ours in own:
            assert torch.equal(own[ours], value)
            compared += 1
    assert compared >= len(own) - (6 if row.frames == 12 else 0)  # the language head of fine-tuned files
    assert model.config.video.num_frames == row.frames
    frames = torch.randint(0, 255, (1, row.frames, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        if row.task == "retrieval":
            assert isinstance(model, VideoTextModel)
            assert model.encode_video(frames).frame_embeddings.shape[1] == row.frames
        else:
            assert isinstance(model, RecognitionModel)
            assert model.features(frames).shape == (1, VIT_SIZES[row.size].dim)


LAYOUTS: dict[str, Callable[[State], object]] = {
    "bare": lambda s: s,
    "of a wrapped module": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "without the teacher": lambda s: {k: v for k, v in s.items() if not k.startswith("clip_teacher.")},
    "without decoders": lambda s: {k: v for k, v in s.items() if "clip_decoder" not in k},
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_stage_file_loads_in_any_wrapping(layout: str, tmp_path: Path) -> None:
    state = official(BASE)
    model = load_checkpoint(BASE, file=saved(tmp_path, LAYOUTS[layout](state)), device="cpu")
    value = state["vision_encoder.encoder.blocks.6.attn.v_bias"]
    found = model.state_dict()["vision_encoder.encoder.blocks.6.attn.v_bias"]
    torch.testing.assert_close(found, value, atol=1e-2, rtol=1e-2)
    assert bool(model.config.video.align_dim) == (layout != "without decoders")


def test_the_training_record_of_the_release_loads(tmp_path: Path) -> None:
    module = types.ModuleType("utils.easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "utils.easydict"})  # type: ignore[attr-defined]
    sys.modules.update({"utils": types.ModuleType("utils"), "utils.easydict": module})
    record = {"model": official(BASE), "optimizer": {"state": {}, "param_groups": []}, "scheduler": {}, "scaler": {}}
    path = saved(tmp_path, {**record, "config": module.EasyDict(lr=1e-4), "epoch": 9, "global_step": 1})
    del sys.modules["utils"], sys.modules["utils.easydict"]
    assert load_checkpoint(BASE, file=path, device="cpu").registered == BASE


BLOCK = "vision_encoder.encoder.blocks.2"
REFUSED: dict[str, tuple[str, Callable[[], State], str]] = {
    "the question answering model once served": (
        BASE, lambda: official(ASKED), "task is question answering, expected retrieval; known of this row: in November 2023",
    ),
    "a retrieval model where answers are meant": (ASKED, lambda: official(TUNED), "task is retrieval, expected question"),
    "of the other size": (LARGE, lambda: official(BASE), "width is 32, expected 64"),
    "the file that a link leads to": (
        "umt_large.25m_ssv2_template", lambda: official("umt_base.25m_ssv2_template"), "the zoo's link of this row leads to",
    ),
    "a masked model": (BASE, lambda: official(MASKED), "task is masked, expected retrieval"),
    "a VideoMamba": (
        BASE, lambda: {"patch_embed.proj.weight": torch.zeros(8, 3, 1, 16, 16), "pos_embed": torch.zeros(1, 5, 8)},
        "model is VideoMamba, expected UMT",
    ),
    "another network": (BASE, lambda: {"conv1.weight": torch.zeros(3)}, "is no UMT: it has no encoder.patch_embed"),
    "a layer is missing": (
        BASE, lambda: {k: v for k, v in official(BASE).items() if "encoder.blocks.6." not in k}, "layers is 6, expected 7",
    ),
    "a tensor is missing": (BASE, lambda: spoilt(official(BASE), {f"{BLOCK}.attn.q_bias": None}), r"attn.q_bias is missing"),
    "a tensor too many": (
        BASE, lambda: spoilt(official(BASE), {f"{BLOCK}.attn.k_bias": torch.zeros(32)}), "attn.k_bias is unexpected",
    ),
    "a table of positions": (
        BASE, lambda: spoilt(official(BASE), {"vision_encoder.encoder.pos_embed": torch.zeros(1, 784, 32)}),
        "encoder.pos_embed is unexpected",
    ),
    "a tensor of another shape": (
        TUNED, lambda: spoilt(official(TUNED), {"vision_proj.weight": torch.zeros(3, 32)}), r"vision_proj.weight is \(3, 32\)",
    ),
    "not finite": (
        MASKED, lambda: spoilt(official(MASKED), {"encoder.norm.bias": torch.full((32,), torch.inf)}),
        "encoder.norm.bias holds NaN or infinity",
    ),
    "five of six decoders": (
        MASKED, lambda: {k: v for k, v in official(MASKED).items() if "clip_decoder.5." not in k},
        "clip_decoder.5.head.weight is missing",
    ),
    "without the projections": (
        BASE, lambda: spoilt(official(BASE), {"text_proj.weight": None, "text_proj.bias": None}), "text_proj.weight is missing",
    ),
    "half of the text encoder of an answering model": (
        ASKED, lambda: {k: v for k, v in official(ASKED).items() if "text_encoder.encoder.layer.1" not in k},
        "text_encoder.encoder.layer.1.* is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_not_the_one_is_refused_with_what_differs(what: str, tmp_path: Path) -> None:
    name, make, reason = REFUSED[what]
    with pytest.raises(VtrError, match=reason) as error:
        vtr.load(name, "cpu", file=saved(tmp_path, make()))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "file.pth") in str(error.value)
    assert not (tmp_path / "cache" / name).exists()


def test_every_row_of_the_zoo_is_registered(shared: Path) -> None:
    with (shared / "reference" / "checkpoints_umt.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == len(NAMES) == 28
    known = {find(name).file: find(name) for name in NAMES}
    for row in rows:
        entry = known[row["note"].split()[-1] if "by analogy" in row["note"] else row["file"]]
        assert entry.size == {"B": "umt_base", "L": "umt_large"}[row["model"][4]]
        assert (str(entry.image_size), str(entry.frames)) == (row["resolution"], row["frames"])
        assert ("name-by-analogy" in entry.defects) == ("by analogy" in row["note"])
        assert (entry.task == "qa") == row["task"].startswith("VQA")


def test_the_protocol_of_the_release_is_known() -> None:
    base, large = release_protocol(BASE), release_protocol(LARGE)
    assert base is not None
    assert large is not None
    assert (base.frames, base.rerank, base.text_tokens["lsmdc"], large.text_tokens["lsmdc"]) == (4, 128, 64, 96)
    assert release_protocol("videomamba_middle.25m_f8") is None
    assert release_protocol(None) is None


def test_an_evaluation_follows_the_protocol_of_the_release(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 2)
    rows = [{"video": f"clip{i}.mp4", "caption": WORDS[i]} for i in range(2)]
    (tmp_path / "lsmdc_ret_test_1000.json").write_text(json.dumps(rows))
    benchmark = load_benchmark(f"lsmdc={tmp_path / 'lsmdc_ret_test_1000.json'}", tmp_path)
    model, found = small_model(), {}
    model.config = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, max_positions=512))
    for name in (None, BASE, LARGE):
        model.registered = name
        found[name] = evaluate(model, benchmark, Options(rerank=1))
    assert [found[n].max_text_tokens for n in (None, BASE, LARGE)] == [96, 64, 96]
    assert "4 frames, the protocol has 8" in found[None].comparable
    assert "frames" not in found[BASE].comparable
    assert "1 candidates re-ranked, the protocol has 128" in found[BASE].comparable
    assert published_rows(benchmark, (), BASE)[0].t2v == (19.1, 33.4, 42.2)


def test_published_results_and_defects_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "umt_base.25m"]) == 0
    assert main(["models", "umt_large.25m_ssv2_label"]) == 0
    assert main(["models", "umt_base.25m_qa_msvd"]) == 0
    out = capsys.readouterr().out
    for words in (
        "msrvtt: text to video 35.2/57.8/66, video to text 30.3/50.7/61.4",
        "once-vqa: in November 2023",
        "made with 4 frames, 128 candidates re-ranked; text tokens: msrvtt 32",
        "ssv2_label: text to video 73.3/92.7/96.9 (fine-tuned)",
        "accuracy 49.5 %",
        "question answering",
    ):
        assert words in out


def test_an_answering_model_has_no_text_side_for_a_search(tmp_path: Path) -> None:
    vtr.load(ASKED, "cpu", file=saved(tmp_path, official(ASKED)))
    with pytest.raises(VtrError, match="has no text side"):
        load_encoder(ASKED, "cpu")
