"""The small reference models that the built-in tasks use; each takes what the data's `Spec` says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn


@final
class Linear(nn.Module):
    """One affine map of the flattened input: linear or, with cross-entropy, logistic regression."""

    def __init__(self, input_shape: tuple[int, ...], output_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...), outputs (B, output_size)."""
        outputs: Tensor = self.layer(inputs.flatten(1))
        return outputs


@final
class MLP(nn.Module):
    """``layers`` hidden layers of ``hidden`` units with ReLU on the flattened input."""

    def __init__(self, input_shape: tuple[int, ...], output_size: int, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        sizes = [math.prod(input_shape)] + [hidden] * layers
        stack: list[nn.Module] = []
        for wide_in, wide_out in pairwise(sizes):
            stack += [nn.Linear(wide_in, wide_out), nn.ReLU()]
        self.layers = nn.Sequential(*stack, nn.Linear(sizes[-1], output_size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...), outputs (B, output_size)."""
        outputs: Tensor = self.layers(inputs.flatten(1))
        return outputs


@final
class CNN(nn.Module):
    """Two 3×3 convolutions, each followed by ReLU and 2×2 pooling, then two affine layers."""

    def __init__(self, input_shape: tuple[int, ...], output_size: int, channels: int = 32, hidden: int = 128) -> None:
        super().__init__()
        depth, height, width = input_shape
        self.features = nn.Sequential(
            nn.Conv2d(depth, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * channels * (height // 4) * (width // 4), hidden), nn.ReLU(), nn.Linear(hidden, output_size)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, C, H, W), outputs (B, output_size)."""
        outputs: Tensor = self.head(self.features(inputs).flatten(1))
        return outputs


@final
class GPT(nn.Module):
    """A causal transformer: every position sees itself and what came before. Source: Radford et al., GPT-2, 2019."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_size: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        (context,) = input_shape
        self.token = nn.Embedding(output_size, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, output_size)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, T) int64, T at most the context; outputs (B, T, output_size)."""
        length = inputs.shape[1]
        mask = self.get_buffer("mask")[:length, :length]
        hidden = self.blocks(self.token(inputs) + self.position[:length], mask=mask, is_causal=True)
        outputs: Tensor = self.head(hidden)
        return outputs
