"""Affine layers whose gradients backward writes in place: the same gradients as autograd's, in every situation."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from distloop import direct
from distloop.direct import DirectLinear, disengage, engage
from distloop.flat import Room, plan
from distloop.landing import HOT_ELEMENTS, Landing

WIDE = 256


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LEAST_ELEMENTS", WIDE**2)


def landed(module: nn.Module, hot_elements: int = 0) -> tuple[Landing, list[torch.Tensor]]:
    """The module with direct layers, and where each parameter's gradient lands."""
    (flat,) = plan(module).flatten(Room())
    landing = Landing([flat], hot_elements)
    assert list(engage(module, landing))
    return landing, [flat.gradients[slot.start : slot.stop].view(slot.shape) for slot in flat.slots]


def stacked() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE))


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(seed))


def assert_lands_like(module, plain, places, backward) -> None:
    """``backward(module)`` on both; autograd's gradients of ``plain`` are where those of ``module`` land."""
    backward(module)
    backward(plain)
    for (name, parameter), place in zip(plain.named_parameters(), places, strict=True):
        torch.testing.assert_close(place, parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_products_are_written_in_place_and_no_gradient_is_made():
    module, plain = stacked(), stacked()
    landing, places = landed(module)
    arrived = []
    module[2].weight.register_post_accumulate_grad_hook(lambda weight: arrived.append(weight.grad))
    assert_lands_like(module, plain, places, lambda it: it(rows()).square().sum().backward())
    assert arrived == [None]
    assert not landing.missing
    assert isinstance(vars(module[2])["forward"], DirectLinear)
    assert "forward" not in vars(module[0]), "too small to be worth it"


def test_several_backwards_of_a_step_add_up():
    module, plain = stacked(), stacked()
    landing, places = landed(module)

    def twice(it):
        for seed in (1, 2):
            it(rows(seed)).square().sum().backward()

    assert_lands_like(module, plain, places, twice)
    landing.clear()
    plain.zero_grad()
    assert_lands_like(module, plain, places, twice)


def test_a_share_of_the_global_batch_scales_it():
    module, plain = stacked(), stacked()
    landing, places = landed(module)
    landing.scale = 0.25
    module(rows()).square().sum().backward()
    (plain(rows()).square().sum() / 4).backward()
    for place, parameter in zip(places, plain.parameters(), strict=True):
        torch.testing.assert_close(place, parameter.grad)


class Tied(nn.Module):
    """A layer that is used twice, whose weight is an embedding's too, and a function's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(WIDE, WIDE)
        self.table = nn.Embedding(WIDE, WIDE)
        self.table.weight = self.head.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.head(self.table(tokens)))
        return self.head(hidden) + functional.linear(hidden, self.head.weight)


def test_tied_weights_and_layers_used_twice():
    module, plain = Tied(), Tied()
    _, places = landed(module)
    tokens = torch.arange(12).view(3, 4)
    assert_lands_like(module, plain, places, lambda it: it(tokens).square().mean().backward())


def test_a_gradient_that_is_differentiated_itself():
    module, plain = stacked().double(), stacked().double()
    _, places = landed(module)

    def penalised(it):
        weights = list(it.parameters())
        gradients = torch.autograd.grad(it(rows().double()).square().sum(), weights, create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()

    assert_lands_like(module, plain, places, penalised)


def test_under_autocast_it_is_ordinary():
    module, plain = stacked(), stacked()
    _, places = landed(module)

    def mixed(it):
        with torch.autocast("cpu", torch.bfloat16):
            loss = it(rows()).float().square().sum()
        loss.backward()

    assert_lands_like(module, plain, places, mixed)


def test_a_hook_on_the_weight_sees_its_gradient():
    module = stacked()
    _, _ = landed(module)
    seen = []
    module[4].weight.register_hook(lambda gradient: seen.append(gradient.shape))
    module(rows()).sum().backward()
    assert seen == [(WIDE, WIDE)]


def test_frozen_inputs_and_layers_without_bias():
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(WIDE, WIDE, bias=False))
    plain = copy.deepcopy(module)
    _, places = landed(module)
    inputs = torch.randn(4, WIDE)
    assert_lands_like(module, plain, places, lambda it: it(inputs).square().sum().backward())


def test_while_another_learner_has_its_turn_nothing_lands():
    """A learner opens its landing for its own backward only, as in a GAN."""
    module = stacked()
    landing, places = landed(module, HOT_ELEMENTS)
    inputs = rows().requires_grad_()
    module(inputs).sum().backward(inputs=[inputs])
    assert landing.missing and all(not place.any() for place in places)
    assert inputs.grad.any()


@pytest.mark.parametrize("ask", ["grad", "backward"])
def test_a_backward_about_the_inputs_alone_leaves_weights_alone(ask):
    module = stacked()
    landing, places = landed(module)
    inputs = rows().requires_grad_()
    loss = module(inputs).sum()
    torch.autograd.grad(loss, inputs) if ask == "grad" else loss.backward(inputs=[inputs])
    assert landing.missing and not any(place.any() for place in places)


def test_whoever_asks_for_a_weights_gradient_gets_it():
    module, plain = stacked(), stacked()
    _, places = landed(module)
    found = torch.autograd.grad(module(rows()).square().sum(), list(module.parameters()))
    for gradient, wanted in zip(
        found, torch.autograd.grad(plain(rows()).square().sum(), plain.parameters()), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)
    assert not any(place.any() for place in places)


def test_a_functional_call_differentiates_what_it_was_given():
    module = stacked()
    landing, _ = landed(module)
    other = torch.randn(WIDE, WIDE, requires_grad=True)
    torch.func.functional_call(module, {"2.weight": other}, rows()).sum().backward()
    assert other.grad is not None
    assert landing.missing


def test_functional_transforms_work():
    module, plain = stacked(), stacked()
    landed(module)
    values = {name: value.detach() for name, value in plain.named_parameters()}

    def loss_of(given, it):
        return torch.func.functional_call(it, given, rows()).square().sum()

    found, wanted = (torch.func.grad(loss_of)(values, it) for it in (module, plain))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    _, tangent = torch.func.jvp(lambda given: loss_of(given, module), (values,), (values,))
    assert tangent.isfinite()


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_the_ordinary_forward(way):
    module = stacked()
    landed(module)
    if way == "deepcopy":
        copied = copy.deepcopy(module)
    else:
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        copied = torch.load(stream, weights_only=False)
    torch.testing.assert_close(copied(rows()), module(rows()), rtol=0, atol=0)
    assert not any(isinstance(vars(part).get("forward"), DirectLinear) for part in copied.modules())
    copied(rows()).sum().backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())


def test_disengaged_it_is_as_before():
    module = stacked()
    (flat,) = plan(module).flatten(Room())
    landing = Landing([flat], 0)
    for layer in list(engage(module, landing)):
        disengage(layer)
    landing.remove()
    assert not any("forward" in vars(part) for part in module.modules())
    module(rows()).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
