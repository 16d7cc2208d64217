"""Memory without a GPU: torch's operators on tensors that have sizes and no content, and what of them lives.

:func:`without_content` lets a processor's torch run code as a GPU's would, as far as memory goes: tensors are
fake (torch's FakeTensorMode), attention and RMS norms are CUDA's kernels, and autocast keeps CUDA's lists.
A :class:`Meter` adds up the storages that live. It sees what torch allocates as tensors, and not what is in a
kernel (cuDNN's workspaces), what the allocator rounds up and holds in pieces, or the CUDA context.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GIB = 2**30


class Meter(TorchDispatchMode):
    """Bytes of live storage, ``now`` and at the ``peak``.

    A storage counts from the first operator that returns a tensor in it until it is freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        result = self._result(func, args, kwargs)
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def peak_of(self, work: Callable[[], Any]) -> int:
        """The most that lives while ``work`` runs, with what lived before."""
        self.peak = self.now
        work()
        return self.peak


class _FakeMeter(Meter):
    """Of tensors without content, where code may ask for the content of small ones."""

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            result = func(*_rows_by_number(func, args), **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return _from_content(func, args, kwargs)
        _remember(result, func, args, kwargs)
        return result


# Small tensors that follow from no weight and no picture keep their content beside them (``content``): masks,
# lengths of captions, positions, times. Code that asks for it gets it.


def _content(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "content", None) if isinstance(tensor, FakeTensor) else tensor


def _as_content(one: Any) -> Any:
    return _content(one) if isinstance(one, Tensor) else one


def _is_known(args: Any, kwargs: Any) -> bool:
    leaves = tree_leaves((args, kwargs))
    return all(_content(leaf) is not None for leaf in leaves if isinstance(leaf, Tensor))


def _remember(result: Any, func: Any, args: Any, kwargs: Any) -> None:
    """Compute the content of a small result, where that of all that it follows from is known."""
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, FakeTensor)]
    if any(leaf.numel() > (2_000 if leaf.is_floating_point() else 50_000) for leaf in leaves):
        return
    if not _is_known(args, kwargs):
        if func._schema.is_mutable:
            for leaf in leaves:
                leaf.__dict__.pop("content", None)
        return
    with unset_fake_temporarily():
        try:
            contents = func(*tree_map(_as_content, args), **tree_map(_as_content, kwargs))
        except NotImplementedError:
            return  # a kernel that a processor does not have
    for leaf, content in zip(leaves, tree_leaves(contents), strict=False):
        leaf.content = content


def _from_content(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator gives whose result has a size, or is a number, that follows from content."""
    if not _is_known(args, kwargs):
        if func is torch.ops.aten.nonzero.default:  # which expert a token goes to, of four
            return torch.zeros((args[0].numel() // 4, args[0].ndim), dtype=torch.long)
        raise DataDependentOutputException(func)
    with unset_fake_temporarily():
        content = func(*tree_map(_as_content, args), **tree_map(_as_content, kwargs))
    if not isinstance(content, Tensor):
        return content
    result: Any = torch.empty(content.shape, dtype=content.dtype)
    result.content = content
    return result


def _rows_by_number(func: Any, args: Any) -> Any:
    """tensor[mask] as the rows that the mask picks, where it is known."""
    if func is not torch.ops.aten.index.Tensor or len(args[1]) != 1 or args[1][0].dtype != torch.bool:
        return args
    mask = _content(args[1][0])
    if mask is None:
        return args
    with unset_fake_temporarily():
        rows = list(mask.nonzero(as_tuple=True))
    return (args[0], rows)


class CudaKernels:
    """Attention and RMS norm by the kernels that CUDA takes, of which a processor would take others.

    Attention: flash for 16 bits without a mask and heads of at most 256 numbers, else the memory-efficient
    kernel, which has no such limits; the trainer switches cuDNN's off. Neither writes the scores. ``paths``
    counts which were taken.
    """

    def __init__(self) -> None:
        self.paths: dict[str, int] = {}

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (one.to(torch.get_autocast_dtype("cpu")) for one in (query, key, value))
        if enable_gqa:
            key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
        if query.ndim == 3:  # one head
            return self.attend(*(one[:, None] for one in (query, key, value)), scale=scale)[:, 0]
        width = query.shape[-1]
        half = query.dtype in (torch.float16, torch.bfloat16)
        name = "flash" if half and attn_mask is None and width <= 256 else "efficient"
        self.paths[name] = self.paths.get(name, 0) + 1
        if width % 8:
            scale = width**-0.5 if scale is None else scale
            query, key, value = (nn.functional.pad(one, (0, -width % 8)) for one in (query, key, value))
        if name == "flash":
            out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
            return out[..., :width]
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:  # torch makes numbers of it for this kernel
                numbers = torch.zeros_like(attn_mask, dtype=query.dtype)
                attn_mask = numbers.masked_fill_(~attn_mask, -torch.inf)
            attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        learns = torch.is_grad_enabled() and query.requires_grad
        out = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale
        )[0]
        return out[..., :width]

    @staticmethod
    def rms_norm(
        input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            input, weight = input.float(), weight.float() if weight is not None else None
        out: Tensor = torch.ops.aten._fused_rms_norm(input, list(normalized_shape), weight, eps)[0]
        return out


_FP32 = (
    *("exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "tan", "softplus"),
    *(
        "pow.Tensor_Scalar",
        "pow.Tensor_Tensor",
        "pow.Scalar",
        "layer_norm",
        "native_layer_norm",
        "group_norm",
    ),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "logsumexp"),
)
"""What CUDA's autocast computes in fp32 and a processor's in the format that comes (ATen/autocast_mode.h)."""
_TOLD_FP32 = ("softmax.int", "log_softmax.int", "cumsum", "sum", "sum.dim_IntList", "linalg_vector_norm")
"""The same, by their argument ``dtype``."""


@contextmanager
def _cuda_autocast() -> Iterator[None]:
    """Inside this block torch.autocast("cpu") does what autocast does on CUDA."""
    library = torch.library.Library("aten", "IMPL")
    outside = DispatchKeySet(DispatchKey.AutocastCPU)

    def wider(one: Any) -> Any:
        low = isinstance(one, Tensor) and one.is_floating_point() and one.dtype != torch.float64
        return one.float() if low else one

    def in_fp32(operator: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _ExcludeDispatchKeyGuard(outside):
                return operator(*map(wider, args), **{name: wider(one) for name, one in kwargs.items()})

        return call

    def told(operator: Any) -> Callable[..., Any]:
        def call(*args: Any, dtype: Any = None, **kwargs: Any) -> Any:
            floating = args[0].is_floating_point() and args[0].dtype != torch.float64
            with _ExcludeDispatchKeyGuard(outside):
                return operator(*args, dtype=dtype or (torch.float32 if floating else None), **kwargs)

        return call

    def told_softmax(operator: Any) -> Callable[..., Any]:
        def call(input: Tensor, dim: int, dtype: Any = None) -> Any:
            with _ExcludeDispatchKeyGuard(outside):
                return operator(input, dim, dtype or torch.float32)

        return call

    for name in (*_FP32, *_TOLD_FP32):
        base, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, base), overload or "default")
        kind = told_softmax if "softmax" in name else told if name in _TOLD_FP32 else in_fp32
        library.impl(name, kind(operator), "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which exchanges the insides of parameters; fake ones do not take that."""
    for child in module.children() if recurse else ():
        _apply(child, fn)
    for name, one in module._parameters.items():
        if one is not None and (new := fn(one.detach())) is not one and new.dtype != one.dtype:
            module._parameters[name] = nn.Parameter(new, one.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


@contextmanager
def without_content() -> Iterator[tuple[Meter, CudaKernels]]:
    """Inside this block tensors have no content, what lives of them is metered, and kernels are CUDA's."""
    meter, kernels = _FakeMeter(), CudaKernels()
    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(_cuda_autocast())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(meter)
        stack.enter_context(patch.object(nn.functional, "scaled_dot_product_attention", kernels.attend))
        stack.enter_context(patch.object(nn.functional, "rms_norm", kernels.rms_norm))
        yield meter, kernels
