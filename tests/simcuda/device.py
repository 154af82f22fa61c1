"""The simulated device for a while: `with simulated() as log:`, after which PyTorch is as it was.

PyTorch's build for the CPU has no guard for CUDA devices. That of meta tensors, which does nothing, stands in for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # which looks at functions by identity, and must see the real ones
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from tests.simcuda import kernels, tensor
from tests.simcuda.log import LAUNCH, WAIT, Log
from tests.simcuda.tensor import CUDA, CudaTensor, Dispatch

NAME = "Simulated GPU"
GUARDS, KINDS, CUDA_KIND, META_KIND = "_ZN3c104impl26device_guard_impl_registryE", 22, 1, 14  # c10/core/DeviceType.h
_data = torch._C.TensorBase.data


_Generator = torch.Generator


class _AnyGenerator(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, _Generator)


class Generator(_Generator, metaclass=_AnyGenerator):
    """A generator that says where it is, and draws on the host. Operators get it as one of PyTorch's own, which does not say."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")
        made.place = CUDA if str(device).startswith("cuda") else torch.device(str(device))
        return made

    @property
    def device(self) -> Any:
        return self.place


class Functions(TorchFunctionMode):
    """What does not reach the dispatcher of operators: device names, Python's indexing, attention's choice of a kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(_placed(x) for x in args)
        kwargs = {name: _placed(x) for name, x in (kwargs or {}).items()}
        if isinstance(kwargs.get("generator"), _Generator):
            with tensor.drawing_from(kwargs["generator"].device):
                return func(*args, **kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], CudaTensor):
            where = tuple(map(_index, args[1])) if isinstance(args[1], tuple) else _index(args[1])
            return func(args[0], where, *args[2:])
        if func is Tensor.new_tensor and isinstance(args[0], CudaTensor) and not _on_host(kwargs.get("device")):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs, "device": CUDA})
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(func, *args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) and _is_cuda(kwargs.get("device")):
            options = {name: x for name, x in kwargs.items() if name != "device"}
            if isinstance(args[0], Tensor):
                return args[0].to(CUDA, options.get("dtype"))
            return func(*args, **options).to(CUDA)
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _on_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _placed(x: Any) -> Any:
    """`cuda` with its number."""
    return CUDA if (isinstance(x, str) and x in ("cuda", "cuda:0")) or (isinstance(x, torch.device) and x.type == "cuda") else x


def _index(x: Any) -> Any:
    """Lists and arrays: indexing makes a tensor of them on the host, which is then copied."""
    return torch.as_tensor(x) if isinstance(x, list) or type(x).__name__ == "ndarray" else x


def _attention(
    func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
) -> Tensor:
    parts = [x for x in (query, key, value, attn_mask) if x is not None]
    if not any(isinstance(x, CudaTensor) for x in parts):
        return func(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options)  # type: ignore[no-any-return]
    name = "scaled_dot_product_attention"
    if not all(isinstance(x, CudaTensor) for x in parts):
        raise tensor.log.fault(
            name, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise tensor.log.fault(name, f"Expected query, key, and value to have the same dtype, but got {query.dtype}, {key.dtype}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        raise tensor.log.fault(name, f"Expected attn_mask dtype to be bool or to match query dtype, but got {attn_mask.dtype}")
    half = query.dtype in kernels.HALF and query.shape[-1] <= 256
    tensor.log.add(LAUNCH, f"{name} {'flash' if half and attn_mask is None else 'efficient'}")
    tensor.log.attention[name, tuple(query.shape), tuple(key.shape)] += 1
    q, k, v, mask = (None if x is None else x.values for x in (query, key, value, attn_mask))  # type: ignore[attr-defined]
    with torch._C.DisableTorchFunctionSubclass(), _disable_current_modes():
        output = func(q, k, v, attn_mask=mask, dropout_p=dropout_p, **options)
    return CudaTensor(output)  # type: ignore[no-any-return]


def _set_data(self: Tensor, value: Tensor) -> None:
    """`tensor.data = value`, where modules move: the wrapper cannot change its device, so the two are swapped."""
    if isinstance(value, CudaTensor) != isinstance(self, CudaTensor):
        new = torch.nn.Parameter(value, self.requires_grad) if isinstance(self, torch.nn.Parameter) else value.detach()
        new.__dict__.update({name: x for name, x in self.__dict__.items() if name != "values"})
        torch.utils.swap_tensors(self, new)
        return
    if isinstance(value, CudaTensor):
        self.values = value.values  # type: ignore[attr-defined]
    _data.__set__(self, value)


class Stream:
    """A stream, an event, or the context of one."""

    device = CUDA

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *args: Any) -> None: ...

    def synchronize(self, *args: Any) -> None:
        tensor.log.add(WAIT, "stream.synchronize")

    def wait_stream(self, *args: Any) -> None: ...

    def wait_event(self, *args: Any) -> None: ...

    def record_event(self, *args: Any) -> Stream:
        return self

    def record(self, *args: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


def _patches(total_bytes: int) -> Iterator[Any]:
    """What says that there is a GPU, or belongs to one."""
    wait = lambda *args: tensor.log.add(WAIT, "synchronize")  # noqa: E731
    nothing = lambda *args, **kwargs: None  # noqa: E731
    facts = SimpleNamespace(name=NAME, total_memory=total_bytes, major=9, minor=0, multi_processor_count=132)
    which = shutil.which
    cuda: dict[str, Any] = {
        "_lazy_init": nothing, "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_name": lambda *a: NAME, "get_device_capability": lambda *a: (9, 0),
        "get_device_properties": lambda *a: facts, "mem_get_info": lambda *a: (total_bytes, total_bytes),
        "max_memory_allocated": lambda *a: 1, "memory_allocated": lambda *a: 1, "reset_peak_memory_stats": nothing,
        "empty_cache": nothing, "ipc_collect": nothing, "synchronize": wait, "manual_seed": nothing, "manual_seed_all": nothing,
        "is_bf16_supported": lambda *a, **k: True, "Stream": Stream, "Event": Stream, "stream": lambda s: Stream(),
        "current_stream": lambda *a: Stream(), "default_stream": lambda *a: Stream(), "set_device": nothing,
    }  # fmt: skip
    accelerator: dict[str, Any] = {
        "is_available": lambda *a: True, "synchronize": wait, "current_accelerator": lambda *a, **k: torch.device("cuda"),
        "current_device_index": lambda *a: 0, "current_stream": lambda *a: Stream(), "empty_cache": nothing,
    }  # fmt: skip
    yield from (mock.patch.object(torch.cuda, name, value) for name, value in cuda.items())
    yield from (mock.patch.object(torch.accelerator, name, value) for name, value in accelerator.items())
    yield mock.patch.object(torch, "Generator", Generator)
    yield mock.patch.object(Tensor, "pin_memory", lambda self, *a, **k: tensor.pin(self))
    yield mock.patch.object(Tensor, "is_pinned", lambda self, *a, **k: tensor.is_pinned(self))
    yield mock.patch.object(Tensor, "data", property(_data.__get__, _set_data))
    yield mock.patch.object(
        shutil, "which", lambda name, *a, **k: f"/usr/bin/{name}" if name == "nvidia-smi" else which(name, *a, **k)
    )


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so"))
    registry = (ctypes.c_void_p * KINDS).in_dll(library, GUARDS)
    before = registry[CUDA_KIND]
    registry[CUDA_KIND] = before or registry[META_KIND]
    try:
        yield
    finally:
        registry[CUDA_KIND] = before


@contextlib.contextmanager
def _gradients_on_host() -> Iterator[None]:
    """VMCR's gradient is computed on the host, for autograd knows no simulated device; its loss on the device first."""
    from longgen.refine.vmcr import Vmcr

    change = Vmcr.change

    def changed(self: Vmcr, x0: Tensor, dx0_dx: float, step: Any) -> Tensor:
        if not isinstance(x0, CudaTensor):
            return change(self, x0, dx0_dx, step)
        self.loss(x0.float())
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            on_host = change(self, x0.values, dx0_dx, step)
        return CudaTensor(on_host)  # type: ignore[no-any-return]

    with mock.patch.object(Vmcr, "change", changed):
        yield


@contextlib.contextmanager
def simulated(total_bytes: int = 80 * 10**9, float64: bool = True) -> Iterator[Log]:
    """Within the context there is one GPU, `cuda:0`, of so many bytes; what is left of it afterwards must not be used.

    float64: whether it has double precision, which Apple's have not.
    """
    from longgen import device_tables
    from longgen.attention import score_blocks
    from longgen.attention.lse_kernels import attention_with_lse

    with contextlib.ExitStack() as stack:
        stack.enter_context(_guard())
        stack.enter_context(_gradients_on_host())
        for patch in _patches(total_bytes):
            stack.enter_context(patch)
        for mode in (Functions(), Dispatch()):
            stack.enter_context(mode)
        stack.enter_context(mock.patch.object(score_blocks, "flex_by_sign", return_value=None))  # nothing compiles for this device
        stack.enter_context(mock.patch.dict(tensor.dtypes, float64=float64))
        for forget in (attention_with_lse.cache_clear, device_tables.forget, tensor.forget):
            forget()
            stack.callback(forget)
        yield tensor.log
