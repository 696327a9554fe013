"""Leaving a network exactly as it was found.

Every function of this package that runs somebody's network runs it inside :func:`undisturbed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    Hooks put on the wrapper of a compiled network are ignored, and replicas of a data-parallel one
    run in other threads: both would give nonsense without a word, so the original is used.

    Raises:
        InputError: for TorchScript, whose layers cannot be hooked.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError(
                "this network is TorchScript, whose layers cannot be observed; "
                "pass the nn.Module it was scripted or traced from"
            )
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model


def every_module(module: nn.Module) -> list[nn.Module]:
    """Every module once, in no particular order. A flat walk: this runs before each explanation,
    and the nested generators of ``module.modules()`` would cost as much as a small network.
    """
    found: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found[current] = None
            waiting.extend(child for child in current._modules.values() if child is not None)
    return list(found)


def _parameters(modules: list[nn.Module]) -> list[nn.Parameter]:
    found = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
    return list(found.values())


def _devices(tensors: Iterable[Tensor]) -> list[int]:
    """CUDA devices whose random state the network could touch."""
    return sorted({t.device.index or 0 for t in tensors if t.is_cuda})


@contextmanager
def _restored_buffers(modules: list[nn.Module]) -> Iterator[None]:
    # PyTorch's own layers write their buffers (running statistics) in training mode only, so a
    # plain ResNet is not copied at every call.
    kept = [
        (owner._buffers, key, buffer, buffer._version, buffer.detach().clone())
        for owner in modules
        if owner._buffers and not type(owner).__module__.startswith("torch.nn.modules.")
        for key, buffer in owner._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, key, buffer, version, copy in kept:
                if buffer._version != version:
                    buffer.copy_(copy)
                if buffers.get(key) is not buffer:
                    buffers[key] = buffer


@contextmanager
def _restored_flags(modules: list[nn.Module], parameters: list[nn.Parameter]) -> Iterator[None]:
    """Eval mode, no parameter gradients and no compiled call, for the length of the block.

    Flags are set one by one: ``module.eval()`` may be overridden, and a layer that its owner keeps
    in another mode than the rest must come back in that mode.
    """
    training = [m for m in modules if m.training]
    # module.compile() in place has no wrapper to take off, and ignores hooks added afterwards.
    compiled = [(m, m._compiled_call_impl) for m in modules if m._compiled_call_impl is not None]
    trainable = [p for p in parameters if p.requires_grad and p.is_leaf]
    try:
        for m in training:
            m.training = False
        for m, _ in compiled:
            m._compiled_call_impl = None
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for m in training:
            m.training = True
        for m, call in compiled:
            m._compiled_call_impl = call
        for p in trainable:
            p.requires_grad_(True)


@contextmanager
def undisturbed(module: nn.Module, inputs: Tensor | None = None) -> Iterator[None]:
    """Run ``module`` in eval mode inside the block and leave no trace of it.

    Restored on the way out, after success and after any exception: each submodule's ``training``
    flag, each ``requires_grad``, in-place compilation, buffers, the gradient and inference modes
    and the random state of the CPU and of the devices involved. Gradients (``.grad``) are never
    written, because only :func:`torch.autograd.grad` is used inside such blocks.

    Inside, inference mode is off (its tensors cannot be saved for a backward pass) and gradients
    are off until the block turns them on.

    Args:
        module: an unwrapped network, see :func:`unwrap`.
        inputs: what it will be run on; only its device matters.

    Raises:
        InputError: if the parameters were created under ``torch.inference_mode``.
    """
    modules = every_module(module)
    parameters = _parameters(modules)
    if any(p.is_inference() for p in parameters):
        raise InputError(
            "the network's parameters were created under torch.inference_mode() and cannot take "
            "part in a gradient; build or load the network outside of it"
        )
    devices = _devices(parameters if inputs is None else [*parameters, inputs])
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_restored_buffers(modules))
        stack.enter_context(_restored_flags(modules, parameters))
        yield
