"""Torch's operations, by what they do to maps: which keep every number in its place, which write."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from torchviz_cnn.methods.convolutions import OwnConvolution

POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softshrink, nn.Threshold, nn.Identity),
    nn.LocalResponseNorm,
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

POINTWISE: set[Any] = {
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu),
    *(F.elu_, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.hardtanh),
    *(F.hardtanh_, F.hardswish, F.hardsigmoid, F.sigmoid, F.logsigmoid, F.tanh, F.tanhshrink),
    *(torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.exp, torch.log, torch.sqrt),
    *(torch.rsqrt, torch.abs, torch.neg, torch.square, torch.clamp, torch.clip, torch.erf),
    *(torch.pow, torch.clone, operator.neg, operator.pow, operator.abs),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "log", "sqrt", "rsqrt"),
    *("abs", "neg", "square", "pow", "clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_max"),
    *("hardtanh", "erf", "clone", "contiguous", "detach", "float", "double", "half", "bfloat16"),
}
ELEMENTWISE: set[Any] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
    *("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "maximum", "minimum"),
    *("__add__", "__sub__", "__mul__", "__truediv__"),
    # Of more than two, or telling which is larger.
    *(torch.addcmul, torch.addcdiv, torch.lerp, torch.where, "addcmul", "addcdiv", "lerp", "where"),
    *(operator.gt, operator.ge, operator.lt, operator.le, "gt", "ge", "lt", "le"),
    *(torch.gt, torch.ge, torch.lt, torch.le),
}
_IN_PLACE_FUNCTIONS: set[Any] = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow),
    *(operator.setitem, torch.relu_, torch.sigmoid_, torch.tanh_, F.relu_, F.leaky_relu_, F.elu_),
    F.hardtanh_,
}
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}


def writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node writes into its first argument."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        own = name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
        return own or (name.endswith("_") and not name.endswith("__"))
    inplace = node.kwargs.get("inplace", False)
    positional = [arg for arg in node.args[1:] if isinstance(arg, bool) and _may_write(node.target)]
    return node.target in _IN_PLACE_FUNCTIONS or bool(inplace) or any(positional)


def _may_write(function: Any) -> bool:
    """Whether a bare ``True`` among its arguments may mean in place."""
    return getattr(function, "__module__", "") == F.__name__ and function not in (
        F.avg_pool2d,
        F.max_pool2d,
    )


def makes_new(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's result shares no memory with what it was made of, for certain."""
    if writes(node, modules):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, OwnConvolution):
            return True
        new = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
        return type(module) in (*new, nn.Linear, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.GELU)
    sure = {F.conv2d, torch.conv2d, F.batch_norm, F.relu, torch.relu}
    sure |= {F.max_pool2d, F.avg_pool2d, F.linear}
    return node.target in sure | (ELEMENTWISE - _IN_PLACE_FUNCTIONS) | CONCATENATIONS
