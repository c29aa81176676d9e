"""The training objectives against their definitions, written out plainly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vtr.encoders.distill import alignment_loss
from vtr.encoders.draws import pair_uniform
from vtr.encoders.losses import Reversal, contrastive_loss, language_loss
from vtr.pretrain.objectives import objective_kinds, objectives_of
from vtr.pretrain.objectives.base import EmbeddingObjective, FusionObjective, PieceObjective
from vtr.pretrain.objectives.language import mask_tokens
from vtr.pretrain.objectives.matching import hard_negatives, matching_loss, ranking_loss
from vtr.pretrain.objectives.text_pair import text_pair_loss
from vtr.pretrain.recipes import Stage


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_contrastive_loss_of_distinct_ids_is_the_symmetric_cross_entropy() -> None:
    video, text = unit(5, 1, 8), unit(5, 8, seed=1)
    loss = contrastive_loss(video.float(), text.float(), torch.arange(5), torch.tensor(0.1))
    logits = (video[:, 0] @ text.T / 0.1).float()
    labels = torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_contrastive_loss_averages_the_cosine_over_frames() -> None:
    video, text = unit(4, 3, 8), unit(4, 8, seed=1)
    loss = contrastive_loss(video.float(), text.float(), torch.arange(4), torch.tensor(0.5))
    cosine = torch.einsum("vfc,tc->vft", video, text).mean(1).float() / 0.5
    labels = torch.arange(4)
    torch.testing.assert_close(
        loss, (F.cross_entropy(cosine, labels) + F.cross_entropy(cosine.T, labels)) / 2, rtol=1e-5, atol=1e-6
    )


def test_equal_ids_share_the_target() -> None:
    video, text = unit(3, 1, 8).float(), unit(3, 8, seed=1).float()
    ids = torch.tensor([7, 9, 7])
    logits = video[:, 0] @ text.T
    target = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    rows = -(target * logits.log_softmax(1)).sum(1).mean()
    columns = -(target * logits.T.log_softmax(1)).sum(1).mean()
    loss = contrastive_loss(video, text, ids, torch.tensor(1.0))
    torch.testing.assert_close(loss, (rows + columns) / 2)


def test_a_sibling_caption_is_one_more_negative_and_absent_ones_change_nothing() -> None:
    video, text, sibling = unit(4, 1, 8).float(), unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    ids, temperature = torch.arange(4), torch.tensor(0.1)
    plain = contrastive_loss(video, text, ids, temperature)
    none = contrastive_loss(
        video, text, ids, temperature, siblings=sibling, sibling_mask=torch.zeros(4, dtype=torch.bool)
    )
    some = contrastive_loss(
        video, text, ids, temperature, siblings=sibling, sibling_mask=torch.ones(4, dtype=torch.bool)
    )
    torch.testing.assert_close(plain, none)
    assert some > plain


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_reversal_is_one_more_wrong_partner_of_its_own_caption_and_clip_alone() -> None:
    g = torch.Generator().manual_seed(1)
    video, text, back, turned = (
        torch.nn.functional.normalize(torch.randn(4, 8, generator=g), dim=-1) for _ in range(4)
    )
    mask = torch.tensor([True, False, False, True])
    loss = contrastive_loss(
        video[:, None], text, torch.arange(4), torch.tensor(0.5), reversal=Reversal(back[:, None], turned, mask)
    )
    expected = []
    for i in range(4):
        for own, others, extra in ((video[i], text, turned[i]), (text[i], video, back[i])):
            scores = torch.cat([others @ own, (extra @ own)[None][: int(mask[i])]]) / 0.5
            expected.append(-scores.log_softmax(0)[i])
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_hard_negatives_are_never_a_right_answer_even_when_the_softmax_underflows() -> None:
    similarity = torch.full((6, 6), -1e4)
    similarity.fill_diagonal_(1e4)
    ids = torch.tensor([0, 1, 2, 0, 4, 5])
    allowed = ids[:, None] != ids[None]
    for seed in range(20):
        drawn = hard_negatives(similarity, allowed, uniform(6, 6, seed=seed), 3)
        assert (ids[drawn] != ids[:, None]).all()
        assert all(len(set(row)) == 3 for row in drawn.tolist())


def test_hard_negatives_are_drawn_by_the_softmax_of_the_wrong_ones_however_far_ahead_the_right_one_is() -> None:
    similarity = torch.tensor([[90.0, 2.0, 1.0, 0.0]])
    allowed = torch.tensor([[False, True, True, True]])
    drawn = hard_negatives(similarity.expand(40_000, 4), allowed.expand(40_000, 4), uniform(40_000, 4))[:, 0]
    share = torch.bincount(drawn, minlength=4) / 40_000
    expected = torch.tensor([0.0, *torch.tensor([2.0, 1.0, 0.0]).softmax(0)])
    torch.testing.assert_close(share, expected, atol=1e-2, rtol=0)


def test_the_second_partner_is_drawn_by_the_softmax_of_those_that_are_left() -> None:
    similarity, allowed = torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    drawn = hard_negatives(similarity.expand(40_000, 3), allowed.expand(40_000, 3), uniform(40_000, 3), 2)
    after_first = drawn[drawn[:, 0] == 0, 1]
    share = torch.bincount(after_first, minlength=3) / len(after_first)
    expected = torch.tensor([0.0, *torch.tensor([1.0, 0.0]).softmax(0)])
    torch.testing.assert_close(share, expected, atol=1e-2, rtol=0)


def test_a_row_with_too_few_wrong_partners_repeats_one() -> None:
    allowed = torch.tensor([[False, True, False]])
    assert hard_negatives(torch.zeros(1, 3), allowed, torch.full((1, 3), 0.5), 5).tolist() == [[1] * 5]


def test_hard_negatives_of_a_batch_with_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="two different samples"):
        hard_negatives(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 2))


def test_a_draw_depends_on_the_two_samples_and_not_on_where_they_stand() -> None:
    seeds, ids = torch.arange(5) * 7, torch.arange(6) * 1000
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(pair_uniform(seeds, ids)[:, order], pair_uniform(seeds, ids[order]))
    assert len(pair_uniform(seeds, ids).unique()) == 30


def test_matching_of_pairs_weighs_wrong_ones_twice_whatever_their_number() -> None:
    logits = torch.randn(2 + 2 * 2 * 3, 2, generator=torch.Generator().manual_seed(0))
    wrong = F.cross_entropy(logits[2:], torch.zeros(12, dtype=torch.long))
    right = F.cross_entropy(logits[:2], torch.ones(2, dtype=torch.long))
    torch.testing.assert_close(matching_loss(logits, 2), (right + 2 * wrong) / 3)
    few = logits[:6]  # one wrong video and one wrong text each: the plain cross-entropy
    torch.testing.assert_close(matching_loss(few, 2), F.cross_entropy(few, torch.tensor([1, 1, 0, 0, 0, 0])))


def test_matching_by_choices_is_the_mean_of_both_directions_cross_entropies() -> None:
    logits = torch.randn(2 * (1 + 2 * 3), 2, generator=torch.Generator().manual_seed(0))
    odds = logits[:, 1] - logits[:, 0]
    expected = 0.0
    for i in range(2):
        for start in (2, 8):
            own = odds[start + 3 * i : start + 3 * i + 3]
            expected += float(torch.logsumexp(torch.cat([odds[i : i + 1], own]), 0) - odds[i]) / 2
    assert float(ranking_loss(logits, 2, 3)) == pytest.approx(expected, rel=1e-5)


def test_masking_leaves_padding_and_cls_alone_and_labels_only_what_it_chose() -> None:
    ids = torch.randint(10, 50, (64, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 1
    mask = torch.ones_like(ids)
    mask[:, 15:] = 0
    masked, labels = mask_tokens(ids, mask, probability=0.5, cls_id=1, mask_id=3, vocab_size=50, seeds=torch.arange(64))
    chosen = labels != -100
    assert not chosen[:, 0].any()
    assert not chosen[:, 15:].any()
    assert (labels[chosen] == ids[chosen]).all()
    assert (masked[~chosen] == ids[~chosen]).all()
    share = chosen[:, 1:15].float().mean().item()
    assert 0.4 < share < 0.6
    as_mask = (masked[chosen] == 3).float().mean().item()
    assert 0.7 < as_mask < 0.9


def test_masking_of_a_row_does_not_depend_on_its_padding_or_its_neighbours() -> None:
    ids = torch.randint(10, 50, (8, 20), generator=torch.Generator().manual_seed(0))
    more: dict = {"probability": 0.5, "cls_id": 1, "mask_id": 3, "vocab_size": 50}
    whole, _ = mask_tokens(ids, torch.ones_like(ids), seeds=torch.arange(8), **more)
    part, _ = mask_tokens(ids[3:5, :12], torch.ones(2, 12), seeds=torch.arange(3, 5), **more)
    assert torch.equal(part, whole[3:5, :12])


def test_language_loss_without_chosen_tokens_is_zero_not_nan() -> None:
    loss = language_loss(torch.randn(2, 3, 5), torch.full((2, 3), -100))
    assert loss.item() == 0


def test_alignment_loss_is_zero_for_equal_directions_and_four_for_opposite_ones() -> None:
    x = unit(1, 2, 3, 4)
    assert alignment_loss(x, 5 * x).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(x, -x).item() == pytest.approx(4, abs=1e-6)


def test_text_pair_loss_ignores_absent_swapped_captions() -> None:
    a, p, n = unit(4, 8).float(), unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    absent = text_pair_loss(a, p, n, torch.zeros(4, dtype=torch.bool), 0.1)
    torch.testing.assert_close(absent, F.cross_entropy(a @ p.T / 0.1, torch.arange(4)), rtol=1e-5, atol=1e-5)


def test_every_objective_that_a_stage_lists_is_there_and_a_stage_has_those_it_gives_a_weight() -> None:
    kinds = objective_kinds()
    assert list(kinds) == ["uta", "vtc", "vtm", "mlm", "text"]
    for kind in kinds.values():
        assert issubclass(kind, (EmbeddingObjective, FusionObjective, PieceObjective))
    assert list(objectives_of(Stage(vtc=1.0, mlm=0.5))) == ["vtc", "mlm"]
    assert {n for n, kind in kinds.items() if kind.needs_teacher} == {"uta"}
