"""Several methods and layers of the same pictures, with the forward passes they have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from torchviz_cnn.attribution import Attribution
from torchviz_cnn.errors import (
    InputError,
    NotApplicable,
    check_counts,
    closest,
    levels_to_the_caller,
)
from torchviz_cnn.methods.cam import (
    WEIGHTS,
    Wanted,
    cell_attribution,
    cell_attributions,
    class_maps,
    guided_map,
)
from torchviz_cnn.methods.examine import Examination, examine, parts
from torchviz_cnn.methods.gradient import gradient_map, product_map
from torchviz_cnn.methods.passes import (
    FEW,
    Chosen,
    LayerChoice,
    PixelPass,
    choose,
    fast_together,
    joined,
)
from torchviz_cnn.methods.registry import METHODS, accepts
from torchviz_cnn.methods.relu import Rule
from torchviz_cnn.naming import is_glob, module_of
from torchviz_cnn.observe import activations
from torchviz_cnn.targets import ClassNames, ScoreKind, Target
from torchviz_cnn.tracing import traced

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

Around = Callable[[str], AbstractContextManager[object]]
_Results = dict[str, Attribution]
Layers = LayerChoice | Sequence[str | nn.Module]

_RULES: dict[str, Rule] = {
    "guided_backprop": "guided",
    "deconvnet": "deconvnet",
    "guided_grad_cam": "guided",
}
_PIXELS = {"saliency", "input_x_gradient", "guided_backprop", "deconvnet"}
_SHARING = _PIXELS | set(WEIGHTS) | {"guided_grad_cam"}


def explain(
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target = None,
    *,
    methods: str | Sequence[str],
    layer: Layers = None,
    score: ScoreKind = "logit",
    classes: ClassNames | None = None,
    **options: Any,
) -> dict[str, Attribution]:
    """Explain the same pictures by several methods, at several layers, in few forward passes.

    Every result is the one that the method gives alone. But ``saliency``, ``input_x_gradient``,
    ``guided_backprop``, ``deconvnet``, ``guided_grad_cam`` and the Grad-CAM family at all layers
    have one forward pass in common; without the gradients at the picture the Grad-CAM family needs
    no graph before the first of its layers, and one backward pass of the rest. Methods that
    evaluate variants of the pictures run by themselves.

    Args:
        model, inputs, target, score, classes: as for :func:`~torchviz_cnn.saliency`.
        methods: names of ``METHODS``, or one; or ``"all"`` for every one that this network is made
            for.
        layer: for the methods that look at a layer; or several layers; or a glob for all it
            matches that put out feature maps, which one more pass of the first picture tells.
        options: keywords of the methods; each gets those it knows. With a ``batch_size`` smaller than
            the number of pictures only the Grad-CAM family shares passes; by default a pass that
            others share takes as many pictures as :func:`~torchviz_cnn.saliency` does.

    Returns:
        The results by method, in the order asked for; where several layers were given, those of
        methods that look at one by ``"method:layer"``.

    Raises:
        InputError: as the methods; for a method that is not there or an option none of them knows.

    Warns:
        UserWarning: as the methods; for each that ``"all"`` leaves out, with the reason.

    Example:
        >>> import torch, torchvision, torchviz_cnn as tvc
        >>> net, x = torchvision.models.resnet18(), torch.randn(1, 3, 64, 64)
        >>> list(tvc.explain(net, x, methods=["saliency", "grad_cam", "layer_cam"]))
        ['saliency', 'grad_cam', 'layer_cam']
        >>> list(tvc.explain(net, x, methods="layer_cam", layer=["layer3", "layer4"]))
        ['layer_cam:layer3', 'layer_cam:layer4']
    """
    names, skip = methods_meant(_several(methods))
    _check_options(names, options)
    known = {"score": score, "classes": classes, **options}
    found = explained_by(names, model, inputs, target, layer, known, skip=skip)
    results = {key: each for key, each in found.items() if isinstance(each, Attribution)}
    failures = {key: each for key, each in found.items() if isinstance(each, NotApplicable)}
    if not results:
        raise next(iter(failures.values()))
    for sentence in left_out({name: str(failure) for name, failure in failures.items()}):
        warnings.warn(sentence, stacklevel=levels_to_the_caller())
    return results


def left_out(reasons: Mapping[str, str]) -> list[str]:
    """What is said of methods that are left out, once for each reason.

    Args:
        reasons: by method.

    Example:
        >>> left_out({"grad_cam": "no map", "deconvnet": "no ReLU", "score_cam": "no map"})
        ['grad_cam, score_cam are left out: no map', 'deconvnet is left out: no ReLU']
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f"{', '.join(alike)} {'is' if len(alike) == 1 else 'are'} left out: {reason}"
        for reason, alike in names.items()
    ]


def methods_meant(wished: Sequence[str]) -> tuple[list[str], bool]:
    """The methods meant, and whether those that cannot be used may be left out: where all are.

    Raises:
        InputError: for no method, or one that is not there.
    """
    if not wished:
        raise InputError(f"name at least one method of {', '.join(METHODS)}, or all")
    for name in wished:
        text = isinstance(name, str)
        if not text or name not in {*METHODS, "all"}:
            near = closest(name, METHODS) if text else ""
            offer = near or f"; choose from {', '.join(METHODS)}, or all"
            raise InputError(f"there is no method {name!r}{offer}")
    if "all" in wished:
        return list(METHODS), True
    return list(dict.fromkeys(wished)), False


def _check_options(names: Sequence[str], options: Mapping[str, object]) -> None:
    for option in options:
        if not any(accepts(name, option) for name in names):
            raise InputError(f"none of {', '.join(names)} has an option {option!r}")


def explained_by(
    names: Sequence[str],
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target,
    layer: Layers,
    options: Mapping[str, Any],
    *,
    skip: bool,
    around: Around = nullcontext,
) -> dict[str, Attribution | NotApplicable]:
    """What :func:`explain` gives.

    Args:
        names: keys of ``METHODS``.
        model, inputs, target, layer: as for :func:`explain`.
        options: keyword arguments; each method gets those it knows.
        skip: give the reason in place of the results of a method that this network is not made for.
        around: makes a context for each method's work, given its name.

    Raises:
        InputError: when the question is wrong; when a method does not apply, unless ``skip``.
    """
    layers = _several(layer)
    if not layers:
        raise InputError("name at least one layer, or leave layer out for the default one")
    if any(accepts(name, "layer") for name in names):
        layers = _spelled_out(model, inputs, layers)
    found: dict[str, _Results | NotApplicable] = {}

    def attempt(name: str, work: Callable[[], _Results]) -> None:
        with around(name):
            try:
                found[name] = work()
            except NotApplicable as reason:
                if not skip:
                    raise
                found[name] = reason

    batch_size = options.get("batch_size")
    check_counts(batch_size=batch_size)
    count = len(inputs) if isinstance(inputs, Tensor) and inputs.ndim else 0
    bounded = batch_size is not None and batch_size < count
    sharing = [name for name in names if name in (WEIGHTS if bounded else _SHARING)]
    if len(sharing) > 1 or (sharing and len(layers) > 1):
        question = (options.get("score", "logit"), options.get("classes"))
        with examine(model, inputs, target, *question) as examination:
            at_once = bounded or all(name in WEIGHTS for name in sharing)
            shared = (_Shared if at_once else _InParts)(examination, sharing, layers, options)
            for name in sharing:
                attempt(name, partial(shared.results, name))
            del shared
    for name in names:
        if name not in found:
            attempt(name, partial(_alone, name, model, inputs, target, layers, options))
    ordered: dict[str, Attribution | NotApplicable] = {}
    for name in names:
        each = found[name]
        ordered.update({name: each} if isinstance(each, NotApplicable) else each)
    return ordered


def _several(given: Any) -> list[Any]:
    """What was given in a row, or alone; a network's part is one, whatever it holds."""
    alone = isinstance(given, str | nn.Module) or not isinstance(given, Iterable)
    return [given] if alone else list(given)


def _spelled_out(
    model: nn.Module | Model, inputs: Tensor, layers: Sequence[LayerChoice]
) -> list[LayerChoice]:
    """The layers with every glob replaced by those it matches that put out feature maps.

    Raises:
        InputError: for a glob that matches none.
    """
    module = module_of(model)
    meant: list[LayerChoice] = []
    for layer in layers:
        if not isinstance(layer, str) or not is_glob(module, layer):
            meant.append(layer)
            continue
        one = inputs[:1] if isinstance(inputs, Tensor) and inputs.ndim else inputs
        maps = [
            name
            for name, out in activations(model, one, layer).items()
            if out.ndim == 4 and len(out) == 1 and out.is_floating_point()
        ]
        if not maps:
            raise InputError(f"no layer that {layer!r} matches puts out feature maps (N, C, h, w)")
        meant += [name for name in maps if name not in meant]
    return meant


def _alone(
    name: str,
    model: nn.Module | Model,
    inputs: Tensor,
    target: Target,
    layers: Sequence[LayerChoice],
    options: Mapping[str, Any],
) -> dict[str, Attribution]:
    known = {key: value for key, value in options.items() if accepts(name, key)}
    if not accepts(name, "layer"):
        return {name: METHODS[name](model, inputs, target, **known)}
    results = [METHODS[name](model, inputs, target, layer=each, **known) for each in layers]
    return _by_layer(name, results)


def _by_layer(name: str, results: Sequence[Attribution]) -> dict[str, Attribution]:
    if len(results) == 1:
        return {name: results[0]}
    return {f"{name}:{each.layer}": each for each in results}


class _InParts:
    """What :class:`_Shared` finds, of as many pictures at a time as go together.

    A pass from the picture keeps all that it computes for the way back, so it bounds the memory.
    """

    def __init__(
        self,
        examination: Examination,
        names: Sequence[str],
        layers: Sequence[LayerChoice],
        options: Mapping[str, Any],
    ) -> None:
        self.examination = examination
        self.names = names
        self.layers = layers
        self.options = options
        self.told: dict[str, list[Warning | str]] = {}

    def results(self, name: str) -> dict[str, Attribution]:
        """What a method found, as :meth:`_Shared.results`."""
        found = self._found[name]
        for warning in self.told.pop(name, ()):
            warnings.warn(warning, stacklevel=levels_to_the_caller())
        if isinstance(found, NotApplicable):
            raise found
        return found

    @cached_property
    def _found(self) -> dict[str, _Results | NotApplicable]:
        found: dict[str, list[_Results]] = {name: [] for name in self.names}
        reasons: dict[str, NotApplicable] = {}
        size = self.options.get("batch_size") or fast_together(self.examination)
        for number, part in enumerate(parts(self.examination, size, FEW)):
            shared = _Shared(part, self.names, self.layers, self.options, warns=number == 0)
            for name in self.names:
                if name in reasons:
                    continue
                try:
                    with warnings.catch_warnings(record=True) as told:
                        warnings.simplefilter("always")
                        found[name].append(shared.results(name))
                except NotApplicable as reason:
                    reasons[name] = reason
                if number == 0:
                    self.told[name] = [each.message for each in told]
        whole = {
            name: {key: joined([each[key] for each in found[name]]) for key in found[name][0]}
            for name in self.names
            if name not in reasons
        }
        return {**whole, **reasons}


class _Shared:
    """The forward passes that methods have in common, each run when it is first needed."""

    def __init__(
        self,
        examination: Examination,
        names: Sequence[str],
        layers: Sequence[LayerChoice],
        options: Mapping[str, Any],
        *,
        warns: bool = True,
    ) -> None:
        self.examination = examination
        self.names = names
        self.layers = layers
        self.options = options
        self.warns = warns

    def results(self, name: str) -> dict[str, Attribution]:
        """What a method found, by its name or, of several layers, by name and layer."""
        if name in WEIGHTS:
            return _by_layer(name, [self._cams[name, layer] for layer in self._chosen])
        rule = _RULES.get(name)
        shared = self._ruled if rule else self._plain
        if name == "guided_grad_cam":
            return _by_layer(name, [guided_map(shared, layer) for layer in self._chosen])
        if name == "input_x_gradient":
            return {name: product_map(shared)}
        positive = bool(self.options.get("positive", False))
        return {name: gradient_map(shared, name, rule, positive=positive)}

    @cached_property
    def _chosen(self) -> list[Chosen]:
        module, inputs = self.examination.module, self.examination.inputs
        return [choose(module, layer, inputs.detach()) for layer in self.layers]

    @property
    def _held(self) -> list[Chosen]:
        """The layers that a pass from the picture holds; none where there is nothing to hold."""
        if self._pictures_only:
            return []
        try:
            return self._chosen
        except NotApplicable:
            return []

    @property
    def _pictures_only(self) -> bool:
        return all(name in _PIXELS for name in self.names)

    def _pass(self, *, rules: bool) -> PixelPass:
        with traced(self.examination.module, self.examination.inputs) as trace:
            shared = PixelPass(
                self.examination,
                rules=rules,
                layers=self._held,
                keep=True,
                warns=self.warns,
            )
        self._trace = trace
        return shared

    @cached_property
    def _ruled(self) -> PixelPass:
        return self._pass(rules=True)

    @cached_property
    def _plain(self) -> PixelPass:
        # Where clamp(min=0) runs as a ReLU, the slope at 0 is another than the network's own.
        if any(name in _RULES for name in self.names) and not self._ruled.clamps:
            return self._ruled
        return self._pass(rules=False)

    @cached_property
    def _cams(self) -> dict[Wanted, Attribution]:
        wanted = [(name, layer) for name in self.names if name in WEIGHTS for layer in self._chosen]
        relu, batch_size = self.options.get("relu", True), self.options.get("batch_size")
        count = len(self.examination.inputs)
        by_themselves = all(name in WEIGHTS for name in self.names)
        if not by_themselves and (batch_size is None or batch_size >= count):
            try:
                return dict(self._from_the_picture(wanted, relu))
            except InputError:
                pass  # cut at the layer, the network may still tell: its start may have no graph
        own = replace(self.examination, inputs=self.examination.inputs.detach())
        return dict(cell_attributions(own, wanted, relu=relu, batch_size=batch_size))

    def _from_the_picture(self, wanted: Sequence[Wanted], relu: bool) -> dict[Wanted, Attribution]:
        values = class_maps(self._plain.seen, wanted, keep_graph=True)
        about = self.examination.about(self._plain.explained, "", {"relu": relu})
        return {
            each: cell_attribution(self.examination, each, maps, self._trace, about)
            for each, maps in values.items()
        }
