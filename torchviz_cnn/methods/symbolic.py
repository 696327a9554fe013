"""A network read by ``torch.fx``: what it does to its pictures, as a graph.

Most networks are read as they are. Where one asks how large a map is, and goes on by the answer, it
is read once more while it runs on the pictures: sizes are known then, but for how many pictures
there are. What cannot be read even so stays a module that is run as it is.
"""

from __future__ import annotations

import copy
import gc
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as _of_all_modules

from torchviz_cnn.errors import InputError
from torchviz_cnn.guard import every_module
from torchviz_cnn.methods.operations import makes_new, writes
from torchviz_cnn.methods.shapes import asks_shape

Made = list[ReferenceType[fx.Proxy]]  # stand-ins, as long as anybody holds them


class Unsuited(InputError):  # noqa: N818 - it is a finding about a network, not a fault
    """A network that cannot be computed in part; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"occlusion cannot compute this network in part: {reason}")


def read(module: nn.Module, images: Tensor) -> tuple[fx.GraphModule, bool]:
    """The network as a graph. It is read off a copy that shares its weights and nothing else.

    Args:
        module: an unwrapped network.
        images: pictures as it takes them.

    Returns:
        The graph, and whether it is one for pictures of this size only.

    Raises:
        Unsuited: where it cannot be read, or would notice being run in parts.
    """
    if _all_modules_are_hooked():
        raise Unsuited("a hook is attached to all modules")
    for each in every_module(module):
        if _hooked(each):
            raise Unsuited(f"a hook is attached to a {type(each).__name__} of it")
    made: Made = []
    try:
        graph, sized = _read(module, images, made)
    finally:
        _let_go_of(made)
    _check_writes(graph)
    graph.graph.eliminate_dead_code()  # bookkeeping, perhaps, of a whole batch
    graph.recompile()
    return graph, sized


def _read(module: nn.Module, images: Tensor, made: Made) -> tuple[fx.GraphModule, bool]:
    with suppress(Exception):  # whatever the network's own code raises when it is shown a stand-in
        return _traced(module, _Tracer(made)), False
    try:
        with _lengths_of_stand_ins(module):
            return _traced(module, _SizedTracer(made, images)), True
    except Exception as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise Unsuited(f"torch.fx cannot trace it ({words})")  # not from it: its frames hold stand-ins


def _let_go_of(made: Made) -> None:
    """Take stand-ins out of what outlives the reading: what classes, or others, keep for later."""
    if any(each() is not None for each in made):
        gc.collect()
    left = tuple(stand_in for each in made if (stand_in := each()) is not None)
    ids = {id(each) for each in left}
    for holder in gc.get_referrers(*left) if left else ():
        if type(holder) is dict:
            for key in [key for key, value in holder.items() if id(value) in ids]:
                del holder[key]
        elif type(holder) is list:
            holder[:] = [value for value in holder if id(value) not in ids]


def _traced(module: nn.Module, tracer: _Tracer) -> fx.GraphModule:
    tensors = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(t): t for t in tensors})
    graph = tracer.trace(twin, concrete_args=_defaults(module))
    tracer.check_answered()
    return fx.GraphModule(twin, graph)


class _Tracer(fx.Tracer):
    """Notes what is called in this thread: torch shows it what any thread calls meanwhile.

    Args:
        made: where its stand-ins are noted.
    """

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made
        self.asked = False  # for a truth that no graph can tell
        self.thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        stand_in = self._stand_in(node)
        self.made.append(ref(stand_in))
        return stand_in

    def _stand_in(self, node: fx.Node) -> fx.Proxy:
        return super().proxy(node)

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.asked = True
        return super().to_bool(obj)

    def check_answered(self) -> None:
        """Refuse what asks for a truth and goes on without an answer: with one it might do otherwise.

        Raises:
            ValueError: for such code.
        """
        if self.asked:
            raise ValueError("it goes on where it is not told what is true of its maps")

    @property
    def _looks_away(self) -> bool:
        return threading.get_ident() != self.thread

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._looks_away:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._looks_away:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Sized(fx.Proxy):
    """A stand-in that knows the sizes of what it stands for, but not how many pictures there are."""

    _value: Any = None  # what it stands for
    _of_pictures = False  # whether that depends on them

    @property
    def shape(self) -> Any:
        return self.size()

    @property
    def ndim(self) -> Any:
        return self.dim()

    @property
    def dtype(self) -> Any:
        return self._value.dtype if isinstance(self._value, Tensor) else self._asked("dtype")

    @property
    def device(self) -> Any:
        return self._value.device if isinstance(self._value, Tensor) else self._asked("device")

    def size(self, dim: int | None = None) -> Any:
        value = self._value
        if not isinstance(value, Tensor) or value.ndim == 0:
            return self._asked("size")() if dim is None else self._asked("size")(dim)
        if dim is not None:
            return value.shape[dim] if dim % value.ndim or not self._of_pictures else self._rows()
        return (self._rows(), *value.shape[1:]) if self._of_pictures else value.shape

    def dim(self) -> Any:
        return self._value.ndim if isinstance(self._value, Tensor) else self._asked("dim")()

    def _rows(self) -> Any:
        return self._asked("size")(0)

    def _asked(self, name: str) -> Any:
        return fx.proxy.Attribute(self, name)


@contextmanager
def _lengths_of_stand_ins(module: nn.Module) -> Iterator[None]:
    """Let ``len(x)`` in a network's own code be ``x.size(0)``: Python takes nothing but a number."""
    forwards = {type(each).forward for each in every_module(module)}
    spaces = [getattr(forward, "__globals__", {}) for forward in forwards]
    lent = list({id(space): space for space in spaces if "len" not in space}.values())
    try:
        for space in lent:
            space["len"] = _length
        yield
    finally:
        for space in lent:
            space.pop("len", None)


def _length(of: Any) -> Any:
    return of.size(0) if isinstance(of, _Sized) and isinstance(of._value, Tensor) else len(of)


class _SizedTracer(_Tracer):
    """Runs what it notes on some pictures, for the sizes of all maps.

    Args:
        made: as for :class:`_Tracer`.
        images: the pictures.
    """

    def __init__(self, made: Made, images: Tensor) -> None:
        super().__init__(made)
        self.images = images
        self.running = False

    @property
    def _looks_away(self) -> bool:
        return self.running or super()._looks_away

    def _stand_in(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        made: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        first = kind == "placeholder" and made.node.prev.op == "root"
        made._of_pictures = first or any(map(_is_of_pictures, _stand_ins((args, kwargs))))
        if kind == "placeholder":
            made._value = self.images.clone() if first else next(iter(args), None)
        elif kind != "output":
            args, kwargs = _mapped((args, kwargs), _value_of)
            with self._run():
                made._value = self._result(kind, target, args, kwargs)
        return made

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._looks_away:
            return forward(*args, **kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        stack = self.module_stack.copy()
        own = [(vars(each), vars(each).copy()) for each in m.modules()]
        asked, self.asked = self.asked, False
        try:
            found = super().call_module(m, forward, args, kwargs)
            self.check_answered()
            self.asked = asked
            return found
        except Exception:  # as above; a module around it may yet be run as it is
            self.asked, self.module_stack = asked, stack
            self._forget(last)
            for attributes, before in own:
                attributes.clear()
                attributes.update(before)
            self._check_leaves_alone(m, args, kwargs)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def _result(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        value: Any = self.root
        for name in target.split("."):
            value = getattr(value, name)
        return value(*args, **kwargs) if kind == "call_module" else value

    def _forget(self, last: fx.Node | None) -> None:
        """Drop the nodes behind one; not those of weights, which are handed out but once."""
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            if node.op != "get_attr":
                self.graph.erase_node(node)

    def _check_leaves_alone(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Refuse a module that writes into what it is given, or keeps anything.

        Nobody would know of the first. The second is lost on whoever reads it: what was kept of one
        picture would stand for all of them, and parts of the work are done at a time.

        Raises:
            ValueError: for such a module.
        """
        held = _held(module)
        if any(isinstance(each, fx.Proxy) for each in held):  # of the attempt to read it
            raise ValueError(f"a {type(module).__name__} of it keeps what it computes")
        with self._run(), torch.inference_mode(False), torch.no_grad():
            args, kwargs = _mapped((args, kwargs), lambda a: _copied(_value_of(a)))
            given = [a for a in _leaves((args, kwargs)) if isinstance(a, Tensor)]
            own = [each for each in held if isinstance(each, Tensor)]
            before = [tensor._version for tensor in given], [tensor._version for tensor in own]
            module(*args, **kwargs)
        if before[0] != [tensor._version for tensor in given]:
            raise ValueError(f"a {type(module).__name__} of it writes into what it is given")
        now = _held(module)
        same = len(now) == len(held) and all(a is b for a, b in zip(now, held, strict=True))
        if not same or before[1] != [tensor._version for tensor in own]:
            raise ValueError(f"a {type(module).__name__} of it keeps what it computes")

    @contextmanager
    def _run(self) -> Iterator[None]:
        before, self.running = self.running, True
        try:
            yield
        finally:
            self.running = before


def _mapped(nested: Any, change: Callable[[Any], Any]) -> Any:
    return fx.node.map_aggregate(nested, change)


def _leaves(nested: Any) -> list[Any]:
    found: list[Any] = []
    _mapped(nested, found.append)
    return found


def _stand_ins(nested: Any) -> list[fx.Proxy]:
    return [each for each in _leaves(nested) if isinstance(each, fx.Proxy)]


def _is_of_pictures(stand_in: fx.Proxy) -> bool:
    if isinstance(stand_in, fx.proxy.Attribute):
        return _is_of_pictures(stand_in.root)
    return isinstance(stand_in, _Sized) and stand_in._of_pictures


def _value_of(given: Any) -> Any:
    if isinstance(given, fx.proxy.Attribute):
        return getattr(_value_of(given.root), given.attr)
    return given._value if isinstance(given, _Sized) else given


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _held(module: nn.Module) -> list[Any]:
    """What a module and its parts hold, in containers too."""
    held = [value for each in module.modules() for value in vars(each).values()]
    for value in held.copy():
        if isinstance(value, dict):
            held += [*value, *value.values()]
        elif isinstance(value, list | set | deque):
            held += value
    return held


def _hooked(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(h, "__module__", None) != "torchviz_cnn.inputs" for h in hooks)


def _all_modules_are_hooked() -> bool:
    """By others than torch, whose own hooks count and watch."""
    every = _of_all_modules._global_forward_pre_hooks, _of_all_modules._global_forward_hooks
    hooks = [hook for some in every for hook in some.values()]
    return any(not str(getattr(h, "__module__", None)).startswith("torch.") for h in hooks)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The arguments that nobody gives, at their defaults."""
    _, *rest = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in rest if p.default is not p.empty}


def _check_writes(graph: fx.GraphModule) -> None:
    """Refuse a network that writes into a tensor and then reads what shares its memory.

    Raises:
        Unsuited: for such a network, or one that writes into its own tensors.
    """
    modules = dict(graph.named_modules())
    shared: dict[fx.Node, set[fx.Node]] = {}
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        family = {node}
        into = node.args[0] if node.args else None
        if isinstance(node.kwargs.get("out"), fx.Node):
            raise Unsuited(f"it writes into what it names as out ({node.name})")
        if writes(node, modules) and isinstance(into, fx.Node):
            seen = {u for member in shared[into] for u in member.users}
            later = any(order[u] > order[node] and not asks_shape(u) for u in seen)
            if later or any(m.op == "get_attr" for m in shared[into]):
                raise Unsuited(f"it writes in place ({node.name}) into what it reads again")
            family |= shared[into]
        elif not makes_new(node, modules):
            for source in node.all_input_nodes:
                family |= shared[source]
        for member in family:
            shared[member] = family | shared.get(member, set())
