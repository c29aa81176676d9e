"""Compare our encoders with recorded outputs of the official implementation.

    python -m vtr.encoders.parity FILE.safetensors …

A file holds `state/…`, `input/…`, `output/…` tensors and, in its metadata, `sizes`. The model is built from those,
its state dict is loaded strictly, every output and gradient is compared: relative error max|a-b| / max|b|.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders.base import VideoEncoder
from vtr.encoders.bert import BertConfig
from vtr.encoders.clip_teacher import ClipTeacher
from vtr.encoders.distill import alignment_loss
from vtr.encoders.losses import contrastive_loss, language_loss
from vtr.encoders.official import load_official, to_ours
from vtr.encoders.video_text import VideoTextNetwork
from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.encoders.vit import ViT, ViTConfig
from vtr.errors import VtrError

LIMIT = 1e-4


class ParityFile:
    """One file's tensors by kind, and its sizes."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.tensors: dict[str, Tensor] = {}
        try:
            with safe_open(path, "pt") as file:
                self.sizes: dict[str, Any] = json.loads((file.metadata() or {})["sizes"])
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise VtrError(f"{path}: not a parity file ({str(error).splitlines()[0]})") from error
        self.path = path

    def part(self, kind: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `kind/`, without it."""
        return {k[len(kind) + 1 :]: v for k, v in self.tensors.items() if k.startswith(kind + "/")}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max|a-b| / max|b|; infinite for another shape or a NaN."""
    if ours.shape != theirs.shape or not torch.isfinite(ours.float()).all():
        return float("inf")
    a, b = ours.detach().double(), theirs.double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def encoder_config(state: dict[str, Tensor], sizes: dict[str, Any], prefix: str = "") -> VideoMambaConfig:
    """Read a VideoMamba's sizes off its official tensors."""
    patch = state[f"{prefix}patch_embed.proj.weight"]
    layers = {k[len(prefix) :].split(".")[1] for k in state if k.startswith(f"{prefix}layers.")}
    mixer = f"{prefix}layers.0.mixer."
    heads = {k[len(prefix) :].split(".")[1] for k in state if k.startswith(f"{prefix}clip_decoder.")}
    temporal = state.get(f"{prefix}temporal_pos_embedding")
    tubelet = patch.shape[2] if patch.ndim == 5 else 1
    return VideoMambaConfig(
        image_size=sizes["img"],
        patch_size=patch.shape[-1],
        tubelet=tubelet,
        num_frames=temporal.shape[1] * tubelet if temporal is not None else 1,
        temporal=temporal is not None,
        dim=patch.shape[0],
        depth=len(layers),
        d_state=state[f"{mixer}A_log"].shape[1],
        d_conv=state[f"{mixer}conv1d.weight"].shape[2],
        expand=state[f"{mixer}A_log"].shape[0] // patch.shape[0],
        num_classes=state[f"{prefix}head.weight"].shape[0] if f"{prefix}head.weight" in state else 0,
        align_dim=state[f"{prefix}clip_decoder.0.head.weight"].shape[0] if heads else 0,
        align_layers=max(1, len(heads)),
        pool="cls+avg",
        pool_norm=f"{prefix}pool_norm.weight" in state,
        init="official",
    )


def vit_config(state: dict[str, Tensor], sizes: dict[str, Any]) -> ViTConfig:
    """Read the sizes of UMT's encoder off its official tensors, and what they do not say off the file's sizes."""
    prefix = "vision_encoder."
    patch = state[f"{prefix}encoder.patch_embed.proj.weight"]
    decoders = {k.split(".")[2] for k in state if k.startswith(f"{prefix}clip_decoder.")}
    return ViTConfig(
        image_size=sizes["img"],
        patch_size=patch.shape[-1],
        tubelet=patch.shape[2],
        num_frames=sizes["frames"],
        dim=patch.shape[0],
        depth=len({k.split(".")[3] for k in state if k.startswith(f"{prefix}encoder.blocks.")}),
        heads=sizes.get("vit_heads", 0),
        mlp_ratio=state[f"{prefix}encoder.blocks.0.mlp.fc1.weight"].shape[0] / patch.shape[0],
        position_frames=max(0, sizes.get("ckpt_frames") or 0),
        align_dim=state[f"{prefix}clip_decoder.0.head.weight"].shape[0] if decoders else 0,
        align_layers=max(1, len(decoders)),
        pool="avg",
        pool_norm=f"{prefix}pool_norm.weight" in state,
    )


def _encoder_outputs(file: ParityFile) -> dict[str, Tensor]:
    state, inputs, wanted = file.part("state"), file.part("input"), file.part("output")
    encoder = VideoMamba(encoder_config(state, file.sizes)).eval()
    load_official(encoder, state, str(file.path))
    if "image" in inputs:
        return {"logits": encoder.classify(inputs["image"][:, None])}
    video = inputs["video"].transpose(1, 2).clone().requires_grad_()
    if "mask" in inputs:
        aligned = encoder(video, inputs["mask"]).aligned
        assert aligned is not None
        return {"student_tokens": F.normalize(aligned, dim=-1)}
    out = encoder(video)
    result = {"features": out.cls, "logits": encoder.head(out.cls)}
    if "labels" in inputs:
        result["loss"] = F.cross_entropy(result["logits"], inputs["labels"])
        _gradients(result["loss"], encoder, result, wanted)
        if video.grad is not None:
            result["input_grad"] = video.grad.transpose(1, 2)
    return result


def multimodal_network(file: ParityFile) -> VideoTextNetwork:
    """The video-text network of a file."""
    state, sizes = file.part("state"), file.sizes
    ours = to_ours(state)
    text = BertConfig(
        vocab_size=ours["text_encoder.embeddings.word_embeddings.weight"].shape[0],
        hidden=sizes["hid"],
        layers=sizes["layers"],
        fusion_layer=sizes["fusion"],
        heads=sizes["heads"],
        intermediate=sizes["inter"],
        max_positions=ours["text_encoder.embeddings.position_embeddings.weight"].shape[0],
        dropout=0.0,
        vision_width=sizes["dim"],
    )
    video = vit_config(state, sizes) if _is_umt(file) else encoder_config(state, sizes, "vision_encoder.")
    network = VideoTextNetwork(video, text, sizes["embed"]).eval()
    load_official(network, state, str(file.path))
    return network


def _multimodal_outputs(file: ParityFile) -> dict[str, Tensor]:
    """Of a whole video-text model; what a file does not hold (teacher, mask, language head) is not asked for."""
    inputs, wanted = file.part("input"), file.part("output")
    model = multimodal_network(file)
    seen = model.encode_pixels(inputs["video"])
    text = model.text_encoder.encode_text(inputs["input_ids"], inputs["attention_mask"])
    text_proj = model.text_proj(text[:, 0])
    unit = F.normalize(text_proj, dim=-1)
    similarity = torch.einsum("vfc,tc->vft", seen.frame_embeddings, unit).mean(1)
    batch, videos = text.shape[0], seen.tokens.shape[0]
    match = model.match(
        text.repeat(videos, 1, 1),
        inputs["attention_mask"].repeat(videos, 1),
        seen.tokens.repeat_interleave(batch, 0),
    )[:, 1].view(videos, batch)
    result = {
        "vision_embeds": seen.tokens,
        "pooled_vision_embeds": seen.pooled,
        "text_embeds": text,
        "pooled_text_embeds": text[:, 0],
        "vision_proj": model.vision_proj(seen.pooled),
        "text_proj": text_proj,
        "sim_v2t": similarity,
        "sim_t2v": similarity.T,
        "match_score_video_by_text": match,
    }
    if "image" in inputs:
        still = model.encode_pixels(inputs["image"])
        result |= {"image_embeds": still.tokens, "pooled_image_embeds": still.pooled}
    if "mask" in wanted:
        result |= _masked_outputs(file, model.vision_encoder, inputs["video"], wanted["mask"])
    losses = [result["loss_uta"]] if "loss_uta" in result else []
    if "idx" in inputs:
        result["loss_vtc"] = contrastive_loss(seen.frame_embeddings, unit, inputs["idx"], model.temp)
        losses.append(result["loss_vtc"])
    if "mlm_input_ids" in wanted:
        words = model.text_encoder.encode_text(wanted["mlm_input_ids"], inputs["attention_mask"])
        fused = model.text_encoder.fuse(words, inputs["attention_mask"], seen.tokens)
        result["mlm_logits"] = model.text_encoder.mlm_logits(fused)
        result["loss_mlm"] = language_loss(result["mlm_logits"], wanted["mlm_labels"])
    if losses:
        _gradients(sum(losses[1:], losses[0]), model, result, wanted)
    return result


def _masked_outputs(file: ParityFile, encoder: VideoEncoder, pixels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What an encoder makes of visible tokens, and beside it the teacher's, where the file has one."""
    out = encoder(pixels, _with_cls(mask, encoder))
    result = {"masked_vision_embeds": out.tokens, "masked_pooled": out.pooled}
    if out.aligned is not None:
        result["student_tokens"] = out.aligned
    teacher = _teacher(file)
    if teacher is not None:
        taught = teacher(pixels, encoder.config.align_layers)
        known = taught.layers if encoder.prefix else taught.layers[:, :, 1:]
        visible = known[:, ~mask].view(known.shape[0], mask.shape[0], -1, known.shape[-1])
        result |= {"teacher_tokens": known, "teacher_attention": taught.attention, "teacher_visible": visible}
        if out.aligned is not None:
            result["loss_uta"] = alignment_loss(out.aligned, visible)
    return result


def _umt_encoder_outputs(file: ParityFile) -> dict[str, Tensor]:
    """UMT's encoder by itself: videos and images, whole or masked, with or without its teacher."""
    state, inputs, wanted = file.part("state"), file.part("input"), file.part("output")
    encoder = ViT(vit_config(state, file.sizes)).eval()
    own = "vision_encoder."
    load_official(encoder, {k[len(own) :]: v for k, v in state.items() if k.startswith(own)}, str(file.path))
    result: dict[str, Tensor] = {}
    for name, word in (("video", "vision"), ("image", "image")):
        if name in inputs and f"{word}_embeds" in wanted:
            out = encoder(inputs[name], keep_temporal=True)
            result |= {f"{word}_embeds": out.tokens, f"pooled_{word}_embeds": out.pooled}
    if "mask" in wanted:
        mask = wanted["mask"]
        tokens = {name: x.shape[1] for name, x in inputs.items() if name in ("video", "image")}
        masked = next(n for n, t in tokens.items() if mask.shape[1] == encoder.grid(t)[0] * encoder.grid(t)[1] ** 2)
        result |= _masked_outputs(file, encoder, inputs[masked], mask)
    if "loss_uta" in result:
        _gradients(result["loss_uta"], encoder, result, wanted, own)
    return result


def _is_umt(file: ParityFile) -> bool:
    return file.sizes.get("vision") == "umt_vit"


def _teacher(file: ParityFile) -> ClipTeacher | None:
    prefix = "clip_teacher."
    clip = {k[len(prefix) :]: v for k, v in file.part("state").items() if k.startswith(prefix)}
    if not clip:
        return None
    sizes, umt = file.sizes, _is_umt(file)
    heads = sizes.get("clip_heads") or clip["proj"].shape[0] // 64
    side = sizes.get("clip_img", 0) if umt else 0
    return ClipTeacher.from_official(clip, heads, post_norm=umt, image_size=side)


def _with_cls(mask: Tensor, encoder: VideoEncoder) -> Tensor:
    """Our masks have a column for CLS, whether or not the encoder has one."""
    return mask if encoder.prefix else F.pad(mask, (1, 0), value=False)


def _gradients(
    loss: Tensor, module: nn.Module, result: dict[str, Tensor], wanted: dict[str, Tensor], prefix: str = ""
) -> None:
    """Add the gradients that the file has, by the official names of their parameters."""
    names = [name for name in wanted if name.startswith("grad/")]
    if not names:
        return
    loss.backward()
    parameters = dict(module.named_parameters())
    for name in names:
        own = next(iter(to_ours({name[5:]: wanted[name]})), "").removeprefix(prefix)
        gradient = parameters[own].grad
        result[name] = torch.zeros_like(parameters[own]) if gradient is None else gradient


_GIVEN = ("mask", "mlm_input_ids", "mlm_labels")  # drawn at random there: inputs to us


def compare(path: Path) -> dict[str, float]:
    """Relative error of every output and gradient of a file.

    Raises:
        VtrError: The file is no parity file, its state dict does not load, or it holds an output we don't know.
    """
    file = ParityFile(path)
    alone = _umt_encoder_outputs if _is_umt(file) else _encoder_outputs
    build: Callable[[ParityFile], dict[str, Tensor]] = _multimodal_outputs if "embed" in file.sizes else alone
    try:
        ours = build(file)
    except (KeyError, RuntimeError, StopIteration, ValueError) as error:
        raise VtrError(
            f"{path}: the model it describes cannot be built ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    errors = {}
    for name, theirs in file.part("output").items():
        if name in _GIVEN:
            continue
        if name not in ours:
            raise VtrError(f"{path}: unknown output {name!r}")
        errors[name] = relative_error(ours[name], theirs)
    return errors


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m vtr.encoders.parity`."""
    files = list(sys.argv[1:] if argv is None else argv)
    if not files or files[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if files else 2
    worst = 0.0
    for name in files:
        try:
            errors = compare(Path(name))
        except VtrError as error:
            print(f"vtr: {error}", file=sys.stderr)
            return 1
        print(name)
        for output, value in errors.items():
            print(f"  {output:<52}{value:.2e}{'' if value <= LIMIT else '   EXCEEDS 1e-4'}")
            worst = max(worst, value)
    print(f"largest relative error {worst:.2e} (limit {LIMIT:.0e})")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
