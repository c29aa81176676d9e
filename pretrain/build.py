"""What a run is made of: its corpus, tokenizer, model and teacher, built from the run's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vtr.data.cleaning import clean_caption
from vtr.data.demo import demo_texts, ensure_demo_corpus
from vtr.data.manifests import Corpus, load_corpus
from vtr.data.shard_reader import captions_in
from vtr.data.text import Tokenizer
from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import BertConfig
from vtr.encoders.registry import find_encoder, named_encoders
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import VtrError, unknown_name
from vtr.models.bert import is_hub_name, pretrained_text
from vtr.models.video_text import ModelConfig, VideoTextModel
from vtr.pretrain.recipes import Recipe
from vtr.ranks import Ranks

TEXTS = ("bert", "scratch")
_SMALL_WIDTH = 64  # channels of the demo's teacher
_JOINT = {"umt_large": 768}  # dimensions that video and text share, where they are not 512


def check_names(size: str | None, text: str) -> None:
    """Refuse a model or text side that does not exist.

    Raises:
        UsageError: The nearest name is in it.
    """
    known = (*named_encoders(), "demo")
    if size is not None and size not in known:
        raise unknown_name("model", size, known)
    if text not in TEXTS and not is_hub_name(text):
        raise unknown_name("text", text, (*TEXTS, "OWNER/NAME of the hub"))


def prepare_corpus(
    name: str, data_root: Path, ranks: Ranks, *, demo_clips: int = 8000, demo_images: int = 2000
) -> Corpus:
    """Load a corpus by name or TOML path; the demo corpus is made first, by one rank while the others wait."""
    if name == "demo":
        ranks.main_only(lambda: ensure_demo_corpus(data_root / "demo", clips=demo_clips, images=demo_images))
        return load_corpus("demo", data_root / "demo")
    return load_corpus(name, data_root)


def build_model(
    size: str, corpus: Corpus, data_root: Path, recipe: Recipe, text: str = "bert", *, align_dim: int | None = None
) -> VideoTextModel:
    """An untrained `VideoTextModel` of a named size, with its tokenizer.

    Args:
        size: One of the paper's, or `demo`: what two CPU cores train in minutes, 64 pixels, text side from scratch.
        text: `bert`: start from bert-base-uncased; OWNER/NAME: from that BERT of the hub; `scratch`: six layers of 384, for machines without it.
        align_dim: Channels of the teacher's tokens; default: those of the demo's small one, or of OpenAI's ViT-B/16.
    """
    check_names(size, text)
    video: EncoderConfig
    if size == "demo":
        tokenizer = _own_tokenizer(corpus, data_root)
        video = VideoMambaConfig(
            image_size=64,
            patch_size=16,
            stem=32,
            num_frames=8,
            dim=96,
            depth=4,
            pool="cls+avg",
            pool_norm=True,
            align_dim=align_dim or _SMALL_WIDTH,
            align_layers=recipe.align_layers,
            init="official",  # measured: at this size and length the two initialisations train alike
        )
        bert = BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden=96,
            layers=3,
            fusion_layer=2,
            heads=4,
            intermediate=384,
            max_positions=64,
            dropout=0.0,
            vision_width=96,
        )
        half = (0.5, 0.5, 0.5)
        config = ModelConfig(
            video=video,
            text=bert,
            embed_dim=128,
            pixel_mean=half,
            pixel_std=half,
            max_text_tokens=32,
            memory="patches+pooled",
        )
        return VideoTextModel(config, tokenizer)
    width, joint = find_encoder(size).dim, _JOINT.get(size, 512)
    video = replace(
        find_encoder(size),
        pool="cls+avg",
        pool_norm=True,
        align_dim=align_dim or (_SMALL_WIDTH if corpus.name == "demo" else 512),
        align_layers=recipe.align_layers,
        num_classes=0,
        init=recipe.init,
    )
    if text == "scratch":
        tokenizer = _own_tokenizer(corpus, data_root)
        bert = BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden=384,
            layers=6,
            fusion_layer=4,
            heads=6,
            intermediate=1536,
            max_positions=64,
            vision_width=width,
        )
        return VideoTextModel(ModelConfig(video=video, text=bert, embed_dim=joint), tokenizer)
    found = pretrained_text(text, vision_width=width)
    model = VideoTextModel(ModelConfig(video=video, text=found.config, embed_dim=joint), found.tokenizer)
    found.load_into(model.text_encoder)
    return model


def _own_tokenizer(corpus: Corpus, data_root: Path) -> Tokenizer:
    """A vocabulary made of the corpus's own captions."""
    if corpus.name == "demo":
        return Tokenizer.train(demo_texts(data_root / "demo"), 600)
    captions = _captions(corpus, 100_000)
    if not captions:
        raise VtrError(f"corpus {corpus.name} has no captions to make a vocabulary from; run: vtr shards verify")
    return Tokenizer.train(captions, 8000)


def _captions(corpus: Corpus, most: int) -> list[str]:
    """Up to `most` captions of a corpus, from its first shards.

    Raises:
        VtrError: It has none.
    """
    found: list[str] = []
    for member in corpus.members:
        for shard in member.shards:
            try:
                found += map(clean_caption, captions_in(shard))
            except VtrError:
                continue  # a damaged shard: the stream counts what it lacks
            if len(found) >= most:
                return found[:most]
    if not found:
        raise VtrError(f"corpus {corpus.name}: no captions, which a text side from scratch makes its vocabulary of")
    return found
