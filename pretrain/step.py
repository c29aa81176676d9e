"""One training step: a batch and a stage in, the weighted losses out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders.masking import make_mask
from vtr.pretrain import objectives as obj
from vtr.pretrain.recipes import Stage


class PretrainStep(nn.Module):
    """The model with its objectives. DDP wraps this module: one forward per step.

    Args:
        model: The student (`VideoTextModel`).
        stage: Which objectives, masks and weights.
        full_gather_gradient: True for the gradient of the global batch (recipe clean).
    """

    def __init__(self, model: Any, stage: Stage, full_gather_gradient: bool = True) -> None:
        super().__init__()
        self.model = model
        self.stage = stage
        self.full_gather_gradient = full_gather_gradient
        text_used = stage.vtc + stage.vtm + stage.mlm > 0
        # What a stage does not train is frozen, so that no optimiser state or all-reduce is spent on it.
        for name, parameter in model.named_parameters():
            used = text_used or name.startswith("vision_encoder.")
            if stage.uta == 0 and ".clip_decoder." in name:
                used = False
            if not text_used and ("pool_norm" in name):
                used = False
            parameter.requires_grad_(used)

    def forward(
        self,
        frames: Tensor,
        captions: list[str],
        ids: Tensor,
        meta: list[dict],
        teacher: Any,
        seed: int,
        matching: bool,
    ) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            frames: uint8 (B, T, 3, H, W); T = 1 for images.
            captions: B texts.
            ids: (B,) 64-bit sample ids.
            meta: B dicts; `paraphrase` and `sibling_caption` are used where the recipe asks for them.
            teacher: Frozen CLIP teacher, or None in a stage without alignment.
            seed: Seeds the masks and draws of this step and rank.
            matching: Whether the matching loss is on at this step.

        Returns:
            Unweighted losses by name, and `loss`, their weighted sum.
        """
        stage, model = self.stage, self.model
        generator = torch.Generator().manual_seed(seed)
        pixels = model.normalise(frames)
        mask, target = self._mask_and_target(pixels, teacher, generator)
        temporal = stage.keep_temporal and mask is None
        losses: dict[str, Tensor] = {}
        video = model.encode_video(pixels, mask=mask, keep_temporal=temporal)
        if target is not None:
            losses["uta"] = obj.alignment_loss(video.aligned, target.expand_as(video.aligned))
        if stage.vtc + stage.vtm + stage.mlm > 0:
            self._text_losses(losses, video, captions, ids, meta, generator, matching)
        losses["loss"] = sum(getattr(stage, name) * value for name, value in losses.items())
        return losses

    def _mask_and_target(
        self, pixels: Tensor, teacher: Any, generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None]:
        stage = self.stage
        if teacher is None or stage.uta == 0:
            return None, None
        batch, frames, _, height, width = pixels.shape
        patch = self.model.config.video.patch_size
        with torch.no_grad():
            out = teacher(pixels)
        if stage.mask == "none":
            return None, out.tokens
        ratio = stage.video_mask_ratio if frames > 1 else stage.image_mask_ratio
        mask = make_mask(
            stage.mask, batch, frames, height // patch, width // patch, ratio, generator, attention=out.attention
        ).to(pixels.device)
        tokens = out.tokens
        visible = tokens[~mask].view(batch, -1, tokens.shape[-1])
        return mask, visible[None]

    def _text_losses(
        self,
        losses: dict[str, Tensor],
        video: Any,
        captions: list[str],
        ids: Tensor,
        meta: list[dict],
        generator: torch.Generator,
        matching: bool,
    ) -> None:
        stage, model = self.stage, self.model
        with torch.no_grad():
            model.temp.clamp_(0.001, 0.5)
        batch = len(captions)
        paraphrases = [m.get("paraphrase") or c for m, c in zip(meta, captions)]
        siblings = [m.get("sibling_caption") or "" for m in meta]
        has_sibling = torch.tensor([bool(s) for s in siblings], device=ids.device)
        texts = list(captions)
        if stage.text > 0:
            texts += paraphrases
        if stage.text > 0 or stage.sibling_negatives:
            texts += siblings
        encoded = model.encode_text(texts)
        caption = encoded.embedding[:batch]
        sibling = encoded.embedding[-batch:] if stage.text > 0 or stage.sibling_negatives else None
        losses["vtc"] = obj.contrastive_loss(
            video.frame_embeddings,
            caption,
            ids,
            model.temp,
            siblings=sibling if stage.sibling_negatives else None,
            sibling_mask=has_sibling,
            full_gather_gradient=self.full_gather_gradient,
        )
        if stage.text > 0 and sibling is not None:
            losses["text"] = obj.text_pair_loss(
                caption, encoded.embedding[batch : 2 * batch], sibling, has_sibling, 0.1
            )
        states, mask = encoded.tokens[:batch], encoded.mask[:batch]
        if stage.vtm > 0 and matching:
            similarity = caption @ video.embedding.to(caption.dtype).T / model.temp
            wrong_video = obj.hard_negatives(similarity, ids, generator)
            wrong_text = obj.hard_negatives(similarity.T, ids, generator)
            tokens = video.tokens
            logits = model.match(
                torch.cat([states, states, states[wrong_text]]),
                torch.cat([mask, mask, mask[wrong_text]]),
                torch.cat([tokens, tokens[wrong_video], tokens]),
            )
            losses["vtm"] = obj.matching_loss(logits, batch)
        if stage.mlm > 0:
            tokenizer = model.tokenizer
            masked, labels = obj.mask_tokens(
                encoded.ids[:batch],
                mask,
                probability=stage.mlm_probability,
                cls_id=tokenizer.cls_id,
                mask_id=tokenizer.mask_id,
                vocab_size=tokenizer.vocab_size,
                generator=generator,
            )
            text = model.text_encoder
            fused = text.fuse(text.encode_text(masked, mask), mask, video.tokens)
            losses["mlm"] = obj.language_loss(text.mlm_logits(fused), labels)


def warm_up_text(
    model: Any, triples: list[tuple[str, str, str]], *, batch_size: int, lr: float, temperature: float
) -> float:
    """Teach a text encoder from scratch that captions which differ in direction alone differ (DEMO_RECIPE.md part B).

    Args:
        model: Its text layers and text projection are trained.
        triples: (caption, paraphrase, direction-swapped caption or ""); used once, in order.

    Returns:
        The mean cosine between caption and swapped caption in the last batch; below 0.8 direction can be learned.
    """
    import sys

    from tqdm import tqdm

    parameters = [p for m in (model.text_encoder, model.text_proj) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    cosine = 1.0
    starts = range(0, len(triples) - batch_size + 1, batch_size)
    for start in tqdm(starts, desc="text warm-up", file=sys.stderr, unit="step"):
        part = triples[start : start + batch_size]
        texts = [t[i] for i in range(3) for t in part]
        a, p, n = model.encode_text(texts).embedding.chunk(3)
        has = torch.tensor([bool(t[2]) for t in part], device=a.device)
        loss = obj.text_pair_loss(a, p, n, has, temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if bool(has.any()):
            cosine = F.cosine_similarity(a[has], n[has], dim=-1).mean().item()
    return cosine
