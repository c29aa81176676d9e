"""Own files as a corpus: a folder with texts beside its media, with a list in it, without captions; vocabularies of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import write_videos
from vtr.data.manifests import Corpus, load_corpus
from vtr.data.shard_reader import FILES, FileList, captions_in
from vtr.errors import VtrError
from vtr.pretrain.fit import fitted
from vtr.pretrain.plan import check_stages
from vtr.pretrain.recipes import STAGES, recipe


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
