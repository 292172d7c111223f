"""Sums and weights give torch's own mean, whatever it divides by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distloop.errors import ConfigError
from distloop.tasks.losses import summed

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
PROBABILITIES = LOGITS.flip(0).softmax(1)
MAPS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), LOGITS, LABELS),
        (nn.CrossEntropyLoss(ignore_index=2), LOGITS, LABELS),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])), LOGITS, LABELS),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), ignore_index=0), LOGITS, LABELS),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, LABELS),
        (nn.CrossEntropyLoss(), LOGITS, PROBABILITIES),
        (nn.CrossEntropyLoss(), MAPS, MAPS.flip(0).softmax(1)),
        (nn.NLLLoss(weight=torch.tensor([1.0, 2.0, 5.0])), LOGITS.log_softmax(1), LABELS),
        (nn.MSELoss(), LOGITS, PROBABILITIES),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])), LOGITS, PROBABILITIES),
        (nn.HuberLoss(), LOGITS, PROBABILITIES),
        (nn.MultiLabelMarginLoss(), LOGITS, torch.tensor([[0, -1, -1]] * 6)),
        (nn.functional.cross_entropy, LOGITS, LABELS),
    ],
)
def test_sum_over_weight_is_the_mean_of_torch(loss, outputs, targets):
    found = summed(loss)(outputs, targets)
    torch.testing.assert_close(found.total / found.weight, loss(outputs, targets))


def test_rows_one_by_one_or_a_pair_are_losses_too():
    each = summed(lambda outputs, targets: (outputs.argmax(1) - targets).abs().float())(LOGITS, LABELS)
    assert each.weight == 6
    pair = summed(lambda outputs, targets: (outputs.sum(), 2))(LOGITS, LABELS)
    assert pair.weight == 2 and pair.total == LOGITS.sum()


def test_a_sum_that_would_grow_with_the_batch_is_refused():
    with pytest.raises(ConfigError, match="reduction='sum'"):
        summed(nn.MSELoss(reduction="sum"))
