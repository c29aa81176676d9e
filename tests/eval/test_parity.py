"""Scores through the evaluation's own path against the official implementation's."""

from __future__ import annotations

from pathlib import Path

import pytest

import vtr.eval.features
from vtr.data.text import TokenBatch
from vtr.encoders.parity import ParityFile, multimodal_network, relative_error
from vtr.eval.features import EncodeSettings, WorkFolder, encode_all
from vtr.eval.rerank import match_pairs, wanted_pairs
from vtr.models.base import load_strictly
from vtr.models.video_text import ModelConfig, VideoTextModel
from vtr.ranks import Ranks


def test_embedding_matrix_and_match_logits_are_the_official_ones(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ParityFile(shared / "official_parity" / "multimodal_a.safetensors")
    inputs, wanted, network = file.part("input"), file.part("output"), multimodal_network(file)
    sizes = {"video": network.vision_encoder.config, "text": network.text_encoder.config}
    model = VideoTextModel(ModelConfig(**sizes, embed_dim=file.sizes["embed"]), None).eval()
    load_strictly(model, network.state_dict(), str(file.path))
    videos = [tmp_path / f"{i}.mp4" for i in range(len(inputs["video"]))]
    # The file has no pictures and no words, but their tensors: everything after decoding and tokenising is ours.
    monkeypatch.setattr(vtr.eval.features, "load_clip", lambda path, *_: inputs["video"][int(path.stem)])
    tokens = TokenBatch(ids=inputs["input_ids"], mask=inputs["attention_mask"])
    monkeypatch.setattr(vtr.eval.features, "tokenised", lambda *_: ([tokens], 0))
    settings = EncodeSettings(frames=inputs["video"].shape[1], antialias=False, max_text_tokens=32)
    work, team = WorkFolder(tmp_path / "work"), Ranks()
    features = encode_all(model, videos, [""] * len(tokens), settings, work, team)
    similarity = features.text @ features.video.T
    logits = match_pairs(model, features, wanted_pairs(similarity, len(videos)), work, team)
    errors = {
        "sim_t2v": relative_error(similarity, wanted["sim_t2v"]),
        "sim_v2t": relative_error(similarity.T, wanted["sim_v2t"]),
        "match_score_video_by_text": relative_error(logits[..., 1].T, wanted["match_score_video_by_text"]),
    }
    print(errors)
    assert max(errors.values()) < 1e-4, errors
