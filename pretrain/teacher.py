"""The teacher: an image tower of open_clip for real corpora (OpenAI's ViT-B/16), a small CLIP trained on the spot for the demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from vtr.data.manifests import Corpus
from vtr.data.stream import Batch, Stream, StreamSettings
from vtr.encoders.clip_teacher import ClipTeacher, FrameTeacher, image_tower
from vtr.encoders.tower_teacher import TowerTeacher
from vtr.errors import UsageError, VtrError
from vtr.models import hub
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.optim import AdamW
from vtr.pretrain.recipes import Recipe, Stage
from vtr.pretrain.settings import RunSettings
from vtr.ranks import Ranks
from vtr.threads import give_back

DEFAULT = "ViT-B-16/openai"
MODERN = "PE-Core-B-16/meta"  # an option of the recipe `clean` (vtr.pretrain.recipes.DIFFERENCES)
NONE = "none"  # --teacher: train without one
_TOWER = ("blocks", "norm", "num_prefix_tokens", "forward_features", "set_input_size")  # what timm's ViTs have
_CLIP_PARTS = ("class_embedding", "positional_embedding", "proj", "conv1", "ln_pre", "ln_post", "transformer")
_WEIGHTS = "open_clip_model.safetensors"

# The demo's teacher: what a laptop trains in half a minute on the demo's own frames and captions.
_SMALL = {"embed_dim": 64, "width": 96, "layers": 3, "head_width": 32, "text_width": 64, "text_layers": 2}


def load_teacher(name: str) -> FrameTeacher:
    """Load `ARCHITECTURE/PRETRAINED` (open_clip names, e.g. `ViT-B-16/openai`) or a folder with the demo's teacher.

    Raises:
        UsageError: No such architecture or weights, or its image tower is no vision transformer.
        VtrError: The weights are not here; the message names the file, where it goes, and the way without it.
    """
    if Path(name, "teacher.safetensors").is_file():
        return _load_small(Path(name))
    import open_clip  # a second, in each function that needs it: stages without a teacher start without
    from open_clip.pretrained import get_pretrained_cfg

    from vtr.models.open_clip import quick_gelu_needed, quiet

    architecture, _, pretrained = name.partition("/")
    # OpenAI's weights want QuickGELU, which the architecture's name does not say and open_clip only warns of.
    quick_gelu = quick_gelu_needed(architecture, pretrained)
    try:
        with hub.offline_if_unreachable(), quiet():
            model = open_clip.create_model(
                architecture, pretrained, require_pretrained=True, weights_only=True, force_quick_gelu=quick_gelu
            )
    except Exception as error:  # open_clip raises many kinds: no network, damaged cache, other sizes
        text = " ".join(str(error).split())[:200] or type(error).__name__
        repository = str((get_pretrained_cfg(architecture, pretrained) or {}).get("hf_hub", "")).strip("/")
        if repository and ("ownload" in text or "HF Hub" in text or isinstance(error, OSError)):
            place = Path(constants.HF_HUB_CACHE) / ("models--" + repository.replace("/", "--"))
            raise VtrError(
                f"teacher {name!r}: {_WEIGHTS} is neither in {place} nor downloadable; on a machine with a network "
                f"run: hf download {repository} {_WEIGHTS}, and copy that folder here; or name a file: "
                f"--teacher {architecture}/PATH; or train without it: --stage multimodal --teacher none"
            ) from error
        raise VtrError(
            f"teacher {name!r} cannot be loaded: {text}; expected an open_clip name such as {DEFAULT} that is in the "
            "cache or downloadable"
        ) from error
    return teacher_of(model, name)


def teacher_of(model: nn.Module, name: str) -> FrameTeacher:
    """The image tower of an open_clip model as a teacher.

    Raises:
        UsageError: It is no vision transformer, or one whose patches are pooled inside.
    """
    import open_clip
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    visual = model.get_submodule("visual")
    tower = getattr(visual, "trunk", None)
    if isinstance(tower, nn.Module) and all(hasattr(tower, part) for part in _TOWER):
        pixels = open_clip.get_model_preprocess_cfg(model)
        patch = tower.get_submodule("patch_embed").get_submodule("proj").get_parameter("weight").shape[-1]
        return TowerTeacher(tower, patch, pixels["mean"], pixels["std"])
    if isinstance(visual, VisionTransformer):
        known = all(k.split(".")[0] in _CLIP_PARTS and ".ls_" not in k for k in visual.state_dict())
        if known and type(visual.transformer.resblocks[0]) is ResidualAttentionBlock:
            return ClipTeacher.from_open_clip(model)
    kind = type(tower if isinstance(tower, nn.Module) else visual).__name__
    raise UsageError(
        f"--teacher {name}: its image tower ({kind}) gives no patch tokens in a shared space; expected a vision "
        f"transformer of CLIP, SigLIP 2, PE-Core or EVA, as in {DEFAULT} or {MODERN}"
    )


def small_clip(image_size: int, patch_size: int, vocab_size: int, context: int, pad_id: int) -> nn.Module:
    """An untrained open_clip CLIP of the demo's size; its text tower reads our tokenizer's ids."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        embed_dim=_SMALL["embed_dim"],
        vision_cfg=CLIPVisionCfg(
            layers=_SMALL["layers"],
            width=_SMALL["width"],
            head_width=_SMALL["head_width"],
            patch_size=patch_size,
            image_size=image_size,
        ),
        text_cfg=CLIPTextCfg(
            context_length=context,
            vocab_size=vocab_size,
            width=_SMALL["text_width"],
            heads=2,
            layers=_SMALL["text_layers"],
            no_causal_mask=True,
            pool_type="first",
            pad_id=pad_id,
        ),
    )


def _load_small(folder: Path) -> ClipTeacher:
    # Without open_clip, which takes two seconds to load.
    tower = image_tower(load_file(folder / "teacher.safetensors"))
    return ClipTeacher(tower, _SMALL["width"] // _SMALL["head_width"], quick_gelu=False)


def ensure_demo_teacher(
    folder: Path, stream: Iterator[Batch], model: VideoTextModel, *, steps: int = 100, lr: float = 1e-3, seed: int = 0
) -> None:
    """Train the demo's teacher once and keep it in `folder` (teacher.safetensors).

    Args:
        folder: Where it is cached; nothing is done when it is there.
        stream: Iterator of batches (`vtr.data.stream.Batch`); every frame is one image with its clip's caption.
        model: The student: its tokenizer, pixel normalisation and image size are the teacher's too.
    """
    if (folder / "teacher.safetensors").is_file():
        return
    video = model.config.video
    size = {
        "image_size": video.image_size,
        "patch_size": video.patch_size,
        "vocab_size": model.tokenizer.vocab_size,
        "context": model.config.max_text_tokens,
        "pad_id": model.tokenizer.pad_id,
    }
    torch.manual_seed(seed)
    clip = small_clip(**size).to(model.device)
    optimizer = AdamW(clip.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(total=steps, desc="teacher", file=sys.stderr, unit="step")
    for step, batch in zip(range(steps), _ahead(stream)):
        pick = torch.randint(batch.frames.shape[1], (batch.frames.shape[0],), generator=generator)
        images = model.normalise(batch.frames[torch.arange(len(pick)), pick][:, None].to(model.device))[:, 0]
        tokens = model.tokenizer(batch.captions, size["context"], pad_to=size["context"])
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 15) * (1 - step / steps)
        image, text, scale = clip(images, tokens.ids.to(model.device))[:3]
        logits = scale * image @ text.T
        labels = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    bar.close()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"teacher.safetensors.{os.getpid()}.tmp"
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, partial)
    os.replace(partial, folder / "teacher.safetensors")


def _ahead(stream: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each read in a thread while the one before is worked on: the other ranks wait, a core is free.

    No process: the server that data workers are forked from would stay for the whole run, with torch in it.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, stream)
        while True:
            batch, coming = coming.result(), pool.submit(next, stream)
            yield batch


def teacher_name(settings: RunSettings, image_size: int | None = None) -> str:
    """What a run's teacher is called: the flag, the demo's folder, or the default.

    Args:
        image_size: Of the student; the demo has a teacher for each.
    """
    if not made_on_the_spot(settings):
        return settings.teacher or DEFAULT
    return str(settings.data_root / "demo" / ("teacher" if image_size in (64, None) else f"teacher-{image_size}"))


def made_on_the_spot(settings: RunSettings) -> bool:
    """Whether the teacher is the demo's, which a run trains itself when it is not there."""
    return settings.teacher is None and settings.corpus == "demo"


def demo_teacher(
    settings: RunSettings, chosen: Recipe, model: VideoTextModel, corpus: Corpus, ranks: Ranks
) -> FrameTeacher:
    """The demo's teacher for a student; trained first where it is not there, by one rank while the others wait."""
    folder = Path(teacher_name(settings, model.config.video.image_size))
    ranks.main_only(lambda: _make_demo_teacher(folder, settings, chosen, model, corpus))
    give_back()
    return load_teacher(str(folder))


def check_teacher(teacher: FrameTeacher, name: str, stages: Sequence[Stage], model: VideoTextModel) -> None:
    """Refuse a teacher that the student can't be aligned with.

    Raises:
        UsageError: It has too few layers, tokens of another width, or no attention to draw masks from.
    """
    config = model.config.video
    if config.align_layers > min(teacher.depth, config.depth):
        raise UsageError(
            f"align_layers {config.align_layers}: the teacher has {teacher.depth} layers, the model {config.depth} "
            "(--set align_layers=…)"
        )
    if teacher.width != config.align_dim:
        raise UsageError(
            f"--teacher {name}: its tokens have {teacher.width} channels, this model is made for {config.align_dim}"
        )
    if not teacher.attends and any(stage.uta > 0 and stage.mask == "attention" for stage in stages):
        raise UsageError(
            f"--teacher {name}: it has no attention that masks could be drawn from; draw them without (--set mask=tube)"
        )


def _make_demo_teacher(
    folder: Path, settings: RunSettings, chosen: Recipe, model: VideoTextModel, corpus: Corpus
) -> None:
    if (folder / "teacher.safetensors").is_file():
        return
    video = model.config.video
    reading = StreamSettings(
        frames=video.num_frames,
        size=video.image_size,
        batch_size=128,
        streams=8,
        workers=settings.workers,
        block=1,
        seed=chosen.seed,
        crop_scale=None,
        flip=False,
    )
    source = Stream(corpus, reading, rank=0, world=1)
    try:
        ensure_demo_teacher(folder, iter(source), model)
    finally:
        source.close()
