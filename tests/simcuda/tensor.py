"""Tensors that say `cuda:0` and hold real values, which the CPU computes; host and device do not mix, as on CUDA."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.simcuda import kernels
from tests.simcuda.log import LAUNCH, TO_DEVICE, TO_HOST, WAIT, Log

CUDA = torch.device("cuda", 0)
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # take indices of the host, and copy them
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive", "equal",
         "is_nonzero", "repeat_interleave", "_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_eig", "linalg_cholesky_ex",
         "_linalg_check_errors"}  # fmt: skip
VIEWS = {"view", "_unsafe_view", "unsqueeze", "squeeze", "transpose", "permute", "expand", "slice", "select", "split",
         "split_with_sizes", "unbind", "as_strided", "detach", "alias", "t", "chunk", "diagonal", "unfold", "view_as_real",
         "view_as_complex", "_reshape_alias", "lift_fresh", "_conj", "_neg_view", "set_", "resize_", "is_pinned"}  # fmt: skip
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FREE = VIEWS | ALLOCATIONS | {"_local_scalar_dense"}  # launch no kernel

log = Log()
dtypes: dict[str, bool] = {"float64": True}  # whether the device has it
_generators = ["cpu"]  # types of device of those that are drawn from, the innermost last
_pinned: set[int] = set()  # storages of the host that were pinned, by address


class CudaTensor(Tensor):
    """values: the host tensor behind it."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool | None = None) -> Any:
        if requires_grad is not None or isinstance(values, CudaTensor):  # accelerate makes a parameter of a parameter's class
            return torch.nn.Parameter(values, requires_grad=bool(requires_grad))
        tensor = Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"CudaTensor({self.values!r})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        message = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        log.fault("numpy", message)
        raise TypeError(message)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        log.add(TO_HOST, "tolist")
        return self.values.tolist()

    def __deepcopy__(self, memo: Any) -> Any:
        copy = CudaTensor(self.values.clone())
        return torch.nn.Parameter(copy, requires_grad=self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()

    def record_stream(self, stream: Any) -> None:
        pass


class Dispatch(TorchDispatchMode):
    """Sends what makes tensors on the device, or copies to it, through `run` too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def pin(tensor: Tensor) -> Tensor:
    if isinstance(tensor, CudaTensor):
        raise log.fault("pin_memory", "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    copy = tensor.clone()
    _pinned.add(copy.untyped_storage().data_ptr())
    return copy


def is_pinned(tensor: Tensor) -> bool:
    return not isinstance(tensor, CudaTensor) and tensor.untyped_storage().data_ptr() in _pinned


@contextlib.contextmanager
def drawing_from(device: torch.device) -> Any:
    """Within the context, a generator that an operator takes is one of `device`."""
    _generators.append(device.type)
    try:
        yield
    finally:
        _generators.pop()


def forget() -> None:
    log.clear()
    _pinned.clear()


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operator: computed by the CPU, counted, and refused where CUDA would refuse it."""
    name = func._schema.name.split("::")[1]
    flat, spec = tree_flatten((args, kwargs))
    on_device = [x for x in flat if isinstance(x, CudaTensor)]
    on_host = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, CudaTensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    to_device = asked == "cuda" if asked is not None else bool(on_device)
    if kwargs.get("generator") is not None and _generators[-1] != ("cuda" if to_device else "cpu"):
        expected = "cuda" if to_device else "cpu"
        raise log.fault(name, f"Expected a '{expected}' device type for generator but found '{_generators[-1]}'")
    if not on_device and not to_device:
        return func(*args, **kwargs)
    if on_device and name not in COPIES | INDEXING and any(x.ndim for x in on_host):
        raise log.fault(name, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")
    if name in (kernels.FLASH, kernels.EFFICIENT, kernels.CUDNN):
        return _attend(name, args, kwargs)
    if name == "is_pinned":
        return False
    host_args, host_kwargs = tree_unflatten([x.values if isinstance(x, CudaTensor) else x for x in flat], spec)
    if asked is not None:
        host_kwargs = {**host_kwargs, "device": torch.device("cpu")}
    with _device_rules(name, on_device):
        out = func(*host_args, **host_kwargs)
    _count(name, args, kwargs, on_device, on_host, to_device)
    if to_device and not dtypes["float64"] and any(getattr(x, "dtype", None) == torch.float64 for x in tree_flatten(out)[0]):
        raise log.fault(name, "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    if any(part.alias_info is not None and part.alias_info.is_write for part in func._schema.returns):  # in place
        given = {id(x.values): x for x in on_device}
        return tree_map(lambda x: given.get(id(x), x), out)
    if name == "copy_":
        return args[0]
    if not to_device:
        return out
    return tree_map(lambda x: CudaTensor(x) if isinstance(x, Tensor) and not isinstance(x, CudaTensor) else x, out)


@contextlib.contextmanager
def _device_rules(name: str, on_device: list[CudaTensor]) -> Any:
    """Operators that the CPU has and CUDA has not, or not for a dtype."""
    if name in ("_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_cholesky_ex") and on_device[0].dtype in kernels.HALF:
        raise log.fault(name, f'"{name}_cuda" not implemented for {str(on_device[0].dtype)!r}')
    if name in ("_fft_r2c", "_fft_c2c", "_fft_c2r") and on_device[0].dtype == torch.bfloat16:
        raise log.fault(name, "Unsupported dtype BFloat16")
    if name == "bincount" and on_device[0].dtype.is_floating_point:
        raise log.fault(name, '"bincount_cuda" not implemented for floating points')
    yield


def _count(name: str, args: Any, kwargs: Any, on_device: list[CudaTensor], on_host: list[Tensor], to_device: bool) -> None:
    if name in COPIES:
        source, target = args[1 if name == "copy_" else 0], args[0]
        came = isinstance(source, CudaTensor)
        goes = isinstance(target, CudaTensor) if name == "copy_" else to_device
        if came and not goes:
            log.add(TO_HOST, name)
        elif goes and not came and source.numel():
            free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            log.add(TO_DEVICE, f"{name} pinned" if free and is_pinned(source) else name)
        if not goes:
            return
    if name in INDEXING:
        for x in on_host:
            if x.ndim:
                log.add(TO_DEVICE, name)
        if any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1] or ()):
            log.add(WAIT, f"{name} by mask")
    if name in WAITS:
        log.add(WAIT, name)
    if name not in FREE:
        log.add(LAUNCH, name)


def _attend(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    q, k, v = args[:3]
    mask = kernels.mask_of(name, args, kwargs)
    if (reason := kernels.refusal(name, q, k, v, mask)) is not None:
        raise log.fault(name, reason)
    log.add(LAUNCH, name)
    log.attention[name, tuple(q.shape), tuple(k.shape)] += 1
    done = kernels.attend(name, q.values, k.values, v.values, None if mask is None else mask.values)
    output, lse, seed = CudaTensor(done.output), CudaTensor(done.lse), CudaTensor(torch.zeros((), dtype=torch.long))
    if name == kernels.EFFICIENT:
        return output, lse, seed, seed
    return output, lse, None, None, q.shape[2], k.shape[2], seed, seed, CudaTensor(torch.empty(0))
