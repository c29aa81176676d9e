"""The training step: the same losses and gradients in one piece, in many, and on several ranks."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from vtr.data.text import Tokenizer
from vtr.encoders import draws
from vtr.encoders.bert import BertConfig
from vtr.encoders.clip_teacher import ClipTeacher
from vtr.encoders.masking import KINDS
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import VtrError
from vtr.models.video_text import ModelConfig, VideoTextModel
from vtr.pretrain import teacher as teacher_module
from vtr.pretrain.recipes import Stage
from vtr.pretrain.step import PretrainStep
from vtr.pretrain.teacher import small_clip

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "triangle",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "and",
    "grows",
    "shrinks",
]


def build(align_layers: int = 1, dropout: float = 0.1, depth: int = 3) -> tuple[VideoTextModel, ClipTeacher]:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([" ".join(WORDS)], 80)
    video = VideoMambaConfig(
        image_size=32, patch_size=16, num_frames=4, dim=32, depth=depth, pool_norm=True, align_dim=64,
        align_layers=align_layers,
    )  # fmt: skip
    text = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden=32, layers=3, fusion_layer=2, heads=2, intermediate=64,
        max_positions=32, dropout=dropout, vision_width=32,
    )  # fmt: skip
    model = VideoTextModel(ModelConfig(video=video, text=text, embed_dim=16), tokenizer)
    clip = small_clip(32, 16, tokenizer.vocab_size, 16, tokenizer.pad_id)
    return model.train(), ClipTeacher.from_open_clip(clip)


def batch(count: int, frames: int = 4) -> tuple[torch.Tensor, list[str], torch.Tensor, list[dict]]:
    g = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, frames, 3, 32, 32), generator=g, dtype=torch.uint8)
    texts = [
        " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (3 + k % 5,), generator=g)) for k in range(count)
    ]
    ids = torch.randint(2**62, (count,), generator=g)
    ids[count // 2] = ids[0]  # one sample twice: a second positive
    meta = [{"paraphrase": t[::-1], "sibling_caption": "a circle" if k % 3 else ""} for k, t in enumerate(texts)]
    return pixels, texts, ids, meta


STAGE = Stage(
    mask="attention", uta=0.7, vtc=1.0, vtm=1.0, mlm=0.5, text=0.3, sibling_negatives=True, drop_path=0.3, match_group=16,
)  # fmt: skip


TURNED = replace(STAGE, direction_negatives=True, match_loss="both")
SEVERAL = replace(STAGE, match_group=0, match_negatives=3, match_loss="both", mlm_share=0.5)


def losses_and_gradients(
    stage: Stage, count: int, micro: int, rank: int = 0, world: int = 1, checkpointing: bool = False, frames: int = 4
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model, teacher = build()
    model.vision_encoder.set_drop_path(stage.drop_path)
    model.vision_encoder.checkpointing = model.text_encoder.checkpointing = checkpointing
    step = PretrainStep(model, stage, seed=3, micro_batch=micro)
    pixels, texts, ids, meta = batch(count, frames)
    if stage.direction_negatives:  # of the first samples alone, so that pieces and ranks are without any
        texts = [f"{t} and moves left" if k in (1, 2, 9) else t for k, t in enumerate(texts)]
    own = slice(rank * count // world, (rank + 1) * count // world)
    found = step(pixels[own], texts[own], ids[own], meta[own], teacher if stage.uta else None, 7)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.item() for k, v in found.items()}, gradients


def assert_same(one: Any, other: Any) -> None:
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        assert other[0][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert one[1].keys() == other[1].keys()
    scale = max(g.abs().max().item() for g in one[1].values())
    for name, gradient in one[1].items():
        torch.testing.assert_close(
            other[1][name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def whole() -> Any:
    return losses_and_gradients(STAGE, 64, 0)


def test_eight_pieces_of_eight_are_the_batch_of_64(whole: Any) -> None:
    assert set(whole[0]) == {"uta", "vtc", "text", "vtm", "mlm", "loss"}
    assert_same(whole, losses_and_gradients(STAGE, 64, 8))


def test_several_wrong_partners_and_a_part_of_the_words_in_pieces_are_those_of_the_batch() -> None:
    assert_same(losses_and_gradients(SEVERAL, 64, 0), losses_and_gradients(SEVERAL, 64, 8))


def test_reversed_clips_and_turned_captions_in_pieces_are_those_of_the_batch(whole: Any) -> None:
    turned = losses_and_gradients(TURNED, 64, 0)
    assert turned[0]["vtc"] > whole[0]["vtc"]
    assert_same(turned, losses_and_gradients(TURNED, 64, 8))


def test_a_reversed_clip_shows_the_same_patches_backwards_and_images_have_none() -> None:
    model, _ = build(dropout=0.0)
    step = PretrainStep(model.eval(), Stage(vtc=1.0, direction_negatives=True))
    pixels, _, ids, meta = batch(4)
    seen: list[torch.Tensor] = []
    model.encode_video = lambda frames, **more: (
        seen.append(frames) or VideoTextModel.encode_video(model, frames, **more)
    )  # type: ignore[method-assign]
    texts = ["a circle moves left", "a circle", "it grows", "a square"]
    step(pixels, texts, ids, meta, None, 0)
    assert step.turned == 2
    torch.testing.assert_close(seen[1], seen[0][[0, 2]].flip(1))
    step(pixels[:, :1], texts, ids, meta, None, 0)
    assert (step.turned, len(seen)) == (0, 3)


def test_text_pairs_of_a_corpus_without_siblings_are_of_turned_captions_amid_invented_words() -> None:
    model, _ = build(dropout=0.0)
    texts, meta = ["a circle moves left", "a circle", "it grows", "a square"], [{}] * 4
    meta[2] = {"sibling_caption": "it sings"}
    step = PretrainStep(model, Stage(text=1.0, direction_negatives=True))
    found = step._texts(texts, meta, True, torch.arange(4))
    assert found.kinds == ("caption", "paraphrase", "sibling")
    assert found.has_sibling.tolist() == [True, False, True, False]
    assert [bool((found.ids[0, row] == found.ids[1, row]).all()) for row in (1, 2, 3)] == [True] * 3
    assert (found.ids[1, 0] != found.ids[2, 0]).sum() == 1
    assert not step._texts(texts, [{}] * 4, False, torch.arange(4)).has_sibling.any()  # images
    both = PretrainStep(model, Stage(text=1.0, vtc=1.0, sibling_negatives=True, direction_negatives=True))
    assert both._texts(texts, meta, True, torch.arange(4)).has_sibling.tolist() == [False, False, True, False]


def test_a_part_of_the_batch_has_its_words_masked() -> None:
    none = losses_and_gradients(replace(STAGE, mlm_share=0.0), 64, 8)[0]["mlm"]
    part = losses_and_gradients(replace(STAGE, mlm_share=0.5), 64, 8)[0]["mlm"]
    whole = losses_and_gradients(STAGE, 64, 8)[0]["mlm"]
    assert none == 0 < part != whole


def test_frozen_encoders_get_no_gradient_and_make_no_noise() -> None:
    stage = replace(SEVERAL, uta=0.0, vtc=0.0, mlm=0.0, text=0.0, frozen=True)
    losses, gradients = losses_and_gradients(stage, 64, 8)
    assert losses["vtm"] > 0
    assert all(n.startswith(("text_encoder.encoder.layer.2.", "itm_head.")) for n in gradients)
    model, _ = build()
    step = PretrainStep(model.train(), stage)
    pixels, texts, ids, meta = batch(8)
    step(pixels, texts, ids, meta, None, 0)
    noisy = {n for n, m in model.named_modules() if m.training}
    assert noisy == {
        n for n, _ in model.named_modules() if f"{n}.".startswith(("text_encoder.encoder.layer.2.", "itm_head."))
    }


def test_the_decoder_reads_pooled_vectors_beside_the_patches_where_its_memory_has_them() -> None:
    model, _ = build()
    pixels = batch(3)[0]
    patches = model.encode_video(pixels)
    config = replace(model.config, memory="patches+pooled")
    wider = VideoTextModel(config, model.tokenizer)
    wider.load_state_dict(model.state_dict())
    both = wider.eval().encode_video(pixels)
    assert both.tokens.shape[1:] == wider.visual_shape(4) == (4 * 4 + 4, 32)
    assert patches.tokens.shape[1:] == model.visual_shape(4) == (16, 32)
    torch.testing.assert_close(both.tokens[:, 16:], both.pooled)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "memory" not in model.config.to_dict()  # fingerprints of earlier models stay what they are


def test_recomputed_activations_change_nothing(whole: Any) -> None:
    assert_same(whole, losses_and_gradients(STAGE, 64, 0, checkpointing=True))


def test_pieces_of_unequal_size_and_images_are_the_same_batch() -> None:
    stage = Stage(vtc=1.0, vtm=1.0, mlm=1.0, drop_path=0.2, keep_temporal=True)
    assert_same(losses_and_gradients(stage, 10, 0, frames=1), losses_and_gradients(stage, 10, 4, frames=1))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def one_rank(rank: int, world: int, port: int, folder: str, stages: list[Stage]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for number, stage in enumerate(stages):
        torch.save(losses_and_gradients(stage, 64, 8, rank, world), f"{folder}/{number}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_four_pieces_of_eight_are_the_batch_of_64(whole: Any, tmp_path: Path) -> None:
    wide = replace(STAGE, match_group=0)  # wrong partners come from the other rank too
    head = replace(SEVERAL, uta=0.0, vtc=0.0, mlm=0.0, text=0.0, frozen=True)
    stages = [STAGE, wide, SEVERAL, head, TURNED]
    mp.spawn(one_rank, (2, free_port(), str(tmp_path), stages), nprocs=2)
    for number, expected in enumerate((whole, *(losses_and_gradients(s, 64, 0) for s in stages[1:]))):
        for rank in range(2):
            assert_same(expected, torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True))


@pytest.mark.parametrize(
    ("kind", "layers", "depth"), [*((k, n, 3) for k in (*KINDS, "none") for n in (1, 2)), ("attention", 6, 7)]
)
def test_the_masked_stage_aligns_with_every_mask_and_number_of_layers(
    kind: str, layers: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(teacher_module._SMALL, "layers", max(3, layers))
    model, teacher = build(align_layers=layers, depth=depth)
    step = PretrainStep(model, Stage(uta=1.0, mask=kind, video_mask_ratio=0.5), seed=1)
    pixels, texts, ids, meta = batch(8)
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    history = []
    for _ in range(4):
        optimizer.zero_grad()
        losses = step(pixels, texts, ids, meta, teacher, 0)
        optimizer.step()
        history.append(losses["uta"].item())
    assert history[-1] < history[0]
    assert model.vision_encoder.layers[-1].mixer.out_proj.weight.grad is not None
    assert model.text_proj.weight.grad is None


def test_a_batch_of_one_sample_has_no_wrong_partner_and_says_so() -> None:
    model, _ = build()
    step = PretrainStep(model, Stage(vtm=1.0))
    pixels, texts, ids, meta = batch(2)
    with pytest.raises(VtrError, match="two different samples"):
        step(pixels, texts, torch.zeros_like(ids), meta, None, 0)


def test_the_official_gather_weakens_the_encoders_gradient_but_not_the_temperatures() -> None:
    gradients = []
    for ranks in (1, 16):
        model, _ = build(dropout=0.0)
        step = PretrainStep(model, Stage(vtc=1.0), gather_ranks=ranks)
        pixels, texts, ids, meta = batch(8)
        step(pixels, texts, ids, meta, None, 0)
        gradients.append((model.vision_proj.weight.grad, model.temp.grad))
    torch.testing.assert_close(gradients[0][0], 16 * gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_row_noise_follows_the_sample_not_its_place() -> None:
    seeds = torch.arange(6) * 12345
    noise = draws.row_uniform(seeds, (6, 1000))
    back = draws.row_uniform(seeds.flip(0), (6, 1000)).flip(0)
    assert torch.equal(noise, back)
    assert not torch.equal(noise, draws.row_uniform(seeds, (6, 1000), 1))
    assert abs(noise.mean().item() - 0.5) < 0.02
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.15
