"""What a Keras layer is expected to look like in a file: its kernel's layout, its operators.

Tables, and a little arithmetic; which operator of a file is which layer's is told elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.graph import Array, Node
from converters.keras_models import KerasLayer, Weight

AffinePair = tuple[Array, Array]

# Exporters store weights as they are; what they fold into one another keeps about six digits.
EXACT, FOLDED = 1e-6, 1e-5

KERNEL_KINDS = ("Conv", "DepthwiseConv", "SeparableConv", "Dense", "EinsumDense", "Embedding")

# Keras' activations -> what exporters make of them, as chains of operators.
ACTIVATIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "elu": (("Elu",),),
    "exponential": (("Exp",),),
    "gelu": (("Gelu",),),
    "hard_sigmoid": (("HardSigmoid",),),
    "hard_silu": (("HardSwish",),),
    "hard_swish": (("HardSwish",),),
    "leaky_relu": (("LeakyRelu",),),
    "log_softmax": (("LogSoftmax",),),
    "mish": (("Mish",),),
    "relu": (("Relu",), ("Clip",), ("LeakyRelu",)),
    "relu6": (("Clip",), ("Relu", "Min"), ("Relu", "Clip")),
    "selu": (("Selu",),),
    "sigmoid": (("Sigmoid",),),
    "softmax": (("Softmax",),),
    "softplus": (("Softplus",),),
    "softsign": (("Softsign",),),
    "tanh": (("Tanh",),),
}
# Layers that are activations.
AS_ACTIVATION = {
    "ELU": "elu",
    "LeakyReLU": "leaky_relu",
    "ReLU": "relu",
    "Softmax": "softmax",
}
# Layers without weights and with one input -> likewise.
SINGLE: dict[str, tuple[tuple[str, ...], ...]] = {
    "Cropping1D": (("Slice",),),
    "Cropping2D": (("Slice", "Slice"), ("Slice",)),
    "Flatten": (("Flatten",), ("Reshape",)),
    "Permute": (("Transpose",),),
    "Reshape": (("Reshape",), ("Flatten",), ("Unsqueeze",), ("Squeeze",)),
    "Resizing": (("Resize",),),
    "UpSampling2D": (("Resize",), ("Repeat", "Repeat")),
    "ZeroPadding1D": (("Pad",),),
    "ZeroPadding2D": (("Pad",),),
    **{f"MaxPooling{n}D": (("MaxPool",),) for n in (1, 2, 3)},
    **{f"AveragePooling{n}D": (("AveragePool",),) for n in (1, 2, 3)},
    **{f"GlobalMaxPooling{n}D": (("GlobalMaxPool",), ("ReduceMax",)) for n in (1, 2, 3)},
    **{f"GlobalAveragePooling{n}D": (("GlobalAveragePool",), ("ReduceMean",)) for n in (1, 2, 3)},
}
JOINING = {
    "Add": "Add",
    "Concatenate": "Concat",
    "Dot": "MatMul",
    "Maximum": "Max",
    "Minimum": "Min",
    "Multiply": "Mul",
    "Subtract": "Sub",
}
# The activation that a file has as two operators, which two layers of Keras' may be as well.
SILU = frozenset(["silu", "swish"])


@dataclass(frozen=True)
class Expected:
    """A kernel as the file should have it: which operators may hold it, and its numbers."""

    ops: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: Callable[[], Array]


def kernels_of(layer: KerasLayer, weights: Sequence[Weight]) -> list[Expected]:
    """The kernels of a layer, turned as ONNX has them, in the order in which they are used.

    Keras' are (rows, columns, in, out), of depthwise convolutions (rows, columns, in, multiplier),
    of transposed ones (rows, columns, out, in), of dense layers (in, out).
    """
    kind, stored = layer.type, list(weights)
    parts = 2 if kind.startswith("SeparableConv") else 1
    if "Conv" in kind and not all(_is_kernel(weight) for weight in stored[:parts]):
        return []  # a damaged file's, or no layer of Keras' own: nothing can be told by it
    if kind.endswith("Transpose") and kind.startswith("Conv") and stored:
        return [_turned(stored[0], ("ConvTranspose",), lambda k: np.moveaxis(k, (-1, -2), (0, 1)))]
    if kind.startswith("DepthwiseConv") and stored:
        return [_depthwise(stored[0])]
    if kind.startswith("SeparableConv") and len(stored) > 1:
        return [_depthwise(stored[0]), _convolution(stored[1])]
    if kind.startswith("Conv") and stored:
        return [_convolution(stored[0])]
    if kind == "Dense" and stored and len(stored[0].shape) == 2:
        return [_turned(stored[0], ("Linear",), np.transpose)]
    return []


def _is_kernel(weight: Weight) -> bool:
    return len(weight.shape) > 2 and all(weight.shape)


def _turned(weight: Weight, ops: tuple[str, ...], turn: Callable[[Array], Array]) -> Expected:
    shape = turn(np.broadcast_to(np.float32(0), weight.shape)).shape
    return Expected(ops, shape, lambda: turn(weight.read()))


def _convolution(weight: Weight) -> Expected:
    return _turned(weight, ("Conv",), lambda k: np.moveaxis(k, (-1, -2), (0, 1)))


def _depthwise(weight: Weight) -> Expected:
    def turn(kernel: Array) -> Array:
        moved = np.moveaxis(kernel, (-2, -1), (0, 1))
        return moved.reshape(-1, 1, *kernel.shape[:-2])

    return _turned(weight, ("Conv",), turn)


def bias_of(layer: KerasLayer, weights: Sequence[Weight]) -> Array | None:
    """What a layer adds to its product; ``None`` where it adds nothing."""
    count = 2 if layer.type.startswith("SeparableConv") else 1
    return weights[count].read().astype(np.float64) if len(weights) > count else None


def affine_of(layer: KerasLayer, weights: Sequence[Weight]) -> AffinePair | None:
    """Factor and summand of a batch norm outside training, a ``Normalization``, a ``Rescaling``."""
    config = layer.config
    if layer.type == "Rescaling":
        pair = config.get("scale", 1.0), config.get("offset", 0.0)
        if all(isinstance(number, (int, float)) for number in pair):
            return np.asarray(pair[0], float), np.asarray(pair[1], float)
        return None
    if layer.type == "Normalization":
        return _normalization(config, weights)
    if layer.type != "BatchNormalization":
        return None
    own = bool(config.get("scale", True)) + bool(config.get("center", True))
    shapes = {weight.shape for weight in weights}
    if len(weights) != own + 2 or len(shapes) != 1 or len(shapes.pop()) != 1:
        return None
    stored = [weight.read().astype(np.float64) for weight in weights]
    mean, variance = stored[-2:]
    epsilon = config.get("epsilon", 1e-3)
    scale = 1 / np.sqrt(variance + (epsilon if isinstance(epsilon, (int, float)) else 1e-3))
    if config.get("scale", True):
        scale = scale * stored[0]
    shift = -mean * scale
    return scale, shift + stored[own - 1] if config.get("center", True) else shift


def _normalization(config: Mapping[str, Any], weights: Sequence[Weight]) -> AffinePair | None:
    """By the numbers it was made with, or those it has measured."""
    given: list[Any] = [config.get("mean"), config.get("variance")]
    if None in given:
        given = [weight.read() for weight in weights[:2]]
    try:
        mean, variance = (np.asarray(each, np.float64).reshape(-1) for each in given)
    except (TypeError, ValueError):
        return None
    if mean.size != variance.size or not mean.size or not (variance >= 0).all():
        return None
    spread = np.maximum(np.sqrt(variance), 1e-7)  # Keras' epsilon
    return (spread, mean) if config.get("invert") else (1 / spread, -mean / spread)


def close(found: Array, wanted: Array, tolerance: float) -> bool:
    if found.shape != wanted.shape:
        return False
    largest = float(np.abs(wanted).max(initial=0.0))
    gap = np.abs(found.astype(np.float64) - wanted).max(initial=0.0)
    return bool(gap <= tolerance * largest)


def guesses(weights: Sequence[Weight]) -> list[Expected]:
    """What a kernel would be in the file, of whatever class its layer is."""
    if sum(len(weight.shape) > 1 for weight in weights) != 1 or len(weights[0].shape) < 2:
        return []
    kinds = ("Dense",) if len(weights[0].shape) == 2 else ("Conv2D", "DepthwiseConv2D")
    return [each for kind in kinds for each in kernels_of(KerasLayer("", kind, {}), weights[:1])]


def does_nothing(layer: KerasLayer) -> bool:
    return layer.type == "Activation" and activation_of(layer) == "linear"


def activation_of(layer: KerasLayer) -> str | None:
    """The name of a layer's activation; ``None`` for one that is not Keras' own."""
    if layer.type == "ReLU":
        highest, slope = layer.config.get("max_value"), layer.config.get("negative_slope")
        if layer.config.get("threshold") or (slope and highest is not None):
            return None  # several operators, which no other activation has
        return "relu6" if highest is not None else "relu"
    if layer.type in AS_ACTIVATION:
        return AS_ACTIVATION[layer.type]
    name = layer.config.get("activation", "linear")
    if isinstance(name, dict):
        name = name.get("config", name.get("class_name"))
    return "linear" if name is None else name if isinstance(name, str) else None


def fits(node: Node, layer: KerasLayer) -> bool:
    """Whether a pooling's window is the layer's; other operators have none."""
    size, steps = layer.config.get("pool_size"), layer.config.get("strides")
    if not isinstance(size, list) or node.op not in ("MaxPool", "AveragePool"):
        return True
    same = list(node.attributes.get("kernel_shape", ())) == size
    ones = [1] * len(size)
    return same and (
        not isinstance(steps, list) or list(node.attributes.get("strides", ones)) == steps
    )


def same_affine(found: tuple[Array, Array], wanted: Sequence[Array]) -> bool:
    """Whether factor and summand are these; the two are of one size in a picture's terms."""
    size = max(len(wanted[0]), len(wanted[1]))
    if any(len(each) not in (1, size) for each in (*found, *wanted)):
        return False
    a, b = (np.broadcast_to(each, size) for each in found)
    c, d = (np.broadcast_to(each, size) for each in wanted)
    room = FOLDED * max(float(np.abs(d).max()), float(np.abs(c).max()), float(np.abs(b).max()))
    return close(a, c, FOLDED) and bool(np.abs(b - d).max() <= room)
