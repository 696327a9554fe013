"""Leaving a network exactly as it was found.

Every function of this package that runs somebody's network runs it inside :func:`undisturbed`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device; of one that has none torch would raise instead."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


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


# The network inside :func:`undisturbed`, the innermost, and its modules.
_STILL: ContextVar[tuple[nn.Module, list[nn.Module]] | None] = ContextVar("_STILL", default=None)


def every_module(module: nn.Module) -> list[nn.Module]:
    """Every module once, in no particular order. A flat walk: this runs before each explanation,
    and the nested generators of ``module.modules()`` would cost as much as a small network. Inside
    :func:`undisturbed`, where nothing is exchanged, they have been found already.
    """
    still = _STILL.get()
    return still[1] if still is not None and still[0] is module else _walked(module)


def _walked(module: nn.Module) -> list[nn.Module]:
    found = {module: None}
    waiting = [module]
    while waiting:
        children = waiting.pop()._modules
        if children:
            new = [child for child in children.values() if child is not None and child not in found]
            found.update(dict.fromkeys(new))
            waiting += new
    return list(found)


def _devices(tensors: Iterable[Tensor]) -> list[int]:
    """CUDA devices whose random state the network could touch."""
    return sorted({t.device.index or 0 for t in tensors if t.is_cuda})


def eager() -> AbstractContextManager[object]:
    """Run what was compiled as it was written: compiled code ignores hooks added afterwards.

    Nothing can have been compiled before the compiler was imported, which takes a second.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def check_ready(module: nn.Module) -> None:
    """Say what cannot be looked into, before anything is done.

    Raises:
        InputError: when parameters have no shape yet, were created under ``torch.inference_mode``,
            or a part is TorchScript.
    """
    _checked_parameters(every_module(module))


def _checked_parameters(modules: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters, each once, if all can be used."""
    if any(issubclass(kind, torch.jit.ScriptModule) for kind in set(map(type, modules))):
        raise InputError(
            "a part of this network is TorchScript, whose layers cannot be observed; build the "
            "network with the nn.Module it was scripted or traced from"
        )
    found: dict[int, nn.Parameter] = {}
    for each in modules:
        for parameter in each._parameters.values():
            if parameter is None:
                continue
            found[id(parameter)] = parameter
            # The type first: asking whether something is an instance of a kind of parameter is slow.
            if type(parameter) is not nn.Parameter and isinstance(
                parameter, nn.parameter.UninitializedParameter
            ):
                raise InputError(
                    f"the {type(each).__name__} of this network is lazy and has no weights yet; "
                    "run the network once on an input of its size first"
                )
            if parameter.is_inference():
                raise InputError(
                    "the network's parameters were created under torch.inference_mode() and "
                    "cannot take part in a gradient; build or load the network outside of it"
                )
    return list(found.values())


@contextmanager
def _copied_buffers(modules: list[nn.Module]) -> Iterator[None]:
    """Let the network work on copies of its buffers, and give it its own back.

    Entered where gradients are off, so that the copies belong to no graph.

    Looking for changes afterwards would not do: writing through ``.data``, or moving a batch norm's
    statistics, leaves no version behind; and writing back what did not change would spoil a graph
    that the caller still wants to differentiate.
    """
    # Each module gets another dictionary for as long, and its own back as it was. Those that have no
    # buffers as well: they may be given some.
    owners = [(m.__dict__, m._buffers) for m in modules]
    # A buffer that two layers share stays shared, and so does a dictionary of them.
    copies: dict[int, Tensor] = {}
    all_lent: dict[int, dict[str, Tensor | None]] = {}
    try:
        for own, kept in owners:
            if id(kept) in all_lent:
                own["_buffers"] = all_lent[id(kept)]
                continue
            own["_buffers"] = lent = all_lent[id(kept)] = dict(kept)
            for key, buffer in kept.items():
                # Those made in inference mode could take no part in a graph; their copies can.
                if buffer is not None:
                    if id(buffer) not in copies:
                        copies[id(buffer)] = buffer.clone()
                    lent[key] = copies[id(buffer)]
        yield
    finally:
        for own, kept in owners:
            own["_buffers"] = kept


@contextmanager
def rehearsing(module: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Run a network once more, inside :func:`undisturbed`, for something that is not its answer.

    The block leaves no trace in its buffers and in the random state, and no hook sees it.

    Args:
        module: an unwrapped network.
        inputs: what it will be run on; only its device matters.
    """
    with trying(module, inputs), _without_hooks(every_module(module)):
        yield


@contextmanager
def trying(module: nn.Module, inputs: Tensor) -> Iterator[None]:
    """As :func:`rehearsing`, but hooks stay.

    Args:
        module, inputs: as for :func:`rehearsing`.
    """
    with torch.random.fork_rng(devices=_devices([inputs])), _copied_buffers(every_module(module)):
        yield


@contextmanager
def _without_hooks(modules: list[nn.Module]) -> Iterator[None]:
    hooked = [
        (vars(m), kind, vars(m)[kind])
        for m in modules
        for kind in ("_forward_pre_hooks", "_forward_hooks")
        if vars(m)[kind]
    ]
    try:
        for own, kind, _ in hooked:
            own[kind] = OrderedDict()
        yield
    finally:
        for own, kind, hooks in hooked:
            own[kind] = hooks


@contextmanager
def _in_one_place(modules: list[nn.Module]) -> Iterator[None]:
    """Let data-parallel parts run here: hooks do not know their replicas, which run in threads."""
    spread = [(m, m.device_ids) for m in modules if isinstance(m, nn.DataParallel)]
    try:
        for part, _ in spread:
            part.device_ids = []
        yield
    finally:
        for part, devices in spread:
            part.device_ids = devices


@contextmanager
def _restored_flags(modules: list[nn.Module], parameters: list[nn.Parameter]) -> Iterator[None]:
    """Eval mode and no parameter gradients for the length of the block.

    Flags are set one by one: ``module.eval()`` may be overridden, and a layer that its owner keeps
    in another mode than the rest must come back in that mode.
    """
    training = [m.training for m in modules]
    trainable = [p for p in parameters if p.requires_grad and p.is_leaf]
    try:
        for m in modules:
            if m.training:
                m.training = False
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for m, flag in zip(modules, training, strict=True):
            if m.training is not flag:
                m.training = flag
        for p in trainable:
            p.requires_grad_(True)


# Hooks, modes and buffers are the network's; the random state, the compiler's stance and what
# torch.fx exchanges while it reads a network are the whole process's.
_TURN = threading.RLock()


def _end_turns_of_others() -> None:
    """In a process that was forked no other thread is left to end its turn."""
    global _TURN
    if _TURN.acquire(blocking=False):  # nobody's, or that of the thread that forked
        _TURN.release()
    else:
        _TURN = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_turns_of_others)


@contextmanager
def undisturbed(module: nn.Module, inputs: Tensor | None = None) -> Iterator[None]:
    """Run ``module`` in eval mode inside the block and leave no trace of it.

    One thread at a time: others wait until it has left the block, whatever network they hold.

    Restored on the way out, after success and after any exception: each submodule's ``training``
    flag, each ``requires_grad``, buffers, the gradient and inference modes
    and the random state of the CPU and of the devices involved. Gradients (``.grad``) are never
    written, because only :func:`torch.autograd.grad` is used inside such blocks.

    Inside, inference mode is off (its tensors cannot be saved for a backward pass) and gradients
    are off until the block turns them on; compiled parts run as they were written, and data-parallel
    ones in one place.

    Args:
        module: an unwrapped network, see :func:`unwrap`.
        inputs: what it will be run on; only its device matters.

    Raises:
        InputError: for a network that is not ready, see :func:`check_ready`.
    """
    modules = _walked(module)
    parameters = _checked_parameters(modules)
    devices = _devices(parameters if inputs is None else [*parameters, inputs])
    with ExitStack() as stack:
        stack.enter_context(_TURN)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager())
        stack.enter_context(_copied_buffers(modules))
        stack.enter_context(_restored_flags(modules, parameters))
        stack.enter_context(_in_one_place(modules))
        stack.enter_context(_still(module, modules))
        yield


@contextmanager
def _still(module: nn.Module, modules: list[nn.Module]) -> Iterator[None]:
    """Spare whoever asks inside the block for the network's modules to look for them again."""
    before = _STILL.get()
    try:
        _STILL.set((module, modules))
        yield
    finally:
        _STILL.set(before)
