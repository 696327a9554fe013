"""What a Keras layer is called after: its class, told from its name or from its operators."""

from __future__ import annotations

import re
from collections.abc import Sequence

from converters.graph import Graph, Node

ACTIVATIONS = frozenset(
    [
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Silu",
        "Mish",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Softmax",
        "LogSoftmax",
        "Softplus",
        "Softsign",
        "ThresholdedRelu",
        "Clip",
    ]
)
WEIGHTED = frozenset(["Conv", "ConvTranspose", "Linear"])

_PARTS = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "Linear": "dense",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "GlobalAveragePool": "pool",
    "GlobalMaxPool": "pool",
    "BatchNormalization": "norm",
    "Affine": "norm",
    "SamePad": "pad",
    "Transpose": "transpose",
}
# For files that carry no names, what a layer made of one operator is called.
_READABLE = {
    **_PARTS,
    "MaxPool": "max_pool",
    "AveragePool": "average_pool",
    "GlobalAveragePool": "global_average_pool",
    "GlobalMaxPool": "global_max_pool",
    "BatchNormalization": "batch_norm",
    "Affine": "batch_norm",
    "ConvTranspose": "conv_transpose",
}
# Keras makes a layer's default name out of its class: conv2d_1, max_pooling2d, re_lu_3.
_BY_NAME = {
    name: kind
    for kind in (
        [
            "Activation",
            "Add",
            "Average",
            "AveragePooling1D",
            "AveragePooling2D",
            "BatchNormalization",
            "Concatenate",
            "Conv1D",
            "Conv2D",
            "Conv2DTranspose",
            "Conv3D",
            "Cropping2D",
            "Dense",
            "DepthwiseConv2D",
            "Dropout",
            "ELU",
            "EinsumDense",
            "Flatten",
            "GaussianDropout",
            "GaussianNoise",
            "GlobalAveragePooling1D",
            "GlobalAveragePooling2D",
            "GlobalMaxPooling2D",
            "GroupNormalization",
            "InputLayer",
            "LayerNormalization",
            "LeakyReLU",
            "MaxPooling1D",
            "MaxPooling2D",
            "Maximum",
            "Minimum",
            "MultiHeadAttention",
            "Multiply",
            "Normalization",
            "PReLU",
            "Permute",
            "ReLU",
            "RepeatVector",
            "Rescaling",
            "Reshape",
            "Resizing",
            "SeparableConv2D",
            "Softmax",
            "SpatialDropout2D",
            "Subtract",
            "UpSampling2D",
            "ZeroPadding2D",
            "AlphaDropout",
            "ActivityRegularization",
            "Identity",
        ]
    )
    for name in [
        re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
    ]
}
_BY_NAME["input"] = "InputLayer"
# Layers that do nothing once training is over.
IDLE = frozenset(
    [
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "GaussianDropout",
        "GaussianNoise",
        "AlphaDropout",
        "ActivityRegularization",
        "Identity",
        "InputLayer",
    ]
)
_BY_OPERATOR = {
    "MaxPool": "MaxPooling",
    "AveragePool": "AveragePooling",
    "GlobalAveragePool": "GlobalAveragePooling",
    "GlobalMaxPool": "GlobalMaxPooling",
}
_PLAIN = {
    "Alias": "BatchNormalization",
    "BatchNormalization": "BatchNormalization",
    "Affine": "BatchNormalization",
    "Flatten": "Flatten",
    "Reshape": "Reshape",
    "Add": "Add",
    "Mul": "Multiply",
    "Concat": "Concatenate",
    "Pad": "ZeroPadding2D",
    "LeakyRelu": "LeakyReLU",
    "PRelu": "PReLU",
    "Elu": "ELU",
    "Clip": "ReLU",
    "NearestCells": "Resizing",
    "Resize": "UpSampling2D",
    "Slice": "Cropping2D",
    "Transpose": "Permute",
    "LayerNormalization": "LayerNormalization",
}


def kind_by_name(name: str) -> str | None:
    """The class in a default name; ``None`` where the user named the layer.

    >>> kind_by_name("max_pooling2d_3"), kind_by_name("re_lu"), kind_by_name("block5_conv3")
    ('MaxPooling2D', 'ReLU', None)
    """
    return _BY_NAME.get(re.sub(r"_\d+$", "", name))


def kind_of(name: str, nodes: Sequence[Node], graph: Graph) -> str:
    """The Keras class of a layer, from its default name, else from what it is made of."""
    by_name = kind_by_name(name)
    weighted = any(node.op in WEIGHTED for node in nodes)
    if by_name is not None and not (weighted and by_name in IDLE):  # input_layer may be a Conv2D
        return by_name
    ops = [node.op for node in nodes if node.op not in ("Transpose", "SamePad")] or ["Transpose"]
    kernels = [node for node in nodes if node.op in ("Conv", "ConvTranspose")]
    if kernels:
        return _convolution(kernels, graph)
    if "Linear" in ops:
        return "Dense"
    for node in nodes:
        if node.op in _BY_OPERATOR:
            return _BY_OPERATOR[node.op] + _rank(node, graph)
    if set(ops) <= {"Mul", "Add", "Sub", "Div"} and not _joins(nodes, graph):
        return "Rescaling"
    if set(ops) <= {"ReduceMean", "ReduceMax"} and len(ops) == 1:
        return ("GlobalAveragePooling" if ops[0] == "ReduceMean" else "GlobalMaxPooling") + "2D"
    for op in ops:
        if op in _PLAIN:
            return _PLAIN[op]
    return "Activation" if ops[-1] in ACTIVATIONS else ops[-1]


def _convolution(kernels: Sequence[Node], graph: Graph) -> str:
    rank = graph.constants[kernels[0].inputs[1]].ndim - 2
    groups = [int(node.attributes.get("group", 1)) for node in kernels]
    channels = graph.constants[kernels[0].inputs[1]].shape
    if kernels[-1].op == "ConvTranspose":
        return f"Conv{rank}DTranspose"
    if len(kernels) == 2 and groups[0] > 1 and groups[1] == 1:
        return f"SeparableConv{rank}D"
    if groups[0] > 1 and channels[1] == 1:
        return f"DepthwiseConv{rank}D"
    return f"Conv{rank}D"


def _rank(node: Node, graph: Graph) -> str:
    shape = graph.shapes.get(node.inputs[0])
    return f"{len(shape) - 2 if shape else 2}D"


def _joins(nodes: Sequence[Node], graph: Graph) -> bool:
    """Whether an operator takes two activations, rather than one and a constant."""
    return any(sum(name not in graph.constants for name in node.inputs) > 1 for node in nodes)


def part_names(nodes: Sequence[Node]) -> list[str]:
    """What the operators of a layer are called inside it.

    The last convolution is ``conv``, a depthwise one before it ``depthwise``; the activation that
    ends the layer is ``act``.
    """
    kernels = [i for i, node in enumerate(nodes) if node.op in WEIGHTED]
    names: list[str] = []
    for index, node in enumerate(nodes):
        name = _PARTS.get(node.op, snake(node.op))
        if kernels and index == len(nodes) - 1 and node.op in ACTIVATIONS:
            name = "act"
        elif node.op == "Conv" and index != kernels[-1]:
            name = "depthwise" if int(node.attributes.get("group", 1)) > 1 else "conv_before"
        number, stem = 2, name
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def readable(op: str) -> str:
    """A name for a layer nobody named, without its number.

    >>> readable("MaxPool"), readable("LeakyRelu")
    ('max_pool', 'leaky_relu')
    """
    return _READABLE.get(op, snake(op))


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
