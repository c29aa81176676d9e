"""Evaluation of a small real model: missing videos, re-ranking, ranks, restarts, choices, classes, words about chance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import WORDS, small_model, write_videos
from vtr.errors import VtrError
from vtr.eval.benchmarks import Benchmark, load_benchmark, load_protocol
from vtr.eval.evaluate import Options
from vtr.eval.evaluate import evaluate as whole_evaluation
from vtr.eval.features import EncodeSettings, WorkFolder, encode_all, load_clip
from vtr.eval.report import Figures, compared, published_rows
from vtr.eval.rerank import match_pairs, wanted_pairs
from vtr.eval.retrieval import _decided, at_chance, choice_rows, class_rows, retrieval_rows
from vtr.eval.zero_shot import main
from vtr.models.base import combined_scores
from vtr.models.video_text import VideoTextModel
from vtr.ranks import Ranks

SETTINGS = EncodeSettings(frames=4, antialias=False, max_text_tokens=32)


def evaluate(model: VideoTextModel, benchmark: Benchmark, **options: Any) -> dict[str, Any]:
    """The result as its file holds it."""
    return json.loads(json.dumps(whole_evaluation(model, benchmark, Options(**options)).to_dict()))


def benchmark_file(folder: Path, count: int = 4) -> Path:
    write_videos(folder / "deep" / "videos", count)
    path = folder / "test.json"
    path.write_text(json.dumps([{"video": f"clip{i}.avi", "caption": WORDS[i % 4]} for i in range(count)]))
    return path


def test_rows_of_a_whole_evaluation_are_complete(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(benchmark_file(tmp_path)), tmp_path)
    result = evaluate(small_model(), benchmark, rerank=3)
    for direction in ("t2v", "v2t"):
        assert set(result[direction]) == {"embedding", "reranked", "combined"}
    assert (result["gallery"], result["chance_r1"], result["rerank"]) == (4, 25.0, 3)
    six = [result[d]["combined"][k] for d in ("t2v", "v2t") for k in ("r1", "r5", "r10")]
    assert result["mean_recall"]["combined"] == pytest.approx(sum(six) / 6, abs=0.01)


@torch.no_grad()
def test_batched_reranking_equals_scoring_every_pair_by_itself(tmp_path: Path) -> None:
    model = small_model()
    paths = write_videos(tmp_path / "v", 18)  # more than one batch of videos
    captions = [*WORDS, "a dog", "dog runs on the green grass and moves left"]
    f = encode_all(model, paths, captions, SETTINGS, WorkFolder(tmp_path / "work"), Ranks())
    similarity = f.text @ f.video.T
    wanted = wanted_pairs(similarity, 2)
    assert (wanted.sum(1) >= 2).all()
    assert (wanted.sum(0) >= 2).all()
    logits = match_pairs(model, f, wanted, WorkFolder(tmp_path / "work"), Ranks())
    video = model.encode_video(torch.stack([load_clip(p, model, SETTINGS) for p in paths]))
    for q, v in wanted.nonzero().tolist():
        text = model.encode_text([captions[q]])
        fused = model.text_encoder.fuse(text.tokens, text.mask, video.tokens[v : v + 1])
        torch.testing.assert_close(logits[q, v], model.itm_head(fused[:, 0])[0], rtol=1e-4, atol=1e-5)
    assert (logits[~wanted] == 0).all()


def test_candidates_below_the_top_stay_below_it() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.9, 0.8], [0.7, 0.1, 0.6]])
    logits = torch.zeros(3, 3, 2)
    logits[..., 1] = torch.tensor([[0.0, 5, 9], [0, 0, 5], [5, 0, 0]])
    rows = retrieval_rows(similarity, logits, [[0], [1], [2]], [[0], [1], [2]], 2, 0.1)
    # Text 0 prefers video 2 by its match logit, but video 2 is not among its two candidates.
    assert rows.t2v["reranked"]["mean_rank"] == 2.0
    assert float(combined_scores(similarity[0, 1], logits[0, 1], 0.1)) == pytest.approx(13.0)
    assert rows.t2v["combined"]["mean_rank"] == 2.0


def test_the_reranked_row_is_blind_to_what_shifts_both_logits_but_as_published_it_is_not() -> None:
    similarity, truth = torch.eye(3) * 0.1 + 0.5, [[0], [1], [2]]
    logits = torch.stack([torch.zeros(3, 3), torch.eye(3)], -1)
    shifted = logits + torch.tensor([[0.0, 9, 0], [0, 0, 9], [9, 0, 0]])[..., None]
    both = [retrieval_rows(similarity, x, truth, truth, 3, 0.1).t2v["reranked"]["r1"] for x in (logits, shifted)]
    assert both == [100.0, 100.0]
    published = retrieval_rows(similarity, shifted, truth, truth, 3, 0.1, by_logit=True)
    assert published.t2v["reranked"]["r1"] == 0.0


def test_the_combined_row_orders_the_top_exactly_as_the_combined_scores_do() -> None:
    g = torch.Generator().manual_seed(0)
    n, top = 60, 8
    similarity = torch.randn(n, n, generator=g) * 0.05 + torch.eye(n) * 0.1
    logits = torch.randn(n, n, 2, generator=g)
    truth = [[i] for i in range(n)]
    got = retrieval_rows(similarity, logits, truth, truth, top, 0.02).t2v["combined"]
    place = []
    for q in range(n):
        best = similarity[q].topk(top).indices
        order = best[combined_scores(similarity[q, best], logits[q, best], 0.02).argsort(descending=True)].tolist()
        order += [v for v in similarity[q].argsort(descending=True).tolist() if v not in order]
        place.append(order.index(q) + 1)
    assert got["mean_rank"] == pytest.approx(sum(place) / n, abs=0.006)
    assert got["r1"] == pytest.approx(100 * sum(p == 1 for p in place) / n, abs=0.006)


def test_missing_videos_are_all_named_and_refused_unless_allowed(tmp_path: Path) -> None:
    path = benchmark_file(tmp_path)
    (tmp_path / "deep" / "videos" / "clip1.mp4").unlink()
    (tmp_path / "deep" / "videos" / "clip2.mp4").write_bytes(b"<html>")
    benchmark = load_benchmark(str(path), tmp_path)
    with pytest.raises(VtrError, match=r"1 of 4.*clip1"):
        evaluate(small_model(), benchmark)
    result = evaluate(small_model(), benchmark, allow_missing=True)
    assert result["comparable"] == "no: 2 of 4 videos"
    assert (result["gallery"], result["queries"]) == (2, 2)


def test_the_command_names_its_flag_and_python_its_parameter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "m")
    path = benchmark_file(tmp_path)
    (tmp_path / "deep" / "videos" / "clip1.mp4").unlink()
    with pytest.raises(VtrError, match="allow_missing goes on without them"):
        evaluate(small_model(), load_benchmark(str(path), tmp_path))
    flags = ["--model", str(tmp_path / "m"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert main([*flags, "--data", str(path)]) == 1
    assert "--allow-missing goes on without them" in capsys.readouterr().err


def test_broken_videos_are_all_named_and_refused_unless_allowed(tmp_path: Path) -> None:
    path = benchmark_file(tmp_path)
    for name in ("clip1.mp4", "clip3.mp4"):
        (tmp_path / "deep" / "videos" / name).write_bytes(b"<html>")
    with pytest.raises(VtrError, match=r"2 of 4.*clip1.*clip3"):
        evaluate(small_model(), load_benchmark(str(path), tmp_path))


def test_the_command_writes_one_result_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save_pretrained(tmp_path / "m")
    path = benchmark_file(tmp_path)
    flags = ["--model", str(tmp_path / "m"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert main([*flags, "--data", str(path)]) == 0
    assert "text to video, combined" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "m_test.json").read_text())["queries"] == 4
    assert not (tmp_path / "results" / ".work").exists()


def metrics_of(path: Path) -> dict[str, object]:
    result = json.loads(path.read_text())
    return {k: v for k, v in result.items() if k != "run"}


def test_one_and_two_ranks_give_identical_results(tmp_path: Path, repo: Path) -> None:
    small_model().save_pretrained(tmp_path / "m")
    path = benchmark_file(tmp_path, 20)
    for ranks in (1, 2):
        words = [
            "--model",
            "m",
            "--data",
            str(path),
            "--data-root",
            str(tmp_path),
            "--out",
            str(ranks),
            "--rerank",
            "5",
        ]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if ranks == 2 else []
        command = [sys.executable, *launch, str(repo / "eval" / "zero_shot.py"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "2" / "m_test.json").read_text())["run"]["ranks"] == 2
    assert metrics_of(tmp_path / "1" / "m_test.json") == metrics_of(tmp_path / "2" / "m_test.json")


def test_a_stopped_evaluation_continues_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    benchmark = load_benchmark(str(benchmark_file(tmp_path, 20)), tmp_path)
    whole = evaluate(model, benchmark, rerank=4)
    encode, seen = model.encode_video, []

    def stops(frames: torch.Tensor) -> object:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(len(frames))
        return encode(frames)

    monkeypatch.setattr(model, "encode_video", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, benchmark, rerank=4, work=tmp_path / "work")
    monkeypatch.setattr(model, "encode_video", lambda frames: seen.append(len(frames)) or encode(frames))
    assert evaluate(model, benchmark, rerank=4, work=tmp_path / "work") == whole
    assert seen == [16, 4]  # the first batch was not encoded again


def test_a_video_that_has_changed_is_encoded_again(tmp_path: Path) -> None:
    model = small_model()
    benchmark = load_benchmark(str(benchmark_file(tmp_path)), tmp_path)
    evaluate(model, benchmark, work=tmp_path / "work", keep_features=True)
    videos = tmp_path / "deep" / "videos"
    (videos / "clip0.mp4").write_bytes((videos / "clip3.mp4").read_bytes())
    again = evaluate(model, benchmark, work=tmp_path / "work")
    assert again == evaluate(model, benchmark)


def test_too_little_space_is_said_before_anything_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark(str(benchmark_file(tmp_path)), tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(VtrError, match="work names another folder, rerank=0 does without"):
        evaluate(small_model(), benchmark)
    assert "combined" not in evaluate(small_model(), benchmark, rerank=0)["t2v"]


def test_an_untrained_model_is_said_to_be_at_chance_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "m")
    path = benchmark_file(tmp_path, 12)
    flags = ["--model", str(tmp_path / "m"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert main([*flags, "--data", str(path)]) == 0
    out = capsys.readouterr().out
    assert "AT CHANCE LEVEL: the embeddings find the right video no better than blind guessing" in out


def test_a_good_model_is_not_said_to_be_at_chance() -> None:
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 200, generator=g)
    truth = [[i] for i in range(200)]
    assert at_chance(noise, truth)
    assert not at_chance(noise + 1.5 * torch.eye(200), truth)
    assert at_chance(torch.zeros(200, 200), truth)
    several = [list(range(10 * i, 10 * i + 10)) for i in range(20)]
    assert at_chance(noise[:20], several)


def test_choices_are_scored_by_the_published_rule() -> None:
    similarity = torch.tensor([[0.1], [0.3], [0.2]])
    logits = torch.zeros(3, 1, 2)
    logits[2, 0, 1] = 4.0
    truth = [[], [], [0]]
    assert choice_rows(similarity, logits, [(0, 1, 2)], truth, 1.0) == {
        "embedding": 0.0,
        "match": 100.0,
        "ensemble": 100.0,
    }
    assert choice_rows(torch.zeros(3, 1), None, [(0, 1, 2)], truth, 1.0) == {"embedding": 33.33}


def test_a_multiple_choice_file_is_evaluated(tmp_path: Path) -> None:
    write_videos(tmp_path / "msrvtt" / "videos", 3)
    rows = [{"video": f"clip{i}.mp4", "caption": [*WORDS, "a cat"], "answer": i} for i in range(3)]
    (tmp_path / "msrvtt" / "msrvtt_mc_test.json").write_text(json.dumps(rows))
    result = evaluate(small_model(), load_benchmark("msrvtt_mc", tmp_path))
    assert set(result["choice"]) == {"embedding", "match", "ensemble"}
    assert (result["chance_r1"], result["queries"]) == (20.0, 15)
    assert result["comparable"] == "no: the annotation has 3 videos, the paper 2990"


def test_templates_are_queries_with_several_right_videos(tmp_path: Path) -> None:
    write_videos(tmp_path / "ssv2" / "videos", 3)
    rows = [
        {
            "id": f"clip{i}",
            "label": f"moving thing {i}",
            "template": "Moving [something]" if i else "Holding [something]",
        }
        for i in range(3)
    ]
    (tmp_path / "ssv2" / "something-something-v2-validation.json").write_text(json.dumps(rows))
    benchmark = load_benchmark("ssv2_template", tmp_path)
    assert benchmark.captions == ("Holding something", "Moving something")
    assert benchmark.text_truth == ((0,), (1, 2))
    assert evaluate(small_model(), benchmark)["chance_r1"] == 50.0
    assert len(load_benchmark("ssv2_label", tmp_path).captions) == 3


def test_classes_are_found_by_the_mean_of_their_prompts(tmp_path: Path) -> None:
    text = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1], [0, 1]])
    assert class_rows(text, torch.tensor([[1.0, 0.1], [0.1, 1.0]]), 2, [0, 1]) == {"top1": 100.0, "top5": 100.0}
    write_videos(tmp_path / "k400" / "videos", 2)
    (tmp_path / "k400" / "test.csv").write_text("clip0.mp4,0\nclip1.mp4,2\n")
    (tmp_path / "k400" / "classes.txt").write_text("abseiling\nair drumming\nzumba\n")
    result = evaluate(small_model(), load_benchmark("k400", tmp_path))
    assert set(result["classification"]) == {"top1", "top5"}
    assert result["chance_r1"] == pytest.approx(33.333)


def test_a_compat_switch_is_named_in_the_result_and_an_unknown_one_refused(tmp_path: Path) -> None:
    benchmark = load_benchmark(str(benchmark_file(tmp_path)), tmp_path)
    assert evaluate(small_model(), benchmark, compat=("antialias",))["compat"] == ["antialias"]
    assert main(["--model", "x", "--data", "demo", "--compat", "antialiasing"]) == 2


def test_compat_switches_change_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    write_videos(tmp_path, 1)
    (tmp_path / "clip1.mp4").write_bytes((tmp_path / "clip0.mp4").read_bytes())  # equal videos: every score is a tie
    path.write_text(json.dumps([{"video": f"clip{i}.mp4", "caption": ["a dog", WORDS[i]]} for i in range(2)]))
    benchmark = load_benchmark(str(path), tmp_path)
    assert evaluate(small_model(), benchmark, rerank=0)["t2v"]["embedding"]["r1"] == 50.0
    assert evaluate(small_model(), benchmark, rerank=0, compat=("ties-won",))["t2v"]["embedding"]["r1"] == 100.0
    joined = load_benchmark(str(path), tmp_path, paragraph=True)
    assert joined.captions == (f"a dog {WORDS[0]}", f"a dog {WORDS[1]}")
    small, sharp = (evaluate(small_model(), benchmark, rerank=0, compat=c) for c in ((), ("antialias",)))
    assert (small["antialias"], sharp["antialias"]) == (False, True)


def test_the_published_number_stands_beside_ours_with_the_difference(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "m")
    write_videos(tmp_path / "msrvtt" / "videos", 2)
    rows = [{"video": f"clip{i}.mp4", "caption": WORDS[i]} for i in range(2)]
    (tmp_path / "msrvtt" / "msrvtt_ret_test1k.json").write_text(json.dumps(rows))
    flags = ["--model", str(tmp_path / "m"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert main([*flags, "--data", "msrvtt", "--published", "videomamba_middle.25m_f8"]) == 0
    result = json.loads((tmp_path / "results" / "m_msrvtt.json").read_text())
    assert result["published"][0]["t2v"] == [35.6, 58.1, 69.5]
    ours = result["t2v"]["reranked"]["r1"]
    assert result["published"][0]["t2v_difference"][0] == pytest.approx(ours - 35.6)
    assert main([*flags, "--data", "msrvtt", "--published", "videomamba_middle.99m"]) == 2


def test_an_official_checkpoint_is_compared_with_its_own_published_row() -> None:
    benchmark = load_protocol("didemo")
    row = {"r1": 44.0, "r5": 68.0, "r10": 77.0}
    ours = Figures(t2v={"embedding": row, "reranked": row}, v2t={"embedding": row, "reranked": row}, chance_r1=1.0)
    whole = Benchmark(protocol=benchmark, videos=(), captions=(), text_truth=(), video_truth=())
    found = compared(ours, published_rows(whole, (), "videomamba_middle.25m_f8"))
    assert [entry.model for entry in found] == ["videomamba_middle.25m_f8"]
    assert found[0].t2v_difference == (0.9, -0.1, -0.7)
    assert found[0].v2t_difference == (0.2, -1.7, -0.8)


def test_a_caption_and_a_clip_choose_between_a_clip_and_its_sibling_and_a_tie_is_half() -> None:
    scores = torch.tensor([[3.0, 1.0, 9, 9], [2.0, 2.0, 9, 9], [9, 9, 1.0, 1.0], [9, 9, 1.0, 1.0]])
    # Caption a right, caption b tied; clip a right, clip b right. The second pair is tied throughout.
    assert _decided(scores).tolist() == [0.875, 0.5]
