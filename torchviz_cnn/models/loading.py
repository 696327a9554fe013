"""Every network by a word: a name, a file, a folder, or code of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from torchviz_cnn import checkpoints
from torchviz_cnn.beside_tensorflow import leave_triton_out
from torchviz_cnn.checkpoints import Architecture
from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.inputs import checked_size
from torchviz_cnn.models.factory import from_factory
from torchviz_cnn.models.imported import from_onnx
from torchviz_cnn.models.model import Model, of_its_size
from torchviz_cnn.models.own import OWN, own_network
from torchviz_cnn.models.weights import KERAS, at_random, how_to_export, load_state
from torchviz_cnn.preprocess import preprocess_by_name
from torchviz_cnn.targets import ClassNames, class_names


def names() -> list[str]:
    """Every name :func:`load` knows: the tutorials' networks, then torchvision's classifiers."""
    return [*OWN, *_torchvisions().names()]


def _torchvisions() -> ModuleType:
    """The room of torchvision's networks; entering it imports torchvision, three seconds."""
    leave_triton_out()
    from torchviz_cnn.models import published

    return published


def _is_name(spec: str) -> bool:
    return spec in OWN or spec in _torchvisions().names()


def _is_file(spec: str) -> bool:
    """Whether a word is a trained network's file or folder: one that is called as a network is none."""
    return checkpoints.is_checkpoint(spec) and not _is_name(spec)


def holds_weights(spec: str) -> bool:
    """Whether a word for :func:`load` names a file with weights of its own."""
    return spec.lower().endswith(".onnx") or _is_file(spec)


def load(
    spec: str,
    weights: str | Path | None = None,
    *,
    preprocess: str | None = None,
    classes: ClassNames | None = None,
    input_size: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    keras: str | Path | None = None,
) -> Model:
    """A network by name or file, ready to be looked into.

    Args:
        spec: a name of :func:`names` (``"vgg16"``, ``"cat_dog"``); ``"package.module:factory"`` for
            code of your own, a function or class called without arguments that gives an
            ``nn.Module`` or a :class:`Model`; an ONNX file; or what ``torchviz-cnn train`` wrote, a
            folder or a ``.safetensors`` file.
        weights: ``"default"``, torchvision's best published ones, downloaded once; ``"none"``,
            random ones, the same every time; or a file with a state dict, loaded with
            ``weights_only=True``, or a ``.safetensors`` file. Left out:
            ``"default"`` for torchvision, random for networks without published weights.
        preprocess: prepare pictures as Keras does, ``"rescale"``, ``"tf"``, ``"torch"``,
            ``"caffe"`` or ``"none"``, instead of as the network's publisher does.
        classes: class names by index.
        input_size: ``(C, H, W)`` of one image, where the network takes other sizes than its usual
            one: torchvision's convolutional classifiers do, and a factory's or a file's network
            may. A whole picture is then scaled to it, unless it is square as before.
        device: where the network shall be.
        keras: for an ONNX file, the ``.keras`` or ``.h5`` file it was exported from: it tells the
            layers' names where the ONNX file has none, see :func:`converters.load_onnx`.

    Raises:
        InputError: for an unknown name, weights that cannot be had or do not fit, a factory that
            gives no network.

    Example:
        >>> import torchviz_cnn as tvc
        >>> model = tvc.models.load("cat_dog")
        >>> tvc.layers(model).parameters, model.classes
        (3453121, ('cat', 'dog'))
    """
    if not isinstance(spec, str | Path):
        raise InputError(
            f"a network is named by a string, not by {type(spec).__name__}; a torch.nn.Module "
            "needs no loading: give it to saliency, grad_cam, … as it is"
        )
    spec = str(spec)
    weights = None if weights is None else str(weights)
    size = None if input_size is None else checked_size(input_size)
    if keras is not None and not spec.lower().endswith(".onnx"):
        raise InputError(f"a Keras file tells the layers' names of an ONNX file; {spec!r} is none")
    if weights is not None and _is_trained(spec, weights) and _is_name(spec):
        spec, weights = weights, None
    if spec.lower().endswith(".onnx"):
        model = from_onnx(spec, weights, preprocess, size, keras)
    elif _is_file(spec):
        model = of_its_size(_from_checkpoint(spec, weights), size)
    elif spec in OWN:
        model = of_its_size(own_network(spec, weights), size)
    elif ":" in spec:
        model = from_factory(spec, weights, size)
    elif _is_name(spec):
        model = _torchvisions().load(spec, weights, size)
    elif spec.lower().endswith(KERAS):
        raise InputError(f"{spec!r} is a Keras file: {how_to_export(spec)}")
    else:
        raise InputError(
            f"there is no network {spec!r}{closest(spec, names())}"
            + (
                ""
                if closest(spec, names())
                else f"; there are {', '.join(OWN)}, torchvision's classifiers (resnet50, vgg16, …), "
                "package.module:factory, ONNX files, and folders of trained networks"
            )
        )
    if weights is not None and weights.lower().endswith(checkpoints.SUFFIX):
        model = _as_described(model, weights)
    if preprocess is not None:
        model = replace(model, preprocess=preprocess_by_name(preprocess, model.input_size))
    if classes is not None:
        model = replace(model, classes=class_names(classes))
    model.module.eval()
    return model.to(device)


def _from_checkpoint(spec: str, weights: str | None) -> Model:
    """A network that was trained here, with everything that was known of it then."""
    state, description = checkpoints.read(spec)
    if weights is not None:
        raise InputError(f"{spec} holds its own weights; leave --weights out")
    if description is None:
        raise InputError(
            f"{spec!r} holds weights and does not say of which network; name the network, and "
            f"give the file as its weights (--weights {spec})"
        )
    chosen = description.architecture
    if not _is_name(chosen.name):
        raise InputError(
            f"{spec!r} was trained from code of your own, which a file may not start: load "
            f"{chosen.name!r} and give the file as its weights (--weights {spec})"
        )
    module = build(chosen)
    load_state(module, state, spec)
    about = f"{chosen.name} trained on {len(description.classes)} classes ({spec})"
    model = Model(module, description.preprocess, description.input_size, None, about)
    return replace(model, classes=description.classes)


def _is_trained(name: str, weights: str) -> bool:
    """Whether a file of weights says that it is a named network, trained here."""
    if not weights.lower().endswith(checkpoints.SUFFIX):
        return False
    description = checkpoints.describe(weights)
    return description is not None and description.architecture.name == name


def _as_described(model: Model, path: str) -> Model:
    """A network whose weights say how they were trained: with their classes and preprocessing."""
    description = checkpoints.describe(path)
    if description is None:
        return model
    return replace(
        model,
        preprocess=description.preprocess,
        input_size=description.input_size,
        classes=description.classes,
        notes=(),
    )


def build(architecture: Architecture, seed: int = 0) -> nn.Module:
    """A network of :func:`names` with random weights, ready to be trained or filled.

    Args:
        architecture: its name, and how many numbers it shall put out.
        seed: of the weights; torch's generator is left alone.

    Raises:
        InputError: for a name that is not known.

    Example:
        >>> build(Architecture("cat_dog", outputs=5))(torch.zeros(1, 3, 150, 150)).shape
        torch.Size([1, 5])
    """
    name, outputs = architecture.name, architecture.outputs
    if name in OWN:
        return at_random(lambda: OWN[name].build(*([] if outputs is None else [outputs])), seed)
    if not _is_name(name):
        raise InputError(f"there is no network {name!r}{closest(name, names())}")
    return at_random(lambda: _torchvisions().untrained(architecture), seed)
