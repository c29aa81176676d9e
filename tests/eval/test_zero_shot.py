"""Evaluation of a small real model: annotation formats, missing videos, re-ranking, direction pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import WORDS, small_model, write_videos
from vtr.errors import VtrError
from vtr.eval.benchmarks import benchmark_names, load_benchmark, read_annotations
from vtr.eval.retrieval import direction_pairs, encode, load_clip, rerank
from vtr.eval.zero_shot import evaluate, main
from vtr.model import combined_scores


def benchmark_file(folder: Path, count: int = 4) -> Path:
    write_videos(folder / "deep" / "videos", count)
    path = folder / "test.json"
    path.write_text(json.dumps([{"video": f"clip{i}.avi", "caption": WORDS[i % 4]} for i in range(count)]))
    return path


def test_rows_of_a_whole_evaluation_are_complete(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(benchmark_file(tmp_path)), tmp_path)
    result = evaluate(small_model(), benchmark, top=3)
    for direction in ("t2v", "v2t"):
        assert set(result[direction]) == {"embedding", "reranked", "combined"}
    assert (result["gallery"], result["chance_r1"], result["rerank"]) == (4, 25.0, 3)


@torch.no_grad()
def test_reranking_equals_scoring_every_pair_by_itself(tmp_path: Path) -> None:
    model = small_model()
    clips = [load_clip(p, model) for p in write_videos(tmp_path, 4)]
    f = encode(model, clips, WORDS)
    similarity = f.text @ f.video.T
    matched, both = rerank(model, f, similarity, 2, video_queries=False, batch=3)
    for q in range(4):
        top = similarity[q].topk(2).indices.tolist()
        for v in range(4):
            if v in top:
                logits = model.match(f.states[q : q + 1], f.mask[q : q + 1], f.tokens[v : v + 1])
                torch.testing.assert_close(matched[q, v], logits[0, 1])
                torch.testing.assert_close(both[q, v], combined_scores(similarity[q, v], logits[0], float(model.temp)))
            else:
                assert matched[q, v] == float("-inf")
                assert both[q, v] < both[q, top].min()


def test_missing_videos_are_all_named_and_refused_unless_allowed(tmp_path: Path) -> None:
    path = benchmark_file(tmp_path)
    (tmp_path / "deep" / "videos" / "clip1.mp4").unlink()
    (tmp_path / "deep" / "videos" / "clip2.mp4").write_bytes(b"<html>")
    benchmark = load_benchmark(str(path), tmp_path)
    with pytest.raises(VtrError, match=r"2 of 4.*clip1.*clip2"):
        evaluate(small_model(), benchmark)
    result = evaluate(small_model(), benchmark, allow_missing=True)
    assert result["comparable"] == "no: 2 of 4 videos"


def test_the_command_writes_one_result_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save_pretrained(tmp_path / "m")
    path = benchmark_file(tmp_path)
    flags = ["--model", str(tmp_path / "m"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert main([*flags, "--data", str(path)]) == 0
    assert "text to video, combined" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "m_test.json").read_text())["queries"] == 4


def test_a_model_blind_to_direction_gets_half_of_the_pairs(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    pairs = [
        {
            "kind": "left_right",
            "video_a": "clip0.mp4",
            "video_b": "clip0.mp4",
            "caption_a": WORDS[0],
            "caption_b": WORDS[1],
        }
    ]
    # Equal clips: each caption's choice is a tie (half right); each clip is right for one caption and wrong for one.
    assert direction_pairs(small_model(), pairs, tmp_path) == {"all": 50.0, "left_right": 50.0}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "{}", "expected a list"),
        ("a.json", "[", "not JSON"),
        ("a.csv", "x,y\n1,2\n", "expected video_id"),
        ("a.txt", "one\ttwo\n", "6"),
    ],
)
def test_an_annotation_file_of_another_format_is_refused(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(VtrError, match=says):
        read_annotations(tmp_path / name)


def test_lsmdc_lines_are_read_from_their_stated_format(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("1014_a_00.00\t0\t1\t0\t1\tSomeone walks.\n")
    assert read_annotations(tmp_path / "l.txt") == [("1014_a_00.00", ["Someone walks."])]


def test_real_annotation_files_have_the_published_counts(shared: Path) -> None:
    root = shared / "data" / "annotations"
    assert len(read_annotations(root / "msrvtt" / "msrvtt_ret_test1k.json")) == 1000
    assert len(read_annotations(root / "msrvtt" / "MSRVTT_JSFUSION_test.csv")) == 1000
    assert len(read_annotations(root / "activitynet" / "anet_ret_val_1.json")) == 4917
    msvd = read_annotations(root / "derived" / "msvd_ret_test_670.json")
    assert (len(msvd), sum(len(c) for _, c in msvd)) == (670, 27763)


def test_every_benchmark_file_names_its_annotation() -> None:
    assert set(benchmark_names()) >= {"anet", "demo", "didemo", "lsmdc", "msrvtt", "msvd"}
    with pytest.raises(VtrError, match="msrvtt"):
        load_benchmark("msrvt", Path())
