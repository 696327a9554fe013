"""Naming layers: by dotted name, by alias, by glob, by the module itself, and by the call.

A module that runs several times in one forward pass has a name for each run: ``relu`` is the first,
``relu@1`` and ``relu@2`` the later ones, ``relu@*`` all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.guard import unwrap
from torchviz_cnn.words import a, some

if TYPE_CHECKING:
    from torchviz_cnn.models import Model

# original name -> alias. Kept beside the network, not in it: renaming must not touch the module.
_ALIASES: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()

_CALL = re.compile(r"(?P<name>.+)@(?P<call>\d+|\*)", re.DOTALL)


def module_of(model: nn.Module | Model) -> nn.Module:
    """The bare network: out of a :class:`~torchviz_cnn.models.Model`, out of any wrapper.

    Raises:
        InputError: for anything that is not a network.
    """
    inner = getattr(model, "module", model) if not isinstance(model, nn.Module) else model
    if not isinstance(inner, nn.Module):
        raise InputError(
            f"expected a torch.nn.Module or a Model from models.load, got {type(model).__name__}"
        )
    return unwrap(inner)


def known(model: nn.Module | Model, attribute: str) -> Any:
    """What a Model knows about itself; a bare network's own attributes are its own affair."""
    return None if isinstance(model, nn.Module) else getattr(model, attribute, None)


def size_of_one(model: nn.Module | Model) -> tuple[int, ...] | None:
    """``(C, H, W)`` or ``(H, W)`` of one image, where a Model or an imported network knows it."""
    module = module_of(model)
    size: tuple[int, ...] | None = known(model, "input_size")
    if size is not None or not getattr(module, "is_imported_network", False):
        return size
    source: Any = module.source
    picture = len(source.inputs) == 1 and source.input_layout == "NCHW" and not source.whole
    if not picture or len(source.input_size) not in (2, 3) or None in source.input_size:
        return None
    return tuple(source.input_size)


def aliases(module: nn.Module) -> Mapping[str, str]:
    """The aliases given by :func:`rename`: original name -> alias."""
    return _ALIASES.get(module, {})


def foreign_names(module: nn.Module) -> Mapping[str, str]:
    """Names a network brings along from where it was imported: theirs -> the module's.

    For layers whose names torch refuses (``mobilenetv2_1.00_224``, ``train``); kept in the network,
    as ``layer_names``, so that copies of it have them too.
    """
    return _brought_along(module, "layer_names")


def _brought_along(module: nn.Module, what: str) -> Mapping[str, str]:
    """What an imported network knows of its layers; other networks' attributes are their own."""
    if not getattr(module, "is_imported_network", False):
        return {}
    found: Mapping[str, str] = getattr(module, what)
    return found


def display_name(module: nn.Module, name: str) -> str:
    """The alias of a layer where it has one, else its name where it was imported from.

    Written as before ``torch.compile`` where that wrapped a part.
    """
    if name in aliases(module):
        return aliases(module)[name]
    name = name.replace("._orig_mod", "")
    return _translated(name, {ours: theirs for theirs, ours in foreign_names(module).items()})


def _translated(name: str, names: Mapping[str, str]) -> str:
    """A layer's name, or that of a part of it, in the other of two languages."""
    if not names:
        return name
    prefix = name
    while prefix not in names and "." in prefix:
        prefix = prefix.rpartition(".")[0]
    return names[prefix] + name[len(prefix) :] if prefix in names else name


def unavailable_layers(module: nn.Module) -> Mapping[str, str]:
    """Layers whose output an imported network does not have -> why, in a sentence."""
    return _brought_along(module, "unavailable_layers")


def merged_norm(module: nn.Module, name: str) -> str | None:
    """The batch norm whose factors are in a convolution's kernel, where an exporter put them there.

    Args:
        name: the convolution's, or that of a part of it, as the module has it.
    """
    return _of_layer(_brought_along(module, "merged_norms"), name)


def refuse_unavailable(module: nn.Module, name: str) -> None:
    """Raise for a layer whose output an imported network does not have.

    Raises:
        InputError: with the network's own sentence, for the layer and for its parts.
    """
    _refuse(unavailable_layers(module), name)


def _refuse(unavailable: Mapping[str, str], name: str) -> None:
    sentence = _of_layer(unavailable, name)
    if sentence is not None:
        raise InputError(sentence)


def _of_layer(known: Mapping[str, str], name: str) -> str | None:
    """What is known of a layer, or of the one it is a part of."""
    found = (text for layer, text in known.items() if f"{name}.".startswith(f"{layer}."))
    return next(found, None)


def rename(model: nn.Module | Model, names: Mapping[str, str]) -> None:
    """Give layers other names; numbers, weights and the original names stay as they are.

    The alias stands in every table and is accepted wherever a layer is named. Renaming an alias
    replaces it; ``{"alias": "original"}`` takes it back.

    Args:
        model: any network.
        names: what a layer is called now -> what it shall be called.

    Raises:
        InputError: for a name no layer has, a new name another layer has, or what is no name.

    Example:
        >>> import torch.nn as nn, torchviz_cnn as tvc
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> tvc.rename(net, {"0": "edges"})
        >>> tvc.layers(net).names
        ['edges', '1']
    """
    module = module_of(model)
    if not isinstance(names, Mapping):
        raise InputError(
            "names are given as a dictionary, from what a layer is called to what it shall be "
            f"called, not as {a(type(names).__name__)}"
        )
    originals = {name for name, _ in module.named_modules() if name}
    updated = dict(aliases(module))
    for old, new in names.items():
        if not (isinstance(old, str) and isinstance(new, str)):
            raise InputError(
                f"a layer's name is a string, not {new if isinstance(old, str) else old!r}"
            )
        original = original_name(module, old)
        if not new or any(character in new for character in "@*?[]") or new != new.strip():
            raise InputError(
                f"{new!r} cannot name a layer: a name must not be empty nor hold any of @ * ? [ ]"
            )
        updated.pop(original, None)
        if new == original:
            continue
        if new in originals or new in updated.values():
            raise InputError(f"cannot rename {old!r} to {new!r}: another layer has that name")
        updated[original] = new
    _ALIASES[module] = updated


def original_name(module: nn.Module, name: str) -> str:
    """The module's own name for a layer given by name or alias.

    Raises:
        InputError: when no layer is called so; offers the closest names.
    """
    by_alias = {alias: original for original, alias in aliases(module).items()}
    if name in by_alias:
        return by_alias[name]
    translated = _translated(name, foreign_names(module))
    if translated != name and _reaches_module(module, translated):
        return translated
    if _reaches_module(module, name):  # the common case, without listing the whole network
        return name
    known = dict(module.named_modules(remove_duplicate=False))
    for prefix in ("", "_orig_mod.", "module."):  # as a wrapper would have called it
        if prefix == name[: len(prefix)] and name[len(prefix) :] in known and name != prefix:
            return name[len(prefix) :]
    written = name.split(".")
    for known_name in known:  # parts that torch.compile wrapped have one name more in between
        if [part for part in known_name.split(".") if part != "_orig_mod"] == written:
            return known_name
    refuse_unavailable(module, name)  # known, and nothing of it is left
    candidates = [display_name(module, known_name) for known_name in known if known_name]
    fault = f"the network has no layer {name!r}"
    raise _unknown(fault, closest(name, candidates))


def _unknown(fault: str, offer: str = "") -> InputError:
    return InputError(
        fault + (offer or "; layers() lists them all"),
        typed=fault + (offer or "; 'torchviz-cnn layers MODEL --all' lists them all"),
    )


def _reaches_module(module: nn.Module, name: str) -> bool:
    current: nn.Module | None = module
    for part in name.split("."):
        current = current._modules.get(part) if current is not None else None
    return current is not None


@dataclass(frozen=True)
class Layer:
    """One named module and the calls of it that are meant.

    ``call`` is 0 for the first run, ``None`` for every run. ``explicit`` tells a layer asked for by
    its own name from one that a glob happened to match: only the first must have run.
    """

    name: str
    module: nn.Module
    call: int | None = 0
    explicit: bool = True

    def key(self, call: int) -> str:
        """What the result of the given run is called."""
        return self.name if call == 0 else f"{self.name}@{call}"


def _by_module(module: nn.Module, wanted: nn.Module) -> str:
    wanted = unwrap(wanted)
    for name, candidate in module.named_modules():
        if candidate is wanted:
            return name
    raise InputError(
        f"the {type(wanted).__name__} given as a layer is not part of this network; "
        "take it from the network itself, or name it"
    )


def split_call(module: nn.Module, text: str) -> tuple[str, int | None]:
    """``relu@2`` -> (``relu``, 2); ``relu@*`` -> (``relu``, None); ``relu`` -> (``relu``, 0)."""
    match = _CALL.fullmatch(text)
    if match is None or text in dict(module.named_modules()):  # a module may be called so itself
        return text, 0
    return match["name"], None if match["call"] == "*" else int(match["call"])


def is_glob(module: nn.Module, text: str) -> bool:
    """Whether a word may mean several layers, or several runs of one.

    >>> net = nn.Sequential(nn.ReLU())
    >>> is_glob(net, "0"), is_glob(net, "*"), is_glob(net, "0@1"), is_glob(net, "0@*")
    (False, True, False, True)
    """
    base, call = split_call(module, text)
    return call is None or (_has_wildcard(base) and not _reaches_module(module, base))


def _has_wildcard(name: str) -> bool:
    return any(character in name for character in "*?[")


def resolve(
    module: nn.Module,
    spec: str | nn.Module | Iterable[str | nn.Module],
    *,
    weights: bool = False,
) -> list[Layer]:
    """The layers a specification means, in the network's order for a glob, else as given.

    Args:
        module: an unwrapped network.
        spec: a name, alias, glob or module, or several of them. A glob (``*``, ``?``, ``[…]``)
            is matched against names and aliases and means first calls, unless it says ``@``; what
            is itself a layer's name means that layer.
        weights: whether the layers' weights are asked for, which are there of layers too whose
            output an imported network does not have.

    Raises:
        InputError: for a name or glob that matches nothing.

    Example:
        >>> import torch.nn as nn
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> [layer.name for layer in resolve(net, "*")]
        ['0', '1']
    """
    if isinstance(spec, str | nn.Module) or not isinstance(spec, Iterable):
        spec = [spec]
    unavailable = {} if weights else unavailable_layers(module)
    found: dict[tuple[str, int | None], Layer] = {}
    for one in spec:
        if isinstance(one, nn.Module):
            name = _by_module(module, one)
            _refuse(unavailable, name)
            found.setdefault((name, 0), Layer(display_name(module, name), unwrap(one)))
            continue
        if not isinstance(one, str):
            raise InputError(f"a layer is named by a string or a module, not by {one!r}")
        base, call = split_call(module, one)
        if _has_wildcard(base) and not _reaches_module(module, base):
            hits = [
                (name, child)
                for name, child in module.named_modules()
                if name
                and (fnmatchcase(name, base) or fnmatchcase(display_name(module, name), base))
            ]
            if not hits:
                raise _unknown(f"no layer matches {one!r}")
            for name, child in hits:
                if len(hits) == 1:
                    _refuse(unavailable, name)
                elif _of_layer(unavailable, name) is not None:
                    continue
                found.setdefault(
                    (name, call), Layer(display_name(module, name), child, call, explicit=False)
                )
        else:
            name = original_name(module, base)
            _refuse(unavailable, name)
            found[name, call] = Layer(
                display_name(module, name), module.get_submodule(name), call, explicit=True
            )
    return list(found.values())


def resolve_one(module: nn.Module, spec: str | nn.Module, *, weights: bool = False) -> Layer:
    """The single layer a specification means; ``weights`` as for :func:`resolve`.

    Raises:
        InputError: when it means none or several.
    """
    layers = resolve(module, spec, weights=weights)
    if len(layers) != 1 or layers[0].call is None:
        names = [layer.key(layer.call or 0) for layer in layers]
        if len(names) == 1:
            raise InputError(f"one layer is needed, and {spec!r} means every run of {names[0]!r}")
        raise InputError(f"one layer is needed, and {spec!r} means several ({some(names)})")
    return layers[0]
