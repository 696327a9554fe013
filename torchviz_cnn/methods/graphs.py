"""A network as a graph whose nodes can be run one by one, on pictures or on parts of maps.

It is read by ``torch.fx``. Batch norms are folded into the convolutions before them, and weights laid
out as they are fastest; both are the graph's own copies. Large convolutions of 3×3 windows are
replaced by Winograd's filtering, and products made by another library, where that is faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torchviz_cnn.methods.channels import pick_channels
from torchviz_cnn.methods.convolutions import OwnConvolution, ProductConvolution, is_product
from torchviz_cnn.methods.local import Local, Sliding
from torchviz_cnn.methods.nodes import Reader
from torchviz_cnn.methods.operations import makes_new, writes
from torchviz_cnn.methods.products import multiply_fast
from torchviz_cnn.methods.symbolic import Unsuited, read
from torchviz_cnn.methods.winograd import WinogradConvolution, is_suited
from torchviz_cnn.pooling import find_no_indices


def _following(graph: fx.GraphModule) -> tuple[fx.Node, set[fx.Node]]:
    """The picture's node, and every node whose value depends on it."""
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    if not inputs or any(str(node.target).startswith("*") for node in inputs):
        raise Unsuited("it takes other arguments than one tensor of pictures")
    follows = {inputs[0]}
    for node in nodes:
        if any(source in follows for source in node.all_input_nodes):
            follows.add(node)
    return inputs[0], follows


def _own(graph: fx.GraphModule) -> dict[str, Any]:
    """The modules that nodes call, and that nobody else runs or reads the weights of."""
    nodes = graph.graph.nodes
    called = {str(n.target): graph.get_submodule(n.target) for n in nodes if n.op == "call_module"}
    read = {str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr"}
    holders = Counter(part for module in called.values() for part in module.modules())
    return {n: m for n, m in called.items() if n not in read and holders[m] == 1}


def _fold_norms(graph: fx.GraphModule) -> None:
    """Fold batch norms into the convolutions before them; both are the graph's own copies."""
    modules = dict(graph.named_modules())
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    own = _own(graph)
    for node in list(graph.graph.nodes):
        conv = node.args[0] if node.args else None
        if (
            isinstance(conv, fx.Node)
            and node.op == conv.op == "call_module"
            and len(conv.users) == calls[str(node.target)] == calls[str(conv.target)] == 1
            and str(conv.target) in own
            and _foldable(own[str(conv.target)], modules[str(node.target)])
        ):
            norm, target = modules[str(node.target)], str(conv.target)
            if is_suited(own[target]):
                own[target] = WinogradConvolution(own[target], norm)  # and takes no second one
                graph.set_submodule(target, own[target])
            else:
                _fold(own[target], norm)
            node.replace_all_uses_with(conv)
            graph.graph.erase_node(node)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and norm.running_mean is not None
        and not norm.training
        and conv.weight.dtype == norm.running_mean.dtype
        and not {"forward", "_conv_forward"} & {*conv.__dict__, *norm.__dict__}
    )


def _fold(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
        *(norm.weight, norm.bias),
    )


def _replace(graph: fx.GraphModule) -> None:
    """Put faster convolutions in the place of those that no batch norm asked for one."""
    for name, module in _own(graph).items():
        if isinstance(module, nn.Conv2d) and is_suited(module):
            graph.set_submodule(name, WinogradConvolution(module))
        elif isinstance(module, nn.Conv2d) and is_product(module):
            graph.set_submodule(name, ProductConvolution(module))


def _lay_out_weights(graph: fx.GraphModule) -> None:
    """Channels last: else they are laid out anew at every call."""
    for module in graph.modules():
        if type(module) is nn.Conv2d:
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)


class Network:
    """A network read as a graph, whose nodes can be run one by one, on pictures or parts of maps.

    Args:
        module: an unwrapped network.
        images: one picture as it takes them; all others are of its size.
    """

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self._turn = Lock()
        self.channels_last = (
            images.device.type == "cpu" and images.dtype is torch.float32 and images.ndim == 4
        )
        self.graph, self.is_sized = read(module, images)
        _fold_norms(self.graph)
        _replace(self.graph)
        if self.channels_last:
            _lay_out_weights(self.graph)
        self.modules = dict(self.graph.named_modules())
        for each in self.modules.values():
            find_no_indices(each)  # the graph's own
            multiply_fast(each)
        self._list_nodes()
        self.values = self._first_run(images)
        if pick_channels(self.graph, self.values, self.follows):
            self._list_nodes()
        reader = Reader(self.graph, self.values, self.follows)
        self.local: dict[fx.Node, Local] = {}
        for node in self.nodes:
            found = reader.read(node) if node in self.follows else None
            if found is not None:
                self.local[node] = found
        self.fixed = {n: self.values[n] for n in self.nodes if n not in self.follows}
        self.macs = {node: self._macs(node) for node in self.nodes}

    def _list_nodes(self) -> None:
        self.nodes: list[fx.Node] = list(self.graph.graph.nodes)
        self.picture, self.follows = _following(self.graph)
        self.answer = next(node for node in self.nodes if node.op == "output")
        self._writing = {node for node in self.nodes if writes(node, self.modules)}
        self._sharing = {node for node in self._writing if self._shared(node)}
        self.last_uses = last_uses(self.nodes)
        # These may note something for as long as they run, so they do so one at a time.
        calls = [node for node in self.nodes if node.op == "call_module"]
        self._strange = {node for node in calls if _is_strange(self.modules[str(node.target)])}

    def _first_run(self, images: Tensor) -> dict[fx.Node, Any]:
        """What every node gives; of maps that nothing needs any more, a tensor of that shape."""
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            value = self.compute(node, values, images, keeping=True)
            if node in self.follows and isinstance(value, Tensor) and value.ndim == 0:
                raise Unsuited(f"{node.name} is one number for a whole batch")
            values[node] = value
            for done in self.last_uses.get(node, ()):
                if done in self.follows and isinstance(values[done], Tensor):
                    values[done] = values[done].new_empty(()).expand(values[done].shape)
        return values

    def answer_for(self, images: Tensor) -> Any:
        """What the network puts out for whole pictures."""
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            values[node] = self.compute(node, values, images, keeping=True)
            for done in self.last_uses.get(node, ()):
                values.pop(done, None)
        return values[self.answer]

    def laid_out(self, images: Tensor) -> Tensor:
        """Channels last, where convolutions are faster that way."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def compute(
        self, node: fx.Node, values: dict[fx.Node, Any], images: Tensor, *, keeping: bool
    ) -> Any:
        """What a node gives for the values of the nodes before it.

        Args:
            node: the node.
            values: of the nodes it reads.
            images: the pictures.
            keeping: whether its arguments are still needed, so that none may be written into.
        """
        if node.op == "placeholder":
            if node is self.picture:
                return self.laid_out(images)
            return node.args[0] if node.args else None
        if node.op == "get_attr":
            value: Any = self.graph
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        if len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs:
            args, kwargs = (values[node.args[0]],), {}  # most nodes; looking into all takes long
        else:
            given: Any = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            args, kwargs = given
        if node in self._sharing or (keeping and node in self._writing):
            args = (args[0].clone(), *args[1:])
        if node.op == "call_module":
            with self._turn if node in self._strange else nullcontext():
                return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "output":
            return args[0]
        function: Any = node.target
        return function(*args, **kwargs)

    def writes_over(self, node: fx.Node) -> bool:
        """Whether a node puts its result where what it reads was."""
        return node in self._writing and node not in self._sharing

    def _shared(self, node: fx.Node) -> bool:
        """Whether the tensor a node writes into might be somebody else's, too."""
        into = node.args[0]
        assert isinstance(into, fx.Node)
        own = into in self.follows and makes_new(into, self.modules)
        return not own or len(into.users) > 1

    def _macs(self, node: fx.Node) -> int:
        """Multiply-adds a picture."""
        value, local = self.values[node], self.local.get(node)
        if isinstance(local, Sliding) and local.costs:
            return local.costs * value.shape[-2:].numel()
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            return module.weight.numel() * value[0].numel() // module.out_features
        if isinstance(module, nn.Conv2d) and isinstance(value, Tensor):
            return module.weight.numel() * value.shape[-2:].numel()
        return 0


def _is_strange(module: nn.Module) -> bool:
    """Whether others than torch have written any of it."""
    others = [each for each in module.modules() if not isinstance(each, OwnConvolution)]
    return not all(type(each).__module__.startswith("torch.nn.") for each in others)


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """After which node which others are needed no more."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(nodes):
        for source in {*node.all_input_nodes, node} - seen:
            seen.add(source)
            last.setdefault(node, []).append(source)
    return {node: [s for s in done if node.op != "output"] for node, done in last.items()}
