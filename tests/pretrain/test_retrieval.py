"""Retrieval fine-tuning: training splits in the field's formats, captions as a corpus of plain files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import small_model, write_videos
from vtr.data.manifests import load_corpus
from vtr.data.shard_reader import FILES, FileList
from vtr.errors import VtrError
from vtr.pretrain.finetune import main
from vtr.pretrain.retrieval import training_data


def test_training_pairs_are_every_caption_or_a_paragraph_as_the_protocol_has_it(tmp_path: Path) -> None:
    for name, expected in (("msrvtt", ["a dog", "it runs"]), ("didemo", ["a dog it runs"])):
        folder = tmp_path / name
        write_videos(folder / "videos", 2)
        rows = [{"video": "clip0.mp4", "caption": ["a  dog", "it runs"]}, {"video": "gone.mp4", "caption": ["x"]}]
        file = {"msrvtt": "msrvtt_ret_train9k.json", "didemo": "didemo_ret_train.json"}[name]
        (folder / file).write_text(json.dumps(rows))
        found = training_data(name, tmp_path)
        assert [c for _, c in found.pairs] == expected
        assert found.missing == ("gone.mp4",)
        assert found.file == folder / file


def test_msvd_reads_the_published_captions_with_its_list_of_training_ids(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "msvd"
    folder.mkdir()
    for name in ("captions_msvd.json", "train_list.txt"):
        (folder / name).write_bytes((shared / "data" / "annotations" / "msvd" / name).read_bytes())
    found = training_data("msvd", tmp_path)
    assert found.pairs == ()
    assert len(found.missing) == 1200


def test_captions_of_one_video_share_its_sample_id_in_a_corpus_of_plain_files(tmp_path: Path) -> None:
    paths = write_videos(tmp_path, 2)
    path = tmp_path / "pairs.jsonl"
    rows = [{"video": str(paths[i // 2]), "caption": f"caption {i}"} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(str(path))
    assert corpus.members[0].samples == 4
    samples = [FileList(FILES + str(path)).read(i) for i in range(4)]
    assert [s.caption for s in samples if not isinstance(s, str)] == [f"caption {i}" for i in range(4)]
    keys = [s.key for s in samples if not isinstance(s, str)]
    assert keys[0] == keys[1] != keys[2]
    path.write_text('{"video": "a.mp4"}\n')
    with pytest.raises(VtrError, match="caption"):
        load_corpus(str(path))


def test_retrieval_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--task", "retrieval"]) == 2
    assert main(["--task", "retrieval", "--data", "msrvtt", "--data-root", str(tmp_path)]) == 1
    assert main(["--task", "retrieval", "--data", "msrvt", "--data-root", str(tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "needs --data" in err[0]
    assert "no training annotation" in err[1]
    assert "did you mean 'msrvtt'" in err[2]


def test_an_annotation_file_of_ones_own_finds_its_videos_beside_it(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "mine" / "clips", 3)
    file = tmp_path / "mine" / "train.csv"
    file.write_text(f"Video,Caption\nclip0,a dog\nclips/clip1.mp4,a cat\n{videos[2]},a bird\n")
    for name, train in ((str(file), None), (None, file)):
        found = training_data(name, tmp_path / "nowhere", train)
        assert (found.name, found.missing) == ("train", ())
        assert [(p.name, c) for p, c in found.pairs] == [
            ("clip0.mp4", "a dog"),
            ("clip1.mp4", "a cat"),
            ("clip2.mp4", "a bird"),
        ]


def test_a_fine_tuning_on_own_annotations_trains_tests_and_says_what_the_figures_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path, 4)
    small_model().save_pretrained(tmp_path / "model")
    file, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    file.write_text("video,caption\n" + "".join(f"clip{i}.mp4,a red square {i}\n" for i in range(3)))
    other.write_text("video,caption\nclip3.mp4,a dog runs\n")
    words = [
        "--task",
        "retrieval",
        "--data",
        str(file),
        "--init",
        str(tmp_path / "model"),
        "--steps",
        "2",
        "--workers",
        "0",
    ]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert "3 of the 3 test videos were trained on" in said.out
    assert "plan for 3 samples" in said.err
    assert "3 of the 3" in json.loads((tmp_path / "a" / "results.json").read_text())["note"]
    assert main([*words, "--out", str(tmp_path / "b"), "--test", str(other)]) == 0
    assert json.loads((tmp_path / "b" / "results.json").read_text())["note"] == ""
    assert main([*words, "--out", str(tmp_path / "c"), "--test", str(tmp_path / "gone.csv")]) == 1
    assert not (tmp_path / "c").exists()  # known before the training
