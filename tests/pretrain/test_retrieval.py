"""Retrieval fine-tuning: training splits in the field's formats, captions as a corpus of plain files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import write_videos
from vtr.data.manifests import load_corpus
from vtr.data.shard_reader import FILES, FileList
from vtr.errors import VtrError
from vtr.pretrain.finetune import main
from vtr.pretrain.retrieval import training_pairs


def test_training_pairs_are_every_caption_or_a_paragraph_as_the_protocol_has_it(tmp_path: Path) -> None:
    for name, expected in (("msrvtt", ["a dog", "it runs"]), ("didemo", ["a dog it runs"])):
        folder = tmp_path / name
        write_videos(folder / "videos", 2)
        rows = [{"video": "clip0.mp4", "caption": ["a  dog", "it runs"]}, {"video": "gone.mp4", "caption": ["x"]}]
        file = {"msrvtt": "msrvtt_ret_train9k.json", "didemo": "didemo_ret_train.json"}[name]
        (folder / file).write_text(json.dumps(rows))
        pairs, missing, found = training_pairs(name, tmp_path)
        assert [c for _, c in pairs] == expected
        assert missing == ["gone.mp4"]
        assert found == folder / file


def test_msvd_reads_the_published_captions_with_its_list_of_training_ids(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "msvd"
    folder.mkdir()
    for name in ("captions_msvd.json", "train_list.txt"):
        (folder / name).write_bytes((shared / "data" / "annotations" / "msvd" / name).read_bytes())
    pairs, missing, _ = training_pairs("msvd", tmp_path)
    assert pairs == []
    assert len(missing) == 1200


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
