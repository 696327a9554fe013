"""What may be given to a network, checked before anything is computed."""

from __future__ import annotations

import inspect
import math
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import is_autocast
from torchviz_cnn.naming import known
from torchviz_cnn.words import a, counted, one_line

if TYPE_CHECKING:
    from torchviz_cnn.models import Model


_WRAP = (
    "networks of one tensor are looked into: wrap one that takes more in a module whose forward "
    "takes the pictures alone and gives it the rest; capture() watches any call of it as it is"
)


def check_inputs(model: nn.Module | Model, module: nn.Module, inputs: object) -> Tensor:
    """The images out of any graph and out of inference mode; the numbers are still the caller's.

    Raises:
        InputError: unless they are a floating-point tensor ``(N, C, H, W)`` or ``(N, H, W)`` with
            at least one image, of finite numbers, on the network's device and of its dtype; of
            the size of a Model. What a bare module's layers cannot take is told when they run,
            see :func:`misfits_explained`.
    """
    if not isinstance(inputs, Tensor):
        several = isinstance(inputs, tuple | Mapping)
        raise InputError(
            f"inputs must be a tensor (N, C, H, W), not {a(type(inputs).__name__)}; "
            + (_WRAP if several else "model.preprocess(picture) makes one")
        )
    shape = "(" + ", ".join(map(str, inputs.shape)) + ")"
    if inputs.ndim not in (3, 4) or 0 in inputs.shape:
        raise InputError(f"inputs must be (N, C, H, W), at least one image, not {shape}")
    if not inputs.is_floating_point():
        raise InputError(
            f"inputs must be floating point, not {inputs.dtype}; scale and normalise the pictures "
            "as the network was trained, model.preprocess(picture) does"
        )
    size = known(model, "input_size")
    if size is not None and (inputs.ndim != len(size) + 1 or inputs.shape[1:-2] != size[:-2]):
        expected = ", ".join(["N", *map(str, size)])
        raise InputError(f"this network takes ({expected}), not {shape}")
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        if parameter.device != inputs.device:
            raise InputError(
                f"the network is on {parameter.device} and the inputs are on {inputs.device}; "
                f"move them with inputs.to({str(parameter.device)!r})"
            )
        if parameter.dtype != inputs.dtype and not is_autocast(inputs.device):
            raise InputError(
                f"the network is {parameter.dtype} and the inputs are {inputs.dtype}; "
                f"convert them with inputs.to({parameter.dtype})"
            )
    if not _all_finite(inputs.detach()):
        raise InputError(
            "inputs hold NaN or infinite numbers, of which every map would be made; "
            "look at how the pictures were scaled"
        )
    if not inputs.is_inference():
        return inputs.detach()
    with torch.inference_mode(False), torch.no_grad():
        return inputs.clone()


def _all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite: a finite sum has finite terms, and is had in one pass.

    An infinite sum may also come of large numbers, so then each is looked at.
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def checked_size(size: object) -> tuple[int, ...]:
    """The size of one image as plain numbers.

    Raises:
        InputError: unless it is two or three positive whole numbers.
    """
    if (
        isinstance(size, str | Tensor)
        or not isinstance(size, Sequence)
        or len(size) not in (2, 3)
        or not all(isinstance(n, int | np.integer) and n >= 1 for n in size)
        or math.prod(int(n) for n in size) > 2**28
    ):
        raise InputError.about(
            "input_size",
            "must be (channels, height, width) of one image, or (height, width) for a network "
            f"without a channel axis, positive whole numbers (at most {2**28:,} in all), not {size!r}",
        )
    return tuple(int(n) for n in size)


def place_and_kind(module: nn.Module) -> dict[str, Any]:
    """Device and floating-point dtype of what a network takes: those of its first parameter."""
    tensors = [*module.parameters(), *module.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    return {"device": like.device, "dtype": like.dtype}


def blank(module: nn.Module, size: Sequence[int]) -> Tensor:
    """One empty picture of a size that a network can be run on."""
    return torch.zeros(1, *size, **place_and_kind(module))


def _misfit(what: str, module: nn.Module, given: Tensor) -> str | None:
    """Why a layer cannot take a tensor, if it cannot."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        axis, takes, unit = -3, module.in_channels, "channel"
    elif isinstance(module, nn.BatchNorm2d):
        axis, takes, unit = -3, module.num_features, "channel"
    elif isinstance(module, nn.Linear):
        axis, takes, unit = -1, module.in_features, "feature"
    else:
        return None
    has = given.shape[axis] if given.ndim >= -axis else None
    if has is None or has == takes:
        return None
    return f"{what} takes {counted(takes, unit)} and is reached by {has}"


@contextmanager
def misfits_explained(module: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Turn torch's error about shapes into a sentence that names the layer and the inputs.

    Costs nothing unless something fails.

    Raises:
        InputError: in place of an error that comes from inputs of a wrong size, or from a network
            that takes more than one.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except TypeError as error:
        if not (missing := _needs_besides(module)):
            raise
        fault = f"this network's forward needs {' and '.join(missing)} besides the pictures"
        raise InputError(
            f"{fault}; {_WRAP}",
            typed=f"{fault}; name a package.module:factory whose network takes the pictures alone "
            "and gives it the rest",
        ) from error
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = None if isinstance(error, InputError) else _reason(module, error)
        if reason is None:
            raise
        shape = ", ".join(["N", *map(str, inputs.shape[1:])])
        count = _pictures_given(error)
        of_channels = re.search(r"\bchannels? and is reached by", reason)
        if count in (None, len(inputs)) or of_channels:
            raise InputError(
                f"the network cannot take inputs of shape ({shape}): {reason}; give pictures with "
                "the channels and the size it was built for"
            ) from error
        fault = f"the network cannot take {count} pictures of shape ({shape}) at once: {reason}"
        rest = "that it takes, or pictures with the channels and the size it was built for"
        raise InputError(
            f"{fault}; give the batch_size {rest}", typed=f"{fault}; give the --batch-size {rest}"
        ) from error


def _needs_besides(module: nn.Module) -> list[str]:
    """The arguments without a default, but for the first, of a network's ``forward``."""
    try:
        _, *rest = inspect.signature(module.forward).parameters.values()
    except ValueError:  # without arguments, or written in C
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [repr(p.name) for p in rest if p.default is p.empty and p.kind not in variadic]


_ABOUT_SIZES = re.compile(
    r"\b(sizes?|shapes?|dim(ension)?s?|channels?|kernel|spatial|[1-5]D)\b", re.I
)


def _reason(root: nn.Module, error: Exception) -> str | None:
    """Which layer could not take what reached it, and why; ``None`` where that is not the matter.

    A layer of torch's own that fails with words about sizes was given something of a wrong size, and
    a network that asserts something asserts it of its inputs; all else is the network's own affair.
    """
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, AssertionError):
        return words if _called_modules(error) else None
    called = _called_modules(error)
    if not called or not _innermost_file(error).startswith(str(Path(torch.__file__).parent)):
        return None
    layer, args = called[-1]
    name = next((name for name, child in root.named_modules() if child is layer), "")
    what = f"the layer {name!r}" if name else f"this {type(layer).__name__}"
    if not type(layer).__module__.startswith("torch.nn."):
        return None
    given = args[0] if args else None
    if isinstance(given, Tensor) and (sentence := _misfit(what, layer, given)):
        return sentence
    return f"{what} ({type(layer).__name__}) says: {words}" if _ABOUT_SIZES.search(words) else None


def _called_modules(error: Exception) -> list[tuple[nn.Module, tuple[Any, ...]]]:
    """The modules that were running when an error was raised, and what they were given."""
    called = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_call_impl":
            here = trace.tb_frame.f_locals
            if isinstance(here.get("self"), nn.Module):
                called.append((here["self"], here.get("args", ())))
        trace = trace.tb_next
    return called


def _pictures_given(error: Exception) -> int | None:
    """How many pictures the network was given when it raised an error."""
    called = _called_modules(error)
    given = called[0][1][:1] if called else ()
    return len(given[0]) if given and isinstance(given[0], Tensor) and given[0].ndim else None


def network_failure(error: Exception) -> str | None:
    """A sentence for an error that a network's own code raised; ``None`` for one of this library."""
    here = str(Path(__file__).parent)
    if not _called_modules(error) or _innermost_file(error).startswith(here):
        return None
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"the network failed when it was run: {one_line(error)} "
        f"({where.filename}, line {where.lineno})"
    )


def _innermost_file(error: Exception) -> str:
    """The file in which an error was raised."""
    trace = error.__traceback__
    file = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_name.startswith("__torch_"):  # where this library looks on
            file = code.co_filename
        trace = trace.tb_next
    return file


@contextmanager
def batch_axis_required(module: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Refuse a ``(C, H, W)`` picture given as if it were N pictures without a channel axis.

    A convolution takes both, so the network would run and explain something else. What tells them
    apart is what reaches the first convolution: three axes mean the batch axis was forgotten.
    """
    handles = []

    def refuse(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            fault = (
                f"inputs of shape {tuple(inputs.shape)} reached a convolution without a batch axis"
            )
            raise InputError(
                f"{fault}; give (N, C, H, W): inputs[None] for one picture, inputs[:, None] for N "
                "gray ones",
                typed=f"{fault}; give --input-size with the channels, such as 1x28x28",
            )

    if inputs.ndim == 3:
        handles = [
            m.register_forward_pre_hook(refuse)
            for m in module.modules()
            if isinstance(m, nn.Conv2d)
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
