"""A GPU that is not there: tensors on it keep their numbers in the CPU's memory and say that they are elsewhere.

Operations on them compute what the CPU computes, bit for bit. What a GPU would refuse is refused (tensors of two
devices in one operation), what would make the host wait for it is counted, and so are the copies to it; and its memory
can be as small as one likes.

torch lets a backend be written in Python, once per process and for good, so whoever imports this has a process of its
own. See torch/utils/backend_registration.py; as with the private interfaces in docs/internals.md, another torch may
have another one.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend(rename="simulated")
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is then a copy that we see
DEVICE = torch.device("simulated", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of the device and of the host."""


class OnDevice(Tensor):
    """A tensor of the device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=DEVICE,
        )  # fmt: skip
        tensor.inner = inner
        return tensor

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: outside of the device's context")


class Device(TorchDispatchMode):
    """The device while its context lasts; `to_device` and `reads` are what crossed its bus."""

    def __init__(self, memory_bytes: float = float("inf")) -> None:
        super().__init__()
        self.memory_bytes, self.used_bytes, self.peak_bytes = memory_bytes, 0, 0
        self.to_device: list[int] = []  # bytes of each copy from the host
        self.reads: list[str] = []  # operations for which the host waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        goes_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
        self._count(func, tensors, there, goes_there)
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if func is aten.copy_.default:
            return args[0]
        if not goes_there or (func in READS and not isinstance(out, Tensor)):
            return out
        wrapped = tree_map_only(Tensor, self._wrap, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped

    def _count(self, func: Any, tensors: list[Tensor], there: list[OnDevice], goes_there: bool) -> None:
        """Note what crosses the bus, and refuse what mixes; numbers without dimensions may come from the host."""
        hosts = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        if func in COPIES:
            source = tensors[-1]
            to_device = goes_there if func is aten._to_copy.default else isinstance(tensors[0], OnDevice)
            if to_device and not isinstance(source, OnDevice):
                self.to_device.append(source.nbytes)
            if not to_device and isinstance(source, OnDevice):
                self.reads.append(str(func))
        elif there and any(tensor.dim() for tensor in hosts):
            raise MixedDevicesError(f"{func}: {[(type(t).__name__, tuple(t.shape)) for t in tensors]}")
        elif there and func in READS:
            self.reads.append(str(func))

    def _wrap(self, inner: Tensor) -> Tensor:
        """The tensor as one of the device, whose memory it takes if it is new; raises OutOfMemoryError."""
        tensor = OnDevice(inner)
        storage = inner.untyped_storage()
        if not getattr(storage, "counted", False):
            storage.counted = True  # type: ignore[attr-defined]
            size = storage.nbytes()
            if self.used_bytes + size > self.memory_bytes:
                raise torch.OutOfMemoryError(f"simulated: {size} bytes more than the {self.memory_bytes} there are")
            self.used_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            weakref.finalize(storage, self._free, size)
        return tensor

    def _free(self, size: int) -> None:
        self.used_bytes -= size


def moved_there(model: nn.Module) -> None:
    """Move a frozen model to the device, in place, since `to` cannot change what a parameter is."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(DEVICE), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(DEVICE))


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value
