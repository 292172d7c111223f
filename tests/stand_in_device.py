"""An accelerator for machines that have none: to PyTorch it is no CPU, and every copy to or from it is counted.

A tensor on the device is an ordinary torch.Tensor with real sizes, strides and a real storage, so views,
`.data = view`, hooks and autograd are PyTorch's own. Only its memory is elsewhere: the storage's address lies where
no process has memory (host code that follows it crashes, as it does with a real device's), and the storage carries
the host memory that holds the bytes. One kernel serves every operation: it runs PyTorch's CPU kernel on that
memory, so numbers are those of the CPU to the bit.

    device = stand_in()             # the first call registers it, for the rest of the process
    module.to(device)               # copies.host_to_device_bytes grows by the bytes of the module

What a real device refuses is refused: a host tensor in an operation on the device (0-dimensional ones may be read),
`.numpy()`, a host generator. What it lacks: pinned memory, its own generators, streams, more than one device, LSTM and
GRU cells (PyTorch has a fused kernel for accelerators only), conjugated complex views, autocast, and torch.load
straight onto it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "stand_in"
_BEYOND = 1 << 62  # added to a host address: above all user memory on x86-64 and AArch64
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@dataclass
class Copies:
    """What crossed between host and device since the last reset, by all threads of this process."""

    host_to_device: int = 0
    device_to_host: int = 0
    host_to_device_bytes: int = 0
    device_to_host_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def reset(self) -> None:
        with self._lock:
            self.host_to_device = self.host_to_device_bytes = 0
            self.device_to_host = self.device_to_host_bytes = 0

    def count(self, size_bytes: int, *, to_host: bool) -> None:
        with self._lock:
            if to_host:
                self.device_to_host += 1
                self.device_to_host_bytes += size_bytes
            else:
                self.host_to_device += 1
                self.host_to_device_bytes += size_bytes


copies = Copies()


@functools.cache
def stand_in() -> torch.device:
    """The device `stand_in:0`; the first call registers it with PyTorch, which cannot be undone."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), device_guard=_Guard())
    torch.autograd._engine_run_backward = functools.partial(_run_backward, torch.autograd._engine_run_backward)
    _fallback.fallback(_run, "PrivateUse1")
    for name in _with_cpu_and_composite_kernels():
        _aten.impl(name, functools.partial(_run, _operator(name)), "PrivateUse1")
    for name, kernel in _OWN_KERNELS.items():
        _aten.impl(name, kernel, "PrivateUse1")
    return torch.device(NAME, 0)


_fallback = torch.library.Library("_", "IMPL")
_aten = torch.library.Library("aten", "IMPL")


def _with_cpu_and_composite_kernels() -> list[str]:
    """Operations that would be put together from others on a new device: the CPU's own kernel gives the CPU's bits."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    composite = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    chosen = [name for name in names if has(name, "CPU") and any(has(name, key) for key in composite)]
    return [name.removeprefix("aten::") for name in chosen] + ["convolution", "convolution_backward"]


def _operator(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


# ---- memory: device storage <-> host storage ------------------------------------------------------------------------


def _host_of(tensor: Tensor) -> Tensor:
    """The host tensor over the same bytes as a device tensor."""
    memory = tensor.untyped_storage().memory
    return torch.empty(0, dtype=tensor.dtype).set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())


def _device_storage(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    """A storage on the device over host memory; PyTorch keeps its attributes as long as any tensor views it."""
    address = memory.data_ptr() + _BEYOND
    storage = torch._C._construct_storage_from_data_pointer(address, stand_in(), memory.nbytes())
    storage.memory = memory
    storage.clone = lambda: _device_storage(memory.clone())  # PyTorch's own wants an allocator; deepcopy calls it
    return storage


def _place(tensor: Tensor, host: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """Makes a device tensor the view of `storage` that `host` is of the host's."""
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    return set_.redispatch(_CPU, tensor, storage, host.storage_offset(), host.size(), host.stride())


def _host_device(device: torch.device) -> torch.device:
    if device.index not in (None, 0):
        raise RuntimeError(f"there is one device, {NAME}:0, got {device}")
    return torch.device("cpu")


def _new(host: Tensor, storage: torch.UntypedStorage, base: Tensor | None = None) -> Tensor:
    """A device tensor over `storage`; a view of an inference tensor is one too, of an ordinary one it is not."""
    with torch.inference_mode(torch.is_inference_mode_enabled() if base is None else base.is_inference()):
        empty = torch._C._acc.create_empty_tensor((), host.dtype)
    return _place(empty, host, storage)


# ---- one kernel for all operations ----------------------------------------------------------------------------------


class _Call:
    """One operation's arguments on the host, and the way back for its results."""

    def __init__(self, operator: torch._ops.OpOverload) -> None:
        self.operator = operator
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}  # host tensor's id: the device tensor and itself
        self.storages: dict[int, torch.UntypedStorage] = {}  # host storage's id in C++: the device storage
        self.bases: dict[int, Tensor] = {}  # the same: a device tensor over it

    def argument(self, value: Any, *, written: bool) -> Any:
        if isinstance(value, list | tuple):
            return [self.argument(item, written=written) for item in value]
        if isinstance(value, Tensor):
            return self.host_tensor(value, written)
        if isinstance(value, torch.UntypedStorage) and value.device.type == NAME:
            self.storages[value.memory._cdata] = value
            return value.memory
        if isinstance(value, torch.device) and value.type == NAME:
            return _host_device(value)
        if isinstance(value, torch.Generator):
            raise RuntimeError(f"{self.operator}: expected a {NAME} generator, got one of {value.device}")
        return value

    def host_tensor(self, tensor: Tensor, written: bool) -> Tensor:
        if tensor.device.type == NAME:
            host = _host_of(tensor)
            self.tensors[id(host)] = (tensor, host)
            memory_id = host.untyped_storage()._cdata
            self.storages[memory_id], self.bases[memory_id] = tensor.untyped_storage(), tensor
            return host
        if tensor.dim() > 0 or written:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {self.operator} runs on {NAME}:0 and got a tensor of "
                f"shape {tuple(tensor.shape)} on {tensor.device}"
            )
        return tensor

    def result(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self.result(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.tensors:
            return self.tensors[id(value)][0]
        return _new(value, self.storage(value), self.bases.get(value.untyped_storage()._cdata))

    def storage(self, host: Tensor) -> torch.UntypedStorage:
        """The device storage over a host tensor's memory: an argument's if it is a view of it, else a new one."""
        memory = host.untyped_storage()
        known = self.storages.get(memory._cdata)
        if known is None or known.nbytes() != memory.nbytes():
            known = self.storages[memory._cdata] = _device_storage(memory)
        return known

    def resize(self) -> None:
        """Gives arguments that the operation resized or moved (`out=`, `resize_`) their new shape and memory."""
        for tensor, host in self.tensors.values():
            storage = self.storage(host)
            same_memory = tensor.untyped_storage()._cdata == storage._cdata
            same_start = tensor.storage_offset() == host.storage_offset()
            same_shape = tensor.size() == host.size() and tensor.stride() == host.stride()
            if not (same_memory and same_start and same_shape):
                _place(tensor, host, storage)


def _run(operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Runs any operation with the CPU's kernel on the memory of its device tensors."""
    call = _Call(operator)
    schema = operator._schema.arguments
    written = {argument.name: bool(argument.is_write) for argument in schema}
    host_args = [
        call.argument(value, written=written[argument.name]) for argument, value in zip(schema, args, strict=False)
    ]
    host_kwargs = {name: call.argument(value, written=written[name]) for name, value in kwargs.items()}
    results = operator(*host_args, **host_kwargs)
    if any(written.values()):
        call.resize()
    return call.result(results)


# ---- where bytes cross ----------------------------------------------------------------------------------------------


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Every `copy_` and every `.to(device)` ends here."""
    on_device = [tensor.device.type == NAME for tensor in (source, target)]
    host_source, host_target = (
        _host_of(tensor) if is_device else tensor for tensor, is_device in zip((source, target), on_device, strict=True)
    )
    host_target.copy_(host_source)
    if not all(on_device):
        copies.count(target.numel() * target.element_size(), to_host=on_device[0])
    return target


def _to_copy(tensor: Tensor, *, device: torch.device | None = None, **options: Any) -> Tensor:
    """`.to(...)` from or to the device; PyTorch's own wants pinned memory for a non-blocking one to the host."""
    device = device or tensor.device
    from_device, to_device = tensor.device.type == NAME, device.type == NAME
    options["non_blocking"] = False
    host = _host_of(tensor) if from_device else tensor
    host_device = _host_device(device) if to_device else device
    host = torch.ops.aten._to_copy.default(host, device=host_device, **options)
    if from_device != to_device:
        copies.count(host.numel() * host.element_size(), to_host=from_device)
    return _new(host, _device_storage(host.untyped_storage())) if to_device else host


def _local_scalar_dense(tensor: Tensor) -> Any:
    """`.item()`, and every `if tensor:`."""
    copies.count(tensor.element_size(), to_host=True)
    return _host_of(tensor).item()


def _equal(left: Tensor, right: Tensor) -> bool:
    """`torch.equal`: one truth value crosses."""
    answer = _run(torch.ops.aten.equal.default, left, right)
    copies.count(1, to_host=True)
    return bool(answer)


_OWN_KERNELS: dict[str, Callable[..., Any]] = {
    "_copy_from": _copy_from,
    "_to_copy": _to_copy,
    "_local_scalar_dense": _local_scalar_dense,
    "equal": _equal,
}


# ---- what PyTorch asks a device for ---------------------------------------------------------------------------------

_any_c_function = ctypes.pythonapi.PyErr_Occurred  # raises the error that was set before the call
_hook_errors: list[BaseException] = []


class _Guard(torch._C._acc.DeviceGuard):  # type: ignore[misc]
    def type_(self) -> torch._C._autograd.DeviceType:
        """Also called while autograd unwinds from a hook's error, where a call that leaves one set ends the process."""
        try:
            _any_c_function()
        except BaseException as error:
            _hook_errors.append(error)
        return torch._C._autograd.DeviceType.PrivateUse1


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """`torch.stand_in`, or torch.get_device_module(device)."""

    def synchronize(self, device: torch.device | None = None) -> None:
        """Nothing is ever under way."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _run_backward(engine: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Autograd's engine, raising the hook's error that the guard has taken instead of "no exception set"."""
    try:
        return engine(*args, **kwargs)
    except SystemError:
        if not _hook_errors:
            raise
        raise _hook_errors.pop() from None
