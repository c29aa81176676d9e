"""Benchmarks of time: their formats as stated, decisions counted by hand, and what a frame average can reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import WORDS, small_model, write_videos
from vtr.errors import VtrError
from vtr.eval.benchmarks import Question, load_benchmark
from vtr.eval.commands import FetchSettings, fetch
from vtr.eval.contrasts import read_contrasts
from vtr.eval.decisions import Shown, contrast_rows
from vtr.eval.evaluate import Options, evaluate
from vtr.eval.orders import ordered
from vtr.eval.results import lines_of
from vtr.models.base import VideoFeatures, Videos
from vtr.models.video_text import VideoTextModel

VITATECS = {"src_dataset": "MSRVTT", "video_name": "clip0.mp4", "caption": "he sits down", "counterfactual": "he stands up", "aspect": "Direction"}  # fmt: skip


def vitatecs(path: Path, *changes: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(VITATECS | change) + "\n" for change in changes))
    return path


def pairs_file(folder: Path, count: int = 3) -> Path:
    rows = [
        {"kind": ("turn", "left")[i % 2], "video_a": f"clip{2 * i}.mp4", "caption_a": WORDS[0],
         "video_b": f"clip{2 * i + 1}.mp4", "caption_b": WORDS[1]}
        for i in range(count)
    ]  # fmt: skip
    write_videos(folder / "v", 2 * count)
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json"


def test_vitatecs_is_read_by_the_set_of_its_videos(tmp_path: Path) -> None:
    path = vitatecs(tmp_path / "Direction.jsonl", {}, {"src_dataset": "VATEX", "video_name": "x_000001_000011.mp4"})
    name, items = read_contrasts([path], "VATEX")
    assert name == "VITATECS"
    assert [(i.videos, i.captions, i.wrong, i.kind) for i in items] == [
        (("x_000001_000011.mp4",), ("he sits down",), ("he stands up",), "Direction")
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"counterfactual": ""}, "line 2.*counterfactual is .*expected a text"),
        ({"counterfactual": "he sits down"}, "line 2.*are the same"),
        ({"video_name": ""}, "line 2.*video_name"),
    ],
)
def test_a_line_that_is_no_pair_is_refused_with_its_place(change: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(VtrError, match=says):
        read_contrasts([vitatecs(tmp_path / "a.jsonl", {}, change)])


def test_a_file_of_another_benchmark_under_its_name_is_refused(tmp_path: Path) -> None:
    path = vitatecs(tmp_path / "test.json", {})
    with pytest.raises(VtrError, match=r"VITATECS, texts of another kind .*expected texts of each clip and of its"):
        load_benchmark(f"rtime={path}", tmp_path)
    path.write_text(json.dumps({"331": {"forward_captions": ["he sits"], "reverse_captions": ["he stands"]}}))
    with pytest.raises(VtrError, match=r"RTime, texts of another kind .*expected a right and a wrong text"):
        load_benchmark(f"vitatecs_msrvtt={path}", tmp_path)


def test_rtime_pairs_every_forward_text_with_one_of_the_reversal(tmp_path: Path) -> None:
    entry = {"temporal": True, "reverse": True, "forward_captions": ["he sits"], "reverse_captions": ["he stands"],
             "forward_rewrites": ["he sits down", "down he sits"], "reverse_rewrites": ["he stands up"]}  # fmt: skip
    (tmp_path / "test.json").write_text(json.dumps({"331": entry}))
    name, items = read_contrasts([tmp_path / "test.json"])
    assert (name, items[0].videos) == ("RTime", ("331",))
    assert list(zip(items[0].captions, items[0].wrong)) == [
        ("he sits", "he stands"), ("he sits down", "he stands up"), ("down he sits", "he stands")
    ]  # fmt: skip
    (tmp_path / "test.json").write_text(json.dumps({"331": {"forward_captions": ["he sits"]}}))
    with pytest.raises(VtrError, match=r"entry '331': has forward_captions; expected RTime's object"):
        read_contrasts([tmp_path / "test.json"])


def test_cia_gives_each_video_its_action_and_the_opposite_one(tmp_path: Path) -> None:
    rows = ["id,value,nuance,source,modality", "7,7,time,cia-ssv2,video", "9,9,time,cia-epic,video",
            "ab_1.0,Folding [something],time,cia-ssv2,text", "ab_0.0,Unfolding [something],time,cia-ssv2,text",
            "n1,no cat,negation,neg-coco,text-standard"]  # fmt: skip
    inputs = tmp_path / "nuanced_retrieval_inputs-test.csv"
    inputs.write_text("\n".join(rows))
    with pytest.raises(VtrError, match=r"nuanced_retrieval_labels-test\.json"):
        read_contrasts([inputs], "cia-ssv2")
    labels = tmp_path / "nuanced_retrieval_labels-test.json"
    labels.write_text(json.dumps({"7": ["ab_1.0"], "ab_1.0": ["7"]}))
    _, items = read_contrasts([inputs, labels], "cia-ssv2")
    assert [(i.videos, i.captions, i.wrong) for i in items] == [
        (("7",), ("Folding something",), ("Unfolding something",))
    ]
    labels.write_text(json.dumps({"7": ["cd_1.0"]}))
    with pytest.raises(VtrError, match=r"line 2.*gives video 7"):
        read_contrasts([inputs], "cia-ssv2")


def test_a_protocol_of_several_files_needs_them_all_unless_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "vitatecs").mkdir()
    path = vitatecs(tmp_path / "vitatecs" / "Direction.jsonl", {})
    write_videos(tmp_path / "msrvtt", 1)
    with pytest.raises(VtrError, match=r"Sequence\.jsonl belongs to it"):
        load_benchmark("vitatecs_msrvtt", tmp_path)
    found = load_benchmark(f"vitatecs_msrvtt={path}", tmp_path)
    assert (found.queries, found.questions) == (1, (Question(0, 0, 1, "Direction"),))


@pytest.mark.parametrize(
    ("file", "videos", "pairs"),
    [("vitatecs/Direction.jsonl", 2646, 3800), ("vitatecs/Sequence.jsonl", 150, 151), ("rtime/test.first150.json", 150, 450)],
)  # fmt: skip
def test_published_pairs_are_read_and_counted(file: str, videos: int, pairs: int, shared: Path) -> None:
    _, items = read_contrasts([shared / "data" / "annotations" / file])
    assert (len({i.videos for i in items}), sum(len(i.wrong) for i in items)) == (videos, pairs)


def test_decisions_are_counted_by_hand() -> None:
    questions = [Question(0, 0, 1, "turn"), Question(1, 1, 0, "left")]
    clips = torch.tensor([[0.9, 0.4], [0.1, 0.4]])  # text x video: the second clip sees no difference
    back = torch.tensor([[0.2, 0.3], [0.7, 0.4]])  # reversals: the first is right, the second chooses wrongly
    rows, _ = contrast_rows(questions, lambda shown: Shown({"embedding": clips}, {"embedding": back}))
    found = rows["embedding"]
    # Clip to text: 1 and 1 of question 0; 1/2 (a tie) and 0 of question 1. Text to clip: 1 and 1; 1/2 (0.4, 0.4) and 0.
    assert (found["clip to text"], found["text to clip"]) == (62.5, 62.5)
    assert (found["turn"], found["left"], found["all"]) == (100.0, 25.0, 62.5)
    one_way, _ = contrast_rows(questions, lambda shown: Shown({"embedding": clips}, None))
    assert one_way["embedding"]["all"] == 75.0


def test_frames_are_shown_in_the_order_asked_for() -> None:
    frames = torch.arange(8)
    assert ordered(frames, "as they are", "a", backwards=True).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert ordered(frames, "one frame repeated", "a").tolist() == [3] * 8
    mixed = ordered(frames, "frames shuffled", "a")
    assert mixed.tolist() != frames.tolist()
    assert sorted(mixed.tolist()) == frames.tolist()
    assert torch.equal(mixed, ordered(frames, "frames shuffled", "a"))
    assert torch.equal(ordered(frames, "frames shuffled", "a", backwards=True), mixed.flip(0))


class FrameAverage(VideoTextModel):
    """The small model made blind to order: the mean of what it says of single frames."""

    def encode_video(self, videos: Videos, *args: object, **kwargs: object) -> VideoFeatures:
        assert isinstance(videos, Tensor)
        one = super().encode_video(videos.flatten(0, 1)[:, None])
        mean = one.embedding.unflatten(0, videos.shape[:2]).mean(1)
        unit = nn.functional.normalize(mean, dim=-1)
        return one._replace(embedding=unit, tokens=unit[:, None].expand(-1, 4, -1).repeat(1, 1, 2))


def test_a_frame_average_decides_exactly_as_a_coin_between_a_clip_and_its_reversal(tmp_path: Path) -> None:
    pairs_file(tmp_path)
    model = small_model()
    model.__class__ = FrameAverage
    benchmark = load_benchmark(f"demo_reversed={tmp_path / 'pairs.json'}", tmp_path)
    result = evaluate(model, benchmark, Options(rerank=0))
    found = result.figures.order["embedding"]
    assert found == dict.fromkeys(found, 50.0)
    assert {"all", "text to clip", "clip to text", "turn", "left", "frames shuffled", "one frame repeated"} == set(
        found
    )
    assert "AT CHANCE LEVEL" in result.figures.warnings[0]


def test_a_contrast_is_evaluated_by_embedding_and_match_and_listed_with_the_others(tmp_path: Path) -> None:
    benchmark = load_benchmark(f"demo_reversed={pairs_file(tmp_path)}", tmp_path)
    result = evaluate(small_model(), benchmark, Options(work=tmp_path / "work"))
    assert set(result.figures.order) == {"embedding", "match"}
    assert (result.queries, result.figures.order["match"]["one frame repeated"]) == (6, 50.0)
    assert not (tmp_path / "work").exists()
    lines = lines_of({**result.to_dict(), "model": "m"})
    assert [(line.row, line.t2v["r1"]) for line in lines] == [
        (row, found["all"]) for row, found in result.figures.order.items()
    ]
    assert "50 one frame repeated" in lines[0].how


def test_annotations_are_fetched_once_and_never_over_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def opened(address: str) -> object:
        asked.append(address)
        return (tmp_path / "there").open("rb")

    (tmp_path / "there").write_text("{}")
    monkeypatch.setattr("vtr.eval.commands.open_remote", opened)
    (tmp_path / "cia").mkdir()
    (tmp_path / "cia" / "nuanced_retrieval_inputs-test.csv").write_text("mine")
    assert fetch(FetchSettings(names=("cia_ssv2", "rtime"), data_root=tmp_path)) == 0
    assert [a.rsplit("/", 1)[1] for a in asked] == ["nuanced_retrieval_labels-test.json", "test.json"]
    assert (tmp_path / "cia" / "nuanced_retrieval_inputs-test.csv").read_text() == "mine"
    assert (tmp_path / "rtime" / "test.json").read_text() == "{}"
    with pytest.raises(VtrError, match="not fetched by vtr"):
        fetch(FetchSettings(names=("msrvtt",), data_root=tmp_path))
