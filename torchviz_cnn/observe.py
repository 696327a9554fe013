"""Looking at what named layers put out, and at the gradient that comes back to them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import eager, undisturbed
from torchviz_cnn.inputs import batch_axis_required, check_inputs, misfits_explained
from torchviz_cnn.naming import Layer, module_of, original_name, resolve, split_call
from torchviz_cnn.pooling import without_indices
from torchviz_cnn.words import a, counted

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

LayerChoice = str | nn.Module | Iterable[str | nn.Module]


def first_tensor(output: object) -> Tensor | None:
    """The tensor a layer puts out; the first one where it returns a tuple or list."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def replace_first_tensor(output: Any, tensor: Tensor) -> Any:
    """``output`` with its first tensor exchanged, so that it can be handed downstream."""
    if isinstance(output, Tensor):
        return tensor
    rest = [tensor, *output[1:]]
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


class NotSeen(InputError, KeyError):  # noqa: N818 - it is a finding about a pass
    """Nothing was seen by that name. A ``KeyError`` too: ``in`` and ``get`` ask for nothing else."""

    __str__ = Exception.__str__  # KeyError's puts the sentence in quotes


class _Kept:
    """A layer's output and, once a backward pass has run, its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.gradient: Tensor | None = None


class Gradients(Mapping[str, Tensor]):
    """Gradients by layer name, as far as a backward pass has reached the layers."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation

    def __getitem__(self, name: str) -> Tensor:
        kept = self._observation._find(name)
        if not self._observation._wanted:
            raise NotSeen(
                "gradients were not asked for; use capture(model, layers, gradients=True)"
            )
        if kept.gradient is None:
            raise NotSeen(
                f"no gradient has come back to {name!r}: call backward() on a score computed "
                "inside the block, with gradients enabled, that depends on this layer"
            )
        return kept.gradient

    def __iter__(self) -> Iterator[str]:
        return (k for k, kept in self._observation._kept.items() if kept.gradient is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return _listed("Gradients", self)


class Observation(Mapping[str, Tensor]):
    """What the layers put out, by name: ``seen["layer4"]``, ``seen["relu@1"]``.

    Attributes:
        gradients: the gradient of what was differentiated with respect to each output, same names
            and shapes, once ``backward()`` has run.
    """

    def __init__(self, module: nn.Module, *, gradients: bool) -> None:
        self._module = module
        self._wanted = gradients
        self._kept: dict[str, _Kept] = {}
        self.gradients = Gradients(self)

    def _normal(self, name: str) -> tuple[str, int | None]:
        base, call = split_call(self._module, name)
        return original_name(self._module, base), call

    def _find(self, name: str) -> _Kept:
        if not isinstance(name, str):
            raise NotSeen(f"a layer is named by a string here, not by {name!r}")
        if name in self._kept:
            return self._kept[name]
        try:
            wanted = self._normal(name)
        except InputError as error:
            raise NotSeen(str(error), typed=error.typed) from None
        for key, kept in self._kept.items():  # asked for by the other of its two names
            if self._normal(key) == wanted:
                return kept
        raise NotSeen(
            f"nothing was seen of {name!r}: it was not among the layers asked for, or did not run "
            f"in this block"
        )

    def __getitem__(self, name: str) -> Tensor:
        return self._find(name).tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return _listed("Observation", self)


def _listed(title: str, tensors: Mapping[str, Tensor], most: int = 20) -> str:
    """Names and shapes of what was seen, a line each."""
    names = list(tensors)
    lines = [f"{title} of {counted(len(names), 'layer')}"]
    lines += [f"  {name}: {tuple(tensors[name].shape)}" for name in names[:most]]
    if len(names) > most:
        lines.append(f"  … and {len(names) - most} more")
    return "\n".join(lines)


class _Hooks:
    """Forward hooks on named modules that put what they see into an :class:`Observation`."""

    def __init__(
        self, seen: Observation, layers: list[Layer], when_done: Callable[[], None] | None = None
    ) -> None:
        self.seen = seen
        self.when_done = when_done
        self.by_module: dict[nn.Module, list[Layer]] = {}
        for layer in layers:
            self.by_module.setdefault(layer.module, []).append(layer)
        self.calls: dict[nn.Module, int] = {}
        self.pending: set[tuple[str, int | None]] = set()
        # The last tensor handed downstream and what was kept for it: a container often returns
        # the very tensor its last child returned, and needs no second copy.
        self.last: tuple[ReferenceType[Tensor], int, _Kept] | None = None
        self.layers = layers
        self.within = -1  # the backward pass that the forward pass is a part of

    def attach(self, root: nn.Module) -> list[Any]:
        handles: list[Any] = [root.register_forward_pre_hook(self.restart)]
        handles += [m.register_forward_hook(self.look) for m in self.by_module]
        return handles

    def is_recomputed(self) -> bool:
        """Whether a checkpointed part runs once more, in the backward pass of what was seen of it.

        A network that ran without a graph at first is seen anew: its gradients come from there.
        """
        if torch._C._current_graph_task_id() in (-1, self.within):
            return False
        with_graph = (kept.tensor.requires_grad for kept in self.seen._kept.values())
        return not self.seen._wanted or any(with_graph)

    def restart(self, *_: object) -> None:
        """A new forward pass of the whole network: calls are counted from the beginning."""
        if self.is_recomputed():
            return
        self.within = torch._C._current_graph_task_id()
        self.calls = dict.fromkeys(self.by_module, 0)
        self.pending = {(layer.name, layer.call) for layer in self.layers}
        self.last = None
        self.seen._kept.clear()

    def look(self, module: nn.Module, inputs: tuple[Any, ...], output: object) -> object:
        if self.is_recomputed():
            return None
        call = self.calls.get(module, 0)
        self.calls[module] = call + 1
        wanted = [layer for layer in self.by_module[module] if layer.call in (None, call)]
        if not wanted:
            return None
        tensor = first_tensor(output)
        replacement = None
        if tensor is None:
            if explicit := [layer.name for layer in wanted if layer.explicit]:
                raise InputError(
                    f"the layer {explicit[0]!r} puts out {a(type(output).__name__)}, not a tensor"
                )
        else:
            kept, handed_on = self.keep(tensor, inputs)
            for layer in wanted:
                self.seen._kept[layer.key(call)] = kept
            if handed_on is not tensor:
                replacement = replace_first_tensor(output, handed_on)
        self.pending -= {(layer.name, layer.call) for layer in wanted}
        if self.when_done is not None and not self.pending:
            self.when_done()
        return replacement

    def keep(self, tensor: Tensor, inputs: tuple[Any, ...]) -> tuple[_Kept, Tensor]:
        """What to remember of an output, and what to hand downstream instead of it.

        An operation after the layer may write into its output (an in-place ReLU, ``out += skip``).
        What is kept is never the tensor such an operation gets to write to.
        """
        if self.last is not None and not tensor.is_inference():
            handed_on, version, kept = self.last
            if handed_on() is tensor and version == tensor._version:
                return kept, tensor
        if self.seen._wanted and torch.is_grad_enabled() and tensor.is_floating_point():
            own = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            # Others hold what the layer was given, or a parameter it puts out: they may write into
            # it, and a hook on it would outlive the block.
            if own is tensor and (tensor.is_leaf or _is_given(tensor, inputs)):
                own = tensor.clone()
            kept, result = _Kept(own), own.clone()
            own.register_hook(_gradient_hook(kept))
        else:
            kept, result = _Kept(tensor.detach().clone()), tensor
        if not result.is_inference():
            self.last = ref(result), result._version, kept
        return kept, result


def _is_given(output: Tensor, inputs: tuple[Any, ...]) -> bool:
    """Whether a layer puts out what it was given, or a view of that, as dropout and flattening do."""
    whole = output if output._base is None else output._base
    given = [each for each in inputs if isinstance(each, Tensor)]
    return any(whole is each or whole is each._base for each in given)


def _gradient_hook(kept: _Kept) -> Callable[[Tensor], None]:
    # Weak: the graph owns this hook, and kept owns a tensor of the graph. A strong reference would
    # be a cycle through C++ that Python's collector cannot see, and every call would leak.
    weak = ref(kept)

    def remember(gradient: Tensor) -> None:
        if (target := weak()) is not None:
            # Autograd may go on to add to the very tensor: it becomes the ``.grad`` of a leaf.
            target.gradient = gradient.detach().clone()

    return remember


@contextmanager
def capture(
    model: nn.Module | Model, layers: LayerChoice = "*", *, gradients: bool = False
) -> Iterator[Observation]:
    """Watch named layers while the block runs the network itself.

    The network is run, and differentiated, by the caller; its mode is left alone. Hooks end with
    the block; ``backward()`` may also be called after it. Each call of the network itself
    replaces what was seen before; where only parts of it are called (``model.features(x)``,
    ``model.forward(x)``), their runs count on from call to call. What a checkpointed part computes
    again is no run. Compiled networks run eagerly inside the block, because hooks
    added after compiling are ignored.

    Args:
        model: any network.
        layers: a name, alias, glob or module, or several of them. ``name`` is a module's first run
            in a forward pass, ``name@1`` the next, ``name@*`` all; globs mean first runs.
        gradients: keep the gradient of each output too. What is seen is then part of the graph
            (usable in ``torch.autograd.grad``); otherwise it is detached.

    Yields:
        An :class:`Observation`: name -> what that layer put out, on its device and in its shape,
        before any later in-place operation; ``.gradients`` likewise.

    Raises:
        InputError: for a layer that is not there, or a layer that does not put out a tensor.

    Example:
        >>> import torch, torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten())
        >>> with tvc.capture(net, ["0", "1"], gradients=True) as seen:
        ...     net(torch.randn(1, 1, 4, 4)).sum().backward()
        >>> seen["1"].shape, bool((seen.gradients["0"] == (seen["0"] > 0)).all())
        (torch.Size([1, 2, 2, 2]), True)
    """
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise InputError(
            "the replicas of a DataParallel network run in threads of their own and cannot be "
            "observed; capture and run model.module"
        )
    module = module_of(model)
    seen = Observation(module, gradients=gradients)
    hooks = _Hooks(seen, resolve(module, layers))
    with ExitStack() as stack:
        stack.enter_context(eager())
        for handle in hooks.attach(module):
            stack.callback(handle.remove)
        yield seen


class Enough(BaseException):
    """Every layer asked for has run. Not an Exception, lest the network's own code catch it."""


def refuse_not_run(
    chosen: Iterable[Layer], found: Container[str], calls: Mapping[nn.Module, int]
) -> None:
    """Raise for a layer asked for by its own name of which nothing was found.

    Args:
        chosen: the layers asked for.
        found: the names seen.
        calls: how often each module ran.

    Raises:
        InputError: saying how often it runs.
    """
    for layer in chosen:
        name = layer.key(layer.call or 0)
        if layer.explicit and name not in found:
            times = calls.get(layer.module, 0)
            raise InputError(
                f"{name!r} did not run: the layer runs {counted(times, 'time')} in this forward pass"
                if times
                else f"the layer {name!r} does not run in eval mode"
            )


@contextmanager
def running_to(
    module: nn.Module, chosen: list[Layer], *, gradients: bool = False
) -> Iterator[Callable[[Tensor], Observation]]:
    """Run a network as often as wanted, each time only until the last of some layers has run.

    Args:
        module: an unwrapped network, inside :func:`~torchviz_cnn.guard.undisturbed`.
        chosen: the layers to look at.
        gradients: keep what is seen part of the graph.

    Yields:
        A function of the inputs, which the network may write into, that gives what was seen.

    Raises:
        InputError: from that function, for a layer asked for by its name that did not run.
    """
    seen = Observation(module, gradients=gradients)

    def stop() -> None:
        raise Enough

    endless = any(layer.call is None for layer in chosen)
    hooks = _Hooks(seen, chosen, None if endless else stop)

    def run(inputs: Tensor) -> Observation:
        with suppress(Enough), without_indices(module):
            module(inputs)
        refuse_not_run(chosen, seen._kept, hooks.calls)
        return seen

    with ExitStack() as stack:
        for handle in hooks.attach(module):
            stack.callback(handle.remove)
        yield run


def activations(
    model: nn.Module | Model, inputs: Tensor, layers: LayerChoice = "*"
) -> dict[str, Tensor]:
    """What each of the asked layers puts out, from one forward pass in eval mode without a graph.

    The pass stops after the last layer asked for; nothing else is kept.

    Args:
        model: any network; comes back as it was.
        inputs: ``(N, C, H, W)``, or ``(N, H, W)`` where the network has no channel axis.
        layers: as for :func:`capture`.

    Returns:
        Name -> output, in the order the layers ran. Layers a glob matched that do not run in eval
        mode, or put out no tensor, are left out.

    Raises:
        InputError: for bad inputs, or a layer asked for by its name that is not there, does not run
            or puts out no tensor.

    Example:
        >>> import torch, torchviz_cnn as tvc
        >>> model = tvc.models.load("mnist_convnet")
        >>> seen = tvc.activations(model, torch.zeros(2, 1, 28, 28), ["input_layer", "conv_1"])
        >>> {name: tuple(maps.shape) for name, maps in seen.items()}
        {'input_layer': (2, 32, 26, 26), 'conv_1': (2, 64, 24, 24)}
    """
    module = module_of(model)
    chosen = resolve(module, layers)
    inputs = check_inputs(model, module, inputs)
    with ExitStack() as stack:
        stack.enter_context(misfits_explained(module, inputs))
        stack.enter_context(undisturbed(module, inputs))
        stack.enter_context(batch_axis_required(module, inputs))
        run = stack.enter_context(running_to(module, chosen))
        seen = run(inputs.clone())  # some networks write into their input
    return {name: kept.tensor for name, kept in seen._kept.items()}
