"""BERT split in two: text encoder (first layers) and cross-modal decoder (last layers, cross-attention to video).

Parameter names are Hugging Face's. B batch, L text tokens, V visual tokens, H width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtr.encoders import draws
from vtr.kernels.linear import Linear, linear


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of the text side; the defaults are bert-base-uncased with the paper's split."""

    vocab_size: int = 30522
    hidden: int = 768
    layers: int = 12
    fusion_layer: int = 9  # layers from here on read the video
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    dropout: float = 0.1
    vision_width: int = 576


KeysValues = tuple[Tensor, Tensor]


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.query = Linear(config.hidden, config.hidden)
        self.key = Linear(width, config.hidden)
        self.value = Linear(width, config.hidden)
        self.heads, self.dropout = config.heads, config.dropout
        self.salt = 0

    def keys_values(self, memory: Tensor) -> KeysValues:
        """Keys and values (B, heads, V, head width) of what is attended to."""
        k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.key(memory), self.value(memory)))
        return k, v

    def forward(self, x: Tensor, memory: Tensor | KeysValues, bias: Tensor | None) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.keys_values(memory) if isinstance(memory, Tensor) else memory
        p = self.dropout if self.training else 0.0
        if p > 0 and draws.active() is not None:  # the fused kernel cannot tie its dropout to rows
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = (scores if bias is None else scores + bias).float().softmax(-1)
            return (draws.dropout(weights, p, self.salt).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        batch, shared = q.shape[0], k.shape[0] == 1 and bias is None
        if shared and batch > 1:
            # One video and many texts: their tokens are so many queries of one sequence, nothing is copied.
            q = q.transpose(0, 1).flatten(1, 2)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p)
        if shared and batch > 1:
            out = out[0].unflatten(1, (batch, -1)).transpose(0, 1)
        return out.transpose(1, 2).flatten(2)


class _Output(nn.Module):
    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = draws.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class _Attention(nn.Module):
    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.self = _SelfAttention(config, width)
        self.output = _Output(config, config.hidden)

    def forward(self, x: Tensor, memory: Tensor | KeysValues, bias: Tensor | None) -> Tensor:
        return self.output(self.self(x, memory, bias), x)


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden, config.intermediate)


class BertLayer(nn.Module):
    """Self-attention, cross-attention in fusion layers, feed-forward; each with a post-norm."""

    def __init__(self, config: BertConfig, fusion: bool) -> None:
        super().__init__()
        self.attention = _Attention(config, config.hidden)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config, config.intermediate)
        if fusion:
            self.crossattention = _Attention(config, config.vision_width)

    def forward(
        self, x: Tensor, bias: Tensor, visual: Tensor | KeysValues | None = None, first_only: bool = False
    ) -> Tensor:
        x = self.attention(x[:, :1] if first_only else x, x, bias)
        if visual is not None:
            x = self.crossattention(x, visual, None)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(2, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = draws.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        x = (
            self.word_embeddings(ids)
            + self.position_embeddings.weight[: ids.shape[1]]
            + self.token_type_embeddings.weight[0]
        )
        return self.dropout(self.LayerNorm(x))


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer: Any = nn.ModuleList(BertLayer(config, i >= config.fusion_layer) for i in range(config.layers))


class _Transform(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=1e-12)


class _Predictions(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class _Head(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)


class Bert(nn.Module):
    """Text encoder and cross-modal decoder in one stack, with the masked-language head tied to the word embeddings."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # trade compute for memory in training
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.cls = _Head(config)
        draws.number_layers(self)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    @staticmethod
    def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
        return ((1.0 - mask[:, None, None].to(dtype)) * -10000.0).to(dtype)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token states (B, L, H) after the text layers; ids and mask (B, L)."""
        x = self.embeddings(ids)
        bias = self._bias(mask, x.dtype)
        for layer in self.encoder.layer[: self.config.fusion_layer]:
            x = self._run(layer, x, bias)
        return x

    def _run(self, layer: nn.Module, *args: Any) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return draws.checkpoint(layer, *args)
        return layer(*args)

    def visual_memory(self, visual: Tensor) -> list[KeysValues]:
        """What each fusion layer reads of visual tokens (B, V, vision_width), to be used for many texts."""
        return [layer.crossattention.self.keys_values(visual) for layer in self._fusion_layers]

    @property
    def _fusion_layers(self) -> Any:
        return self.encoder.layer[self.config.fusion_layer :]

    def fuse(self, states: Tensor, mask: Tensor, visual: Tensor | list[KeysValues], first_only: bool = False) -> Tensor:
        """Cross-modal states (B, L, H) of text states and their mask, reading a video.

        Args:
            states: (B, L, H).
            mask: (B, L).
            visual: Visual tokens (B, V, vision_width), or what `visual_memory` made of them; of B = 1 for all texts.
            first_only: Compute only what token 0 needs: (B, 1, H).
        """
        bias = self._bias(mask, states.dtype)
        for i, layer in enumerate(self._fusion_layers):
            last = i == len(self._fusion_layers) - 1
            memory = visual if isinstance(visual, Tensor) else visual[i]
            states = self._run(layer, states, bias, memory, first_only and last)
        return states

    def mlm_logits(self, states: Tensor) -> Tensor:
        """(B, L, vocab) logits of the masked-language head."""
        head = self.cls.predictions
        x = head.transform.LayerNorm(F.gelu(head.transform.dense(states)))
        return linear(x, self.embeddings.word_embeddings.weight, head.bias)
