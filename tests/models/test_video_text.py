"""VideoTextModel: features, scores, save and load, clear refusals."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vtr.models.load
from tests.helpers import WORDS, small_model, write_videos
from vtr.encoders.clip_teacher import ClipTeacher
from vtr.errors import UsageError, VtrError
from vtr.eval.features import EncodeSettings, load_clip
from vtr.models.base import combined_scores
from vtr.models.rank import Ranked, Ranking
from vtr.models.video_text import VideoTextModel


def frames(batch: int = 2, count: int = 4) -> torch.Tensor:
    return torch.randint(
        0, 255, (batch, count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def test_similarity_is_the_mean_cosine_over_frames() -> None:
    model = small_model()
    video, text = model.encode_video(frames()), model.encode_text(WORDS)
    expected = torch.einsum("vfe,te->tvf", video.frame_embeddings, text.embedding).mean(-1)
    torch.testing.assert_close(model.similarity(text, video), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text.embedding.norm(dim=-1), torch.ones(len(WORDS)))


@torch.no_grad()
def test_padding_does_not_change_a_text() -> None:
    model = small_model()
    alone, padded = model.encode_text(WORDS[3:]), model.encode_text(WORDS)
    torch.testing.assert_close(alone.embedding[0], padded.embedding[3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_saved_model_loads_to_the_same_outputs_and_fingerprint(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "run" / "model")
    for name in (tmp_path / "run", tmp_path / "run" / "model"):
        again = vtr.models.load.load(name, device="cpu")
        assert again.fingerprint() == model.fingerprint()
        assert torch.equal(again.encode_video(frames()).embedding, model.encode_video(frames()).embedding)
        assert torch.equal(again.encode_text(WORDS).embedding, model.encode_text(WORDS).embedding)


def test_loading_draws_no_random_numbers_and_sets_every_weight(tmp_path: Path) -> None:
    small_model(seed=3).save_pretrained(tmp_path / "m")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded = vtr.models.load.load(tmp_path / "m", "cpu")
    assert torch.equal(torch.rand(3), expected)
    saved = small_model(seed=3).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert float(torch.nn.Linear(50, 50).weight.detach().std()) > 0.01  # elsewhere they are drawn


@torch.no_grad()
def test_one_string_is_one_text_and_is_cleaned_as_in_training() -> None:
    model = small_model()
    one = model.encode_text("A dog, running!")
    assert one.embedding.shape == (1, 16)
    assert torch.equal(one.embedding, model.encode_text(["a dog running"]).embedding)


@torch.no_grad()
def test_a_path_or_paths_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    model = small_model()
    paths = write_videos(tmp_path, 3)
    settings = EncodeSettings(frames=4, antialias=False, max_text_tokens=32)
    expected = model.encode_video(torch.stack([load_clip(p, model, settings) for p in paths])).embedding
    assert torch.equal(model.encode_video(paths).embedding, expected)
    assert torch.equal(model.encode_video([str(p) for p in paths]).embedding, expected)
    torch.testing.assert_close(model.encode_video(paths[1]).embedding, expected[1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.zeros(4, 3, 32, 32), r"expected frames \(B, T, 3, H, W\), got a tensor \(4, 3, 32, 32\)"),
        ([], "a list of paths"),
        ([3], "a list of paths"),
        ([torch.zeros(4, 3, 32, 32)], "a list of paths; got Tensor in the list"),
        (5, "a list of paths; got int"),
        (b"clip.mp4", "a list of paths; got bytes"),
        ({"clip.mp4"}, "a list of paths; got set"),
        ("nothing.mp4", "nothing.mp4"),
        ("https://me:secret@example.com/a.mp4", r"https://example.com/a.mp4 is an address, and nothing is fetched"),
        (Path("/"), "is a folder"),
        (torch.zeros(1, 4, 3, 32, 32, dtype=torch.int64), "as uint8 .* got torch.int64"),
        (torch.full((1, 4, 3, 32, 32), 255.0), "normalised already, these go up to 255"),
    ],
)
def test_what_is_no_video_is_one_line_in_the_words_of_python(wrong: object, says: str) -> None:
    with pytest.raises(VtrError, match=says) as error:
        small_model().encode_video(wrong)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


@pytest.mark.parametrize("wrong", [None, 5, [], ["a dog", 3], b"a dog", [b"a dog"]])
def test_what_is_no_text_is_one_line(wrong: object) -> None:
    with pytest.raises(UsageError, match="encode_text: expected a text or a list of texts, got"):
        small_model().encode_text(wrong)  # type: ignore[arg-type]


def test_files_and_words_are_encoded_without_gradients_but_in_training(tmp_path: Path) -> None:
    model = small_model()
    [path] = write_videos(tmp_path, 1)
    assert not model.encode_video(path).embedding.requires_grad
    assert not model.encode_text("a dog").embedding.requires_grad
    assert model.encode_video(frames()).embedding.requires_grad
    assert model.encode_text(model.tokenise(["a dog"])).embedding.requires_grad
    assert model.train().encode_text("a dog").embedding.requires_grad


@torch.no_grad()
def test_videos_are_ranked_by_what_search_ranks_them_by(tmp_path: Path) -> None:
    model = small_model()
    paths = [*write_videos(tmp_path, 10), *write_videos(tmp_path / "more", 1)]
    found = model.rank("a dog", paths)
    text, seen = model.encode_text("a dog"), model.encode_video(paths)
    cosines = (seen.embedding @ text.embedding.T)[:, 0]
    both = [
        combined_scores(cosines[i], model.match(text.tokens, text.mask, seen.tokens[i : i + 1])[0], 0.07).item()
        for i in range(11)
    ]
    order = sorted(range(11), key=lambda i: -both[i])
    assert [(f.index, f.path) for f in found] == [(i, str(paths[i])) for i in order]
    assert found[0].score == pytest.approx(max(both), abs=1e-4)
    alone = model.rank("a dog", paths, rerank=False)
    assert alone[0].score == pytest.approx(float(cosines.max()), abs=1e-5)


@pytest.mark.parametrize(("text", "videos"), [("", ["a.mp4"]), ("a dog", "a.mp4"), ("a dog", [])])
def test_a_ranking_of_nothing_is_refused(text: str, videos: list[str]) -> None:
    with pytest.raises(UsageError, match="rank: expected"):
        small_model().rank(text, videos)


def test_a_ranking_is_a_table_in_a_notebook() -> None:
    shown = Ranking([Ranked(1, "<b>.mp4", 0.25)])._repr_html_()
    assert "<td>&lt;b&gt;.mp4</td><td>0.250</td>" in shown


def test_a_model_says_in_one_line_what_it_holds() -> None:
    assert repr(small_model()) == (
        "VideoTextModel(VideoMamba 2x32, 4 frames of 32 px, 3 text layers, 49 words, 0.1 M parameters, on cpu)"
    )


def test_another_weight_is_another_fingerprint() -> None:
    assert small_model(0).fingerprint() != small_model(1).fingerprint()


def spoil(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if what == "other sizes":
        config["embed_dim"] = 24
    elif what == "unknown key":
        config["video"]["dpeth"] = 2
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "missing":
        weights.unlink()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("other sizes", "expected"),
        ("unknown key", "depth"),
        ("truncated", "damaged"),
        ("missing", "model.safetensors is missing"),
    ],
)
def test_a_bad_model_folder_is_one_clear_line(what: str, says: str, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    spoil(tmp_path, what)
    with pytest.raises(VtrError, match=says) as error:
        vtr.models.load.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_name_that_is_nothing_says_what_was_expected() -> None:
    with pytest.raises(VtrError, match="no such folder"):
        vtr.models.load.load("runs/none")


def test_the_teacher_equals_open_clip_before_its_last_norm() -> None:
    from vtr.pretrain.teacher import small_clip

    torch.manual_seed(0)
    clip = small_clip(32, 16, 50, 16, 0).eval()
    teacher = ClipTeacher.from_open_clip(clip)
    images = torch.randn(6, 3, 32, 32)
    seen = {}
    clip.visual.transformer.register_forward_hook(lambda *a: seen.update(x=a[2]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        clip.encode_image(images)  # type: ignore[operator]
        expected = seen["x"] @ clip.visual.proj  # type: ignore[union-attr]
    out = teacher(images.view(2, 3, 3, 32, 32))
    torch.testing.assert_close(out.tokens[:, 1:].reshape(6, 4, -1), expected[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.tokens[:, 0], expected[:, 0].view(2, 3, -1).mean(1), rtol=1e-4, atol=1e-5)
    assert out.attention.shape == (6, 4)
    assert (out.attention >= 0).all()


def test_a_folder_of_an_older_vtr_keeps_its_fingerprint_also_where_it_is_saved_again(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    del config["video"]["stem"]  # came later
    path.write_text(json.dumps(config))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())  # as the vtr of that time made it
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    loaded = VideoTextModel.from_pretrained(tmp_path / "old")
    assert loaded.fingerprint() == digest.hexdigest() != model.fingerprint()
    loaded.save_pretrained(tmp_path / "again")
    assert VideoTextModel.from_pretrained(tmp_path / "again").fingerprint() == loaded.fingerprint()
    loaded.config = replace(loaded.config, max_text_tokens=7)
    assert loaded.fingerprint() not in (digest.hexdigest(), model.fingerprint())
