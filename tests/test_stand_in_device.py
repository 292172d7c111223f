"""The stand-in is of use only if it counts every byte, refuses what a real device refuses and trains like the CPU."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distloop.comm.mpi import MPI
from tests.stand_in_device import copies, stand_in

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@pytest.fixture
def device() -> torch.device:
    device = stand_in()
    copies.reset()
    return device


# ---- training, written as a learner does it -------------------------------------------------------------------------


def pieces(module: nn.Module) -> Iterator[tuple[nn.Parameter, int, int]]:
    """Each parameter with its place in the flat vector."""
    start = 0
    for parameter in module.parameters():
        yield parameter, start, start + parameter.numel()
        start += parameter.numel()


def flatten(module: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Moves the module's parameters into one vector, and its gradients, as they come, into another."""
    module.to(device)
    elements = sum(parameter.numel() for parameter in module.parameters())
    flat, gradients = torch.empty(elements, device=device), torch.zeros(elements, device=device)
    for parameter, start, stop in pieces(module):
        view = flat[start:stop].view(parameter.shape)
        view.copy_(parameter.data)
        parameter.data = view
        parameter.register_post_accumulate_grad_hook(landing(gradients[start:stop].view(parameter.shape)))
    return flat, gradients


def landing(place: Tensor) -> Callable[[Tensor], None]:
    def land(parameter: Tensor) -> None:
        place.copy_(parameter.grad)
        parameter.grad = None

    return land


def train_flat(module: nn.Module, batches: list, loss: Callable, optimizer: Optimizer, device: torch.device) -> Tensor:
    flat, gradients = flatten(module, device)
    owned = [flat[start:stop].view(p.shape).detach() for p, start, stop in pieces(module)]
    for view, (p, start, stop) in zip(owned, pieces(module), strict=True):
        view.grad = gradients[start:stop].view(p.shape)
    stepper = optimizer(owned)
    for inputs, targets in batches:
        value = loss(module(inputs.to(device)), targets.to(device))
        torch.autograd.backward(value, inputs=list(module.parameters()))
        stepper.step()
    return flat


def train(module: nn.Module, batches: list, loss: Callable, optimizer: Optimizer) -> None:
    stepper = optimizer(list(module.parameters()))
    for inputs, targets in batches:
        stepper.zero_grad()
        loss(module(inputs), targets).backward()
        stepper.step()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def convnet() -> nn.Module:
    features = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(64, 3))


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Flatten(), nn.Linear(24, 3))


CASES = {
    "mlp": (mlp, lambda: torch.randn(6, 5), lambda: torch.randint(3, (6,)), functional.cross_entropy),
    "mlp, numbers": (mlp, lambda: torch.randn(6, 5), lambda: torch.randn(6, 3), functional.mse_loss),
    "convnet": (convnet, lambda: torch.randn(6, 1, 8, 8), lambda: torch.randint(3, (6,)), functional.cross_entropy),
    "words": (words, lambda: torch.randint(11, (6, 3)), lambda: torch.randint(3, (6,)), functional.cross_entropy),
}
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda views: torch.optim.SGD(views, lr=0.1, momentum=0.9, foreach=False),
    "sgd foreach": lambda views: torch.optim.SGD(views, lr=0.1, momentum=0.9, foreach=True),
    "adam": lambda views: torch.optim.Adam(views, lr=0.01, foreach=False),
    "adam foreach": lambda views: torch.optim.Adam(views, lr=0.01, foreach=True),
    "adam fused": lambda views: torch.optim.Adam(views, lr=0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_gives_exactly_the_weights_of_the_cpu(case, optimizer, device):
    build, inputs, targets, loss = case
    torch.manual_seed(0)
    on_host = build()
    on_device = copy.deepcopy(on_host)
    batches = [(inputs(), targets()) for _ in range(4)]
    flat = train_flat(on_device, batches, loss, optimizer, device)
    train(on_host, batches, loss, optimizer)
    expected = torch.cat([parameter.detach().flatten() for parameter in on_host.parameters()])
    assert torch.equal(flat.cpu(), expected)
    for name, value in on_host.state_dict().items():
        assert torch.equal(on_device.state_dict()[name].cpu(), value), name


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_module_and_flat_vector_are_the_same_memory(device):
    module = nn.Linear(3, 2)
    flat, _ = flatten(module, device)
    flat.fill_(2.0)
    assert module.weight.tolist() == [[2.0] * 3] * 2
    with torch.no_grad():
        module.bias.zero_()
    assert flat.tolist() == [2.0] * 6 + [0.0] * 2
    assert module.weight.data_ptr() == flat.data_ptr()
    assert module.bias.data_ptr() == flat.data_ptr() + 6 * 4


def test_a_view_keeps_the_memory_and_the_last_one_frees_it(device):
    class Owner:
        pass

    tensor = torch.zeros(10, device=device)
    tensor.untyped_storage().memory.owner = owner = Owner()
    freed = weakref.ref(owner)
    view = tensor[3:5].view(2, 1).detach()
    del owner, tensor
    gc.collect()
    assert freed() is not None
    assert view.tolist() == [[0.0], [0.0]]
    del view
    gc.collect()
    assert freed() is None


def test_out_arguments_and_resizing_reach_the_tensor(device):
    out = torch.empty(0, device=device)
    torch.mul(torch.arange(3.0, device=device), 2, out=out)
    assert out.tolist() == [0.0, 2.0, 4.0]
    out.resize_(5).fill_(1.0)
    assert out.tolist() == [1.0] * 5
    out.t_()
    assert out.set_(torch.ones(2, 2, device=device)).shape == (2, 2)


def test_inference_mode_leaves_views_of_parameters_usable(device):
    module = convnet().eval()
    inputs = torch.randn(2, 1, 8, 8)
    expected = module(inputs)
    module.to(device)
    with torch.inference_mode():
        assert torch.equal(module(inputs.to(device)).cpu(), expected)
    module(inputs.to(device)).sum().backward()


def test_modules_and_tensors_can_be_copied_and_loaded(device):
    module = convnet().to(device)
    twin = copy.deepcopy(module)
    twin[0].weight.data.zero_()
    twin[1].running_mean.fill_(7.0)
    assert module[0].weight.abs().sum().item() > 0
    assert module[1].running_mean.sum().item() == 0
    twin.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    assert torch.equal(twin[0].weight, module[0].weight)


# ---- counted copies -------------------------------------------------------------------------------------------------


def counts() -> tuple[int, int, int, int]:
    return copies.host_to_device, copies.host_to_device_bytes, copies.device_to_host, copies.device_to_host_bytes


def test_every_copy_is_counted_to_the_byte(device):
    tensor = torch.arange(10.0).to(device)
    assert counts() == (1, 40, 0, 0)
    host = torch.zeros(10)
    host[2:5].copy_(tensor[2:5])
    assert counts() == (1, 40, 1, 12)
    tensor[:7].copy_(host[:7], non_blocking=True)
    assert counts() == (2, 68, 1, 12)
    assert host.tolist() == [0.0, 0.0, 2.0, 3.0, 4.0] + [0.0] * 5
    assert tensor[0].item() == 0.0
    assert counts() == (2, 68, 2, 16)
    assert torch.equal(tensor.to("cpu", torch.float64, non_blocking=True)[:7], host[:7].double())
    assert counts() == (2, 68, 3, 96)
    tensor[8:] = host[8:]
    assert counts() == (3, 76, 3, 96)


def test_nothing_on_the_device_alone_is_counted(device):
    tensor = torch.zeros(4, device=device)
    other = (tensor + 1).to(device).clone().double()
    tensor.copy_(other)
    tensor.add_(torch.tensor(2.0))
    assert counts() == (0, 0, 0, 0)
    assert tensor.tolist() == [3.0] * 4
    assert counts() == (0, 0, 1, 16)


def test_moving_a_module_counts_its_parameters_and_buffers(device):
    module = convnet()
    state_bytes = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    module.to(device)
    assert counts() == (len(module.state_dict()), state_bytes, 0, 0)


def test_a_step_copies_the_minibatch_and_nothing_else(device):
    module = mlp()
    flatten(module, device)
    copies.reset()
    inputs, targets = torch.randn(6, 5), torch.randint(3, (6,))
    functional.cross_entropy(module(inputs.to(device)), targets.to(device)).backward()
    assert counts() == (2, 6 * 5 * 4 + 6 * 8, 0, 0)


# ---- what a real device refuses -------------------------------------------------------------------------------------

MIXES = {
    "add": lambda host, device: device + host,
    "add into host": lambda host, device: host.add_(device),
    "add into host, both of no dimension": lambda host, device: host.sum().add_(device.sum()),
    "matrix product": lambda host, device: device @ host,
    "linear": lambda host, device: functional.linear(device, host),
    "convolution": lambda host, device: functional.conv1d(device[None], host[None]),
    "out": lambda host, device: torch.add(device, device, out=host),
    "concatenation": lambda host, device: torch.cat([device, host]),
    "foreach": lambda host, device: torch._foreach_add_([device], [host]),
    "embedding": lambda host, device: functional.embedding(host.long(), device),
    "cross entropy": lambda host, device: functional.cross_entropy(device, host[0].long()),
    "where": lambda host, device: torch.where(device > 0, host, device),
    "generator": lambda host, device: device.normal_(generator=torch.Generator()),
    "parameter of another device": lambda host, device: setattr(nn.Parameter(host), "data", device),
    "gradient of another device": lambda host, device: setattr(nn.Parameter(device), "grad", host),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_host_and_device_do_not_mix(mix, device):
    with pytest.raises(RuntimeError, match=r"device|generator|incompatible tensor type"):
        mix(torch.ones(3, 3), torch.ones(3, 3, device=device))


def test_the_host_cannot_see_device_memory(device):
    tensor = torch.ones(3, device=device)
    with pytest.raises(TypeError, match="can't convert stand_in:0 device type tensor to numpy"):
        tensor.numpy()
    with pytest.raises(TypeError):
        np.asarray(tensor)
    with pytest.raises(ValueError, match="stand_in"):
        MPI.COMM_SELF.Allreduce(tensor, np.empty(3, np.float32))
    with pytest.raises(RuntimeError, match="there is one device"):
        torch.empty(3, device="stand_in:1")
    with pytest.raises(RuntimeError, match="there is one device"):
        torch.empty(3).to("stand_in:1")


# ---- autograd -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("multithreading", [True, False])
def test_an_error_in_a_hook_comes_out_of_backward(multithreading, register, device):
    def hook(_: Tensor) -> None:
        raise LookupError("in the hook")

    leaf = torch.ones(3, device=device, requires_grad=True)
    getattr(leaf, register)(hook)
    threads = torch.autograd.set_multithreading_enabled(multithreading)
    with pytest.raises(LookupError, match="in the hook"), threads:
        (leaf * 2).sum().backward()
    other = torch.ones(3, device=device, requires_grad=True)
    (other * 2).sum().backward()
    assert other.grad.tolist() == [2.0] * 3


def test_an_error_in_a_kernel_comes_out_of_backward(device):
    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient + torch.ones(3)

    leaf = torch.ones(3, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="same device"):
        Mixed.apply(leaf).sum().backward()


@pytest.mark.parametrize("multithreading", [True, False])
def test_hooks_run_in_autograds_thread_unless_told_otherwise_as_on_any_accelerator(multithreading, device):
    leaf, threads = torch.ones(3, device=device, requires_grad=True), []
    leaf.register_post_accumulate_grad_hook(lambda _: threads.append(threading.get_ident()))
    with torch.autograd.set_multithreading_enabled(multithreading):
        (leaf * 2).sum().backward()
    assert (threads != [threading.get_ident()]) == multithreading
