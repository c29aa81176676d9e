"""Own files as a corpus: a folder with texts beside its media, with a list in it, without captions; vocabularies of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import write_tar, write_videos
from vtr.data.build import build_shards, ensure_shards
from vtr.data.finder import RootIndex, VideoFinder
from vtr.data.manifests import Corpus, load_corpus
from vtr.data.shard_reader import FILES, FileList, captions_in, listed_files
from vtr.errors import VtrError
from vtr.pretrain.fit import fitted
from vtr.pretrain.plan import check_stages
from vtr.pretrain.recipes import STAGES, recipe
from vtr.pretrain.run import start
from vtr.pretrain.settings import RunSettings


def captions(corpus: Corpus) -> list[str]:
    return [c for m in corpus.members for s in m.shards for c in captions_in(s)]


def test_a_text_beside_a_file_is_its_caption_as_in_a_shard(tmp_path: Path) -> None:
    write_videos(tmp_path / "a", 3)
    (tmp_path / "a" / "clip0.txt").write_text("a dog runs\na brown dog\n")
    (tmp_path / "a" / "clip1.json").write_text(json.dumps({"caption": "a cat"}))
    corpus = load_corpus(tmp_path)
    assert corpus.samples == 3
    assert corpus.members[0].captioned
    assert captions(corpus) == ["a dog runs", "a brown dog", "a cat"]
    first = FileList(FILES + str(tmp_path)).read(0)
    assert not isinstance(first, str)
    assert (first.captions, first.extension, len(first.media) > 0) == (("a dog runs", "a brown dog"), "mp4", True)


@pytest.mark.parametrize("name", ["metadata.csv", "captions.jsonl"])
def test_a_list_in_a_folder_says_what_its_files_are(name: str, tmp_path: Path) -> None:
    write_videos(tmp_path / "clips", 2)
    rows = {
        "csv": "file_name,text\nclips/clip1.mp4,a dog\n",
        "jsonl": '{"file_name": "clips/clip1.mp4", "text": "a dog"}\n',
    }
    (tmp_path / name).write_text(rows[name.rpartition(".")[2]])
    corpus = load_corpus(tmp_path)
    assert (corpus.samples, captions(corpus)) == (1, ["a dog"])
    (tmp_path / "annotations.tsv").write_text("video\tcaption\nclips/clip0.mp4\ta cat\n")
    with pytest.raises(VtrError, match=r"several lists \(annotations.tsv"):
        load_corpus(tmp_path)


def test_files_without_captions_train_the_masked_stage_alone_and_the_others_say_what_is_missing(tmp_path: Path) -> None:
    write_videos(tmp_path, 4)
    corpus = load_corpus(tmp_path)
    assert not corpus.members[0].captioned
    chosen = fitted(recipe("clean", str(tmp_path)), corpus, STAGES)
    check_stages(corpus, chosen, ("masked",), 1)
    with pytest.raises(VtrError, match=r"stage multimodal: .*no captions: .*--stage masked"):
        check_stages(corpus, chosen, STAGES, 1)


def test_shards_without_captions_are_refused_before_the_first_stage_with_a_sample_and_what_is_read(
    tmp_path: Path,
) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{i:03d}.mp4", b"0") for i in range(100)])
    corpus = load_corpus(tmp_path)
    chosen = fitted(recipe("clean", str(tmp_path)), corpus, STAGES)
    check_stages(corpus, chosen, ("masked",), 1)
    with pytest.raises(
        VtrError, match=r"none of the 50 samples looked at has a caption, as .*#2016: no caption: its members"
    ):
        check_stages(corpus, chosen, STAGES, 1)
    with pytest.raises(VtrError, match="none of the 50 samples looked at has a caption"):
        start(RunSettings(corpus=str(tmp_path), out=tmp_path / "run"))
    write_tar(tmp_path / "2.tar", [(f"2{i:03d}.{e}", b"text") for i in range(100) for e in ("mp4", "txt")])
    check_stages(load_corpus(tmp_path), chosen, STAGES, 1)


def test_small_copies_are_made_once_and_rows_of_one_file_are_one_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "clips", 3)
    path = tmp_path / "my.csv"
    path.write_text(
        "video,caption\nclips/clip0.mp4,a dog\nclips/clip0.mp4,it runs\nclips/clip1.mp4,a cat\ngone.mp4,x\n"
    )
    out = ensure_shards(path, tmp_path / "data", 16)
    assert captions(load_corpus(out)) == ["a dog", "it runs", "a cat"]
    assert load_corpus(out).samples == 2
    assert "line 5: " in capsys.readouterr().err
    before = (out / "000000.tar").stat().st_mtime_ns
    path.write_text(path.read_text().replace("gone.mp4,x", "clips/clip1.mp4,a cat"))
    assert ensure_shards(path, tmp_path / "data", 16) == out
    assert "0 left out" in capsys.readouterr().err
    assert captions(load_corpus(out)) == ["a dog", "it runs", "a cat"]
    changed = (out / "000000.tar").stat().st_mtime_ns
    assert changed != before or load_corpus(out).samples == 2
    ensure_shards(path, tmp_path / "data", 16)
    assert (out / "000000.tar").stat().st_mtime_ns == changed  # nothing changed, nothing made
    assert ensure_shards(path, tmp_path / "data", 24) != out


def test_a_folder_with_texts_becomes_shards_too(tmp_path: Path) -> None:
    write_videos(tmp_path / "in", 2)
    with pytest.raises(VtrError, match="no captions"):
        build_shards(tmp_path / "in", tmp_path / "out", workers=1)
    (tmp_path / "in" / "clip1.txt").write_text("a dog runs")
    report = build_shards(tmp_path / "in", tmp_path / "out", workers=1)
    assert (report.written, captions(load_corpus(tmp_path / "out"))) == (1, ["a dog runs"])
    assert report.bad == ["clip0.mp4: no caption: no .txt or .json beside it"]


def test_what_a_nas_keeps_or_has_thrown_away_is_no_training_data(tmp_path: Path) -> None:
    for name in ("a.mp4", "._a.mp4", "@eaDir/a.mp4", "#recycle/gone.mp4", ".hidden/a.mp4", "b.temp.mp4", "sub/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path for path, _ in listed_files(tmp_path)] == [tmp_path / "a.mp4", tmp_path / "sub" / "c.mp4"]
    finder = VideoFinder(RootIndex(tmp_path))
    assert finder.find("gone.mp4") is None
    assert finder.find("#recycle/gone.mp4") == tmp_path / "#recycle" / "gone.mp4"  # it is named with its folder
