"""Networks by name or file, with their preprocessing, input size and class names."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.error import URLError
from zipfile import BadZipFile

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from torchviz_cnn import checkpoints, networks
from torchviz_cnn.checkpoints import Architecture
from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.inputs import checked_size, place_and_kind
from torchviz_cnn.pictures import Picture, to_image
from torchviz_cnn.preprocess import Preprocess, preprocess_by_name

T = TypeVar("T")

# What loading a file of weights raises when it is not there, not one, or damaged.
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, BadZipFile, pickle.UnpicklingError)

IMAGENET_CLASSES = 1000
_RESCALING = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Model:
    """A network with what is needed to use it.

    Attributes:
        module: the network, in eval mode.
        preprocess: picture, or list of pictures, -> ``(N, C, H, W)`` on the CPU; any function that
            does so will do.
        input_size: ``(C, H, W)`` of one image, or ``(H, W)`` without a channel axis.
        classes: class names by index; ``None`` where they are not known.
        source: where it came from, in words.
        notes: what was assumed on the way, each a sentence a user should be told.
    """

    module: nn.Module
    preprocess: Callable[[Any], Tensor]
    input_size: tuple[int, ...]
    classes: tuple[str, ...] | None = None
    source: str = "network"
    notes: tuple[str, ...] = ()

    def __call__(self, inputs: Tensor) -> Any:
        return self.module(inputs)

    def to(self, device: str | torch.device) -> Model:
        """The same with the network moved to a device (the module itself moves)."""
        return replace(self, module=self.module.to(device))

    @property
    def device(self) -> torch.device:
        """Where the network is: the device of its first parameter, the CPU without any."""
        device: torch.device = place_and_kind(self.module)["device"]
        return device

    def prepare(self, pictures: Picture | list[Picture]) -> Tensor:
        """Pictures ready for the network: preprocessed, on its device and of its dtype.

        Raises:
            InputError: for a picture that cannot be read.
        """
        return self.preprocess(pictures).to(**place_and_kind(self.module))

    def view(self, picture: Picture) -> Image.Image:
        """The part of a picture that the network sees; heat maps cover exactly this.

        The whole of it where ``preprocess`` is a function that does not tell.
        """
        view = getattr(self.preprocess, "view", to_image)
        return view(picture)


@dataclass(frozen=True)
class _Own:
    """A network of the tutorials."""

    build: Callable[..., nn.Module]
    input_size: tuple[int, int, int]
    classes: tuple[str, ...]
    about: str


OWN: dict[str, _Own] = {
    "mnist_convnet": _Own(
        networks.MnistConvNet, (1, 28, 28), tuple("0123456789"), "the MNIST ConvNet"
    ),
    "cat_dog": _Own(networks.cat_dog, (3, 150, 150), ("cat", "dog"), "cats against dogs"),
    "cat_dog_small": _Own(
        networks.cat_dog_small, (3, 150, 150), ("cat", "dog"), "cats against dogs, small"
    ),
}


def names() -> list[str]:
    """Every name :func:`load` knows: the tutorials' networks, then torchvision's classifiers."""
    return [*OWN, *torchvision.models.list_models(module=torchvision.models)]


def holds_weights(spec: str) -> bool:
    """Whether a word for :func:`load` names a file with weights of its own."""
    return spec.lower().endswith(".onnx") or (
        spec not in names() and checkpoints.is_checkpoint(spec)
    )


def load(
    spec: str,
    weights: str | Path | None = None,
    *,
    preprocess: str | None = None,
    classes: Sequence[str] | None = None,
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
    if weights is not None and spec in names() and _is_trained(spec, weights):
        spec, weights = weights, None
    if spec.lower().endswith(".onnx"):
        model = _from_onnx(spec, weights, preprocess, size, keras)
    elif spec not in names() and checkpoints.is_checkpoint(spec):
        model = _of_its_size(_from_checkpoint(spec, weights), size)
    elif spec in OWN:
        model = _of_its_size(_own(spec, weights), size)
    elif ":" in spec:
        model = _from_factory(spec, weights, size)
    elif spec in torchvision.models.list_models(module=torchvision.models):
        model = _resized(_from_torchvision(spec, weights), size)
    else:
        raise InputError(
            f"there is no network {spec!r}{closest(spec, names())}"
            + (
                ""
                if closest(spec, names())
                else f"; there are {', '.join(OWN)}, torchvision's classifiers (resnet50, vgg16, …), "
                "package.module:factory, and folders of trained networks"
            )
        )
    if weights is not None and weights.lower().endswith(checkpoints.SUFFIX):
        model = _as_described(model, weights)
    if preprocess is not None:
        model = replace(model, preprocess=preprocess_by_name(preprocess, model.input_size))
    if classes is not None:
        model = replace(model, classes=tuple(classes))
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
    if chosen.name not in names():
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
        return _random(lambda: OWN[name].build(*([] if outputs is None else [outputs])), seed)
    if name not in names():
        raise InputError(f"there is no network {name!r}{closest(name, names())}")
    options: dict[str, Any] = {} if outputs is None else {"num_classes": outputs}
    if name in _RESCALING:
        options |= {"aux_logits": False, "transform_input": architecture.transform_input}
        options["init_weights"] = True
    return _random(lambda: torchvision.models.get_model(name, weights=None, **options), seed)


def _of_its_size(model: Model, size: tuple[int, ...] | None) -> Model:
    """A network that takes one size only."""
    if size is not None and size != model.input_size:
        takes, asked = ("×".join(map(str, each)) for each in (model.input_size, size))
        raise InputError(f"{model.source} takes {takes}, not {asked}; leave the input size out")
    return model


def _resized(model: Model, size: tuple[int, ...] | None) -> Model:
    """A torchvision network for pictures of another size than it was trained on."""
    if size is None or size == model.input_size:
        return model
    if len(size) != 3 or size[0] != 3:
        raise InputError(
            f"{model.source} takes colour pictures: 3×H×W, not {'×'.join(map(str, size))}"
        )
    usual = model.preprocess
    assert isinstance(usual, Preprocess)
    resize = None
    if size[1] == size[2] and usual.resize is not None:  # the same part of the picture, larger
        resize = round(usual.resize * size[1] / usual.size[0])
    preprocess = replace(usual, size=(size[1], size[2]), resize=resize)
    return replace(model, preprocess=preprocess, input_size=size)


def _own(name: str, weights: str | None) -> Model:
    own = OWN[name]
    if weights == "default":
        raise InputError(
            f"{name} has no published weights; train it and give the file, or use weights='none'"
        )
    module = _random(own.build)
    notes: tuple[str, ...] = ()
    if weights in (None, "none"):
        notes = (f"{name} has random weights: its maps show the architecture, nothing learnt",)
    else:
        load_state(module, read_state(str(weights)), str(weights))
    return Model(
        module,
        preprocess_by_name("rescale", own.input_size, nearest=own.input_size[0] == 3),
        own.input_size,
        own.classes,
        f"{name} ({own.about})",
        notes,
    )


def _from_torchvision(name: str, weights: str | None) -> Model:
    published = torchvision.models.get_model_weights(name)
    best = getattr(published, "DEFAULT", None)
    notes: tuple[str, ...] = ()
    classes = tuple(best.meta["categories"]) if best else None
    if weights == "none":
        module = _random(lambda: _build(name, {}, False))
        notes = (f"{name} has random weights: its maps show the architecture, nothing learnt",)
    elif weights in (None, "default"):
        module = _published(name, best)
    else:
        state = read_state(str(weights))
        rescales, notes = transforms_input(name, state, str(weights))
        module = _build(name, state, rescales)
        load_state(module, state, str(weights))
        count = _class_count(state)
        if classes is not None and count != len(classes):
            classes = None
    return Model(module, _torchvision_preprocess(best), _size(best), classes, name, notes)


def _random(build: Callable[[], T], seed: int = 0) -> T:
    """A network with random weights, the same ones every time; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def transforms_input(
    name: str, state: Mapping[str, Tensor], path: str
) -> tuple[bool, tuple[str, ...]]:
    """Whether a network must scale pictures anew to suit its weights, and what was assumed.

    The published weights of GoogLeNet and Inception, ported from TensorFlow, were trained on another
    scaling of pictures than torchvision's. What was trained here says which it was; of other files,
    those of 1000 classes are taken for published ones: whoever trained another number of classes did
    so on the usual scaling.

    Args:
        name: of the network.
        state: its weights.
        path: their file, or ``"default"``.
    """
    if name not in _RESCALING:
        return False, ()
    described = checkpoints.describe(path) if path.lower().endswith(checkpoints.SUFFIX) else None
    if described is not None and described.architecture.name == name:
        return described.architecture.transform_input, ()
    if _class_count(state) != IMAGENET_CLASSES:
        return False, ()
    if path == "default":
        return True, ()
    return True, (
        f"{name} has {IMAGENET_CLASSES} classes, so its weights are taken for published "
        "ones, which scale pictures to −1…1 (transform_input=True)",
    )


def _build(name: str, state: Mapping[str, Tensor], transform_input: bool) -> nn.Module:
    """The architecture with random weights, shaped to take a state dict."""
    options: dict[str, Any] = {}
    if state and (count := _class_count(state)):
        options["num_classes"] = count
    if name in _RESCALING:
        options["init_weights"] = False
        options["aux_logits"] = any(key.lower().startswith("aux") for key in state)
        options["transform_input"] = transform_input
    return torchvision.models.get_model(name, weights=None, **options)


def _class_count(state: Mapping[str, Tensor]) -> int:
    """How many classes a state dict's last layer tells apart."""
    last = [tensor for key, tensor in state.items() if tensor.ndim and "aux" not in key.lower()]
    return last[-1].shape[0] if last else 0


def _published(name: str, best: Any) -> nn.Module:
    if best is None:
        raise InputError(f"{name} has no published weights; use weights='none' or give a file")
    file = best.url.rsplit("/", 1)[-1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torchvision.models.get_model(name, weights=best, progress=sys.stderr.isatty())
    except (URLError, *_UNREADABLE) as error:
        reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        reason = reason.splitlines()[0]
        if (folder / file).exists():
            raise InputError(
                f"{str(folder / file)!r}, the weights of {name}, is damaged ({reason}): delete it "
                f"to have it downloaded again from {best.url}"
            ) from None
        raise InputError(
            f"the weights of {name} could not be had from {best.url} ({reason}): put that file "
            f"into {folder}, or name a file with --weights PATH (weights=PATH in Python), or use "
            "--weights none for random ones"
        ) from None


def _size(best: Any) -> tuple[int, int, int]:
    crop = best.transforms().crop_size[0] if best else 224
    return 3, crop, crop


def _torchvision_preprocess(best: Any) -> Preprocess:
    """The published weights' own preparation of pictures."""
    if best is None:
        return preprocess_by_name("torch", (3, 224, 224))
    preset = best.transforms()
    return Preprocess(
        size=(preset.crop_size[0], preset.crop_size[0]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation,
    )


def _from_factory(spec: str, weights: str | None, input_size: tuple[int, ...] | None) -> Model:
    module_name, _, attribute = spec.partition(":")
    if weights == "default":
        raise InputError(f"{spec} has no published weights; leave --weights out, or give a file")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = _random(
            lambda: _users_code(spec, lambda: importlib.import_module(module_name))
        )
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot find {spec!r}: {error}") from error
    finally:
        sys.path.pop(0)
    if isinstance(found, type) or (not isinstance(found, nn.Module | Model) and callable(found)):
        found = _made_by(found, spec)
    if not isinstance(found, nn.Module | Model):
        raise InputError(f"{spec} gave a {type(found).__name__}, not a torch.nn.Module")
    if isinstance(found, Model):
        found = _of_its_size(found, input_size)
    else:
        found = _assumed(found, spec, input_size)
    if weights not in (None, "none"):
        load_state(found.module, read_state(str(weights)), str(weights))
    return found


def _made_by(factory: Callable[[], Any], spec: str) -> Any:
    """What a factory makes, the same random weights every time."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise InputError(
            f"{spec} must be callable without arguments ({error}); write a function that calls it"
        ) from None
    except ValueError:  # written in C: it has no signature to ask
        pass
    return _random(lambda: _users_code(spec, factory))


def _users_code(spec: str, run: Callable[[], Any]) -> Any:
    """Run what the user wrote; whatever it raises is told as the user's.

    Raises:
        InputError: with the file and line, for anything but a module that cannot be found.
    """
    try:
        return run()
    except ModuleNotFoundError as error:
        if error.name is not None and spec.partition(":")[0].startswith(error.name):
            raise
        raise InputError(f"{spec} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{spec} failed: {type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        ) from error


def _assumed(module: nn.Module, spec: str, input_size: tuple[int, ...] | None) -> Model:
    """A bare network with what it does not say of itself."""
    size = input_size or (3, 224, 224)
    mode = "torch" if size[0] == 3 and len(size) == 3 else "rescale"
    guess = "" if input_size else f"an input of {'×'.join(map(str, size))} and "
    note = (
        f"{spec} does not say how it wants its pictures: {guess}the preprocessing {mode!r} "
        f"{'are' if guess else 'is'} assumed"
    )
    preprocess = preprocess_by_name(mode, size, nearest=False)
    return Model(module, preprocess, size, None, spec, (note,))


def _converters(path: str) -> Any:
    """The package that reads ONNX files; the rest of the library does without it.

    Raises:
        InputError: when another package of that name hides it.
    """
    import converters

    if not getattr(converters, "__torchviz_cnn__", False):
        found = getattr(converters, "__file__", None) or str(getattr(converters, "__path__", ""))
        raise InputError(
            f"{path} cannot be read: the package 'converters' found at {found} is not this "
            "library's and hides it; rename it or take its folder off the path"
        )
    return converters


def noise(model: Model, seed: int = 0) -> Tensor:
    """Two pictures of uniform noise from 0 to 1, as the network takes them, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, *model.input_size), generator=generator)


def compare_file(
    path: str | Path,
    model: Model,
    inputs: Tensor | None = None,
    layer_names: Sequence[str] | None = None,
    keras: str | Path | None = None,
    other: Model | None = None,
) -> Any:
    """An imported network beside its ONNX file, see :func:`converters.compare`; or beside Keras or
    another torch network.

    Args:
        path: the file.
        model: what :func:`load` made of it.
        inputs: pictures, prepared; noise otherwise.
        layer_names: Keras' names in order, to be checked against the file.
        keras: the Keras file it was exported from: compare with that instead.
        other: compare with this network instead, see :func:`converters.compare_with_torch`.

    Returns:
        A :class:`converters.Comparison`.

    Raises:
        InputError: as :func:`converters.compare`.
    """
    if inputs is None:
        inputs = noise(model)
    if other is not None:
        return _converters(str(path)).compare_with_torch(
            path, other, inputs=inputs, network=model.module
        )
    if keras is not None:
        return _converters(str(path)).compare_with_keras(
            path, keras, inputs=inputs, network=model.module
        )
    network = None if layer_names is not None else model.module
    return _converters(str(path)).compare(
        path, inputs=inputs, network=network, layer_names=layer_names
    )


def export_file(
    source: str | Path,
    target: str | Path,
    *,
    every_layer: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Any:
    """A Keras file as ONNX, see :func:`converters.export_keras`.

    Returns:
        A :class:`converters.Export`.

    Raises:
        InputError: as :func:`converters.export_keras`.
    """
    return _converters(str(source)).export_keras(
        source, target, every_layer=every_layer, input_shape=input_shape
    )


def _from_onnx(
    path: str,
    weights: str | None,
    preprocess: str | None,
    input_size: tuple[int, ...] | None,
    keras: str | Path | None,
) -> Model:
    if weights in ("default", "none"):
        raise InputError(f"{path} holds its own weights; leave --weights out, or give a file")
    module = _converters(path).load_onnx(path, keras=keras)
    size, notes = _size_of_import(path, module.source, input_size)
    if preprocess is None:
        notes += (
            f"{path} does not say how it wants its pictures: the preprocessing 'rescale' is assumed",
        )
    if weights is not None:
        load_state(module, read_state(weights), weights)
    mode = preprocess_by_name(preprocess or "rescale", size)
    return Model(module, mode, size, None, Path(path).name, (*module.source.notes, *notes))


def _size_of_import(
    path: str, source: Any, input_size: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """``(C, H, W)`` or ``(H, W)`` of an imported network, and what had to be assumed for it."""
    shape = tuple(source.input_size)
    wanted = "N×" + "×".join("any" if n is None else str(n) for n in shape)
    if len(source.inputs) != 1 or len(shape) not in (2, 3):
        raise InputError(
            f"{path} takes no single picture ({len(source.inputs)} inputs, the first {wanted}); "
            "converters.load_onnx imports it as a bare network"
        )
    if input_size is not None:
        given = input_size
        fits = len(given) == len(shape) and all(
            n in (None, m) for n, m in zip(shape, given, strict=True)
        )
        if not fits:
            raise InputError(f"{path} takes {wanted}, not N×{'×'.join(map(str, given))}")
        return given, ()
    if None not in shape:
        return shape, ()
    sides = (None, *shape)[-3:]
    channels, rest = (sides[0] or 3,), tuple(n or 224 for n in sides[1:])
    size = channels + rest if len(shape) == 3 else rest
    return size, (f"{path} takes pictures of any size: {'×'.join(map(str, size))} is assumed",)


def read_state(path: str) -> dict[str, Tensor]:
    """A state dict from a file, on the CPU; wrappers such as ``{"state_dict": …}`` are taken off.

    Loaded with ``weights_only=True``, or by safetensors: a file cannot run code.

    Raises:
        InputError: when the file is missing, damaged, or holds something else.
    """
    if path.lower().endswith(checkpoints.SUFFIX):
        return checkpoints.read_tensors(path)[0]
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"there is no weights file {path!r}") from None
    except IsADirectoryError:
        raise InputError(f"{path!r} is a folder, not a weights file") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path!r} is no state dict that can be loaded safely: it is damaged, or holds a whole "
            "pickled network; save network.state_dict() instead"
        ) from None
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path!r} is not a readable weights file: {reason}") from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path!r} holds a {type(found).__name__}, not a state dict of tensors")
    if not found:
        raise InputError(f"{path!r} holds an empty state dict")
    return {key.removeprefix("module.").removeprefix("_orig_mod."): v for key, v in found.items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Put a state dict into a network.

    Raises:
        InputError: naming what is missing, left over or of another shape, before anything is
            changed.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{what} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in (("it lacks", missing), ("it also has", surplus), ("in it", shapes))
        if found
    ]
    if problems:
        raise InputError(
            f"the weights in {path!r} do not fit this {type(module).__name__}: "
            + "; ".join(problems)
        )
    module.load_state_dict(dict(state), strict=False)


DeviceChoice = Literal["auto", "cpu", "cuda"]


def choose_device(wish: str = "auto") -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: for a device that is not there.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wish not in ("cpu", "cuda"):
        raise InputError(f"there is no device {wish!r}; choose auto, cpu or cuda")
    if wish == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device can be used here; choose --device cpu or auto")
    return torch.device(wish)


def read_classes(path: str | Path) -> list[str]:
    """Class names from a file: one a line; a JSON list; or JSON as Keras has it for ImageNet,
    ``{"0": ["n01440764", "tench"], …}``.

    Raises:
        InputError: when the file is missing or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read class names from {str(path)!r}: {reason}") from None
    if text.lstrip()[:1] not in ("[", "{"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{str(path)!r} is broken JSON: {error}") from None
    if isinstance(found, dict) and all(key.isdigit() for key in found):
        found = [found[key] for key in sorted(found, key=int)]
    names = [each[-1] if isinstance(each, list) and each else each for each in found]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{str(path)!r} holds no list of class names")
    return names
