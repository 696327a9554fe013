"""The network a run begins with: random, or with weights somebody has trained already."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchviz_cnn import models
from torchviz_cnn.checkpoints import Architecture
from torchviz_cnn.errors import InputError
from torchviz_cnn.models import Model
from torchviz_cnn.preprocess import Preprocess
from torchviz_cnn.training.ending import never_negative


@dataclass(frozen=True)
class Start:
    """A network to train.

    Attributes:
        module: with its first weights.
        architecture: how to build it again.
        preprocess, input_size: what it takes.
        frozen: names of parameters that stay as they are.
        notes: what was decided on the way, each a sentence.
    """

    module: nn.Module
    architecture: Architecture
    preprocess: Preprocess
    input_size: tuple[int, ...]
    frozen: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def start(
    name: str,
    classes: int,
    *,
    weights: str | None = None,
    freeze: bool = False,
    input_size: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Start:
    """A network by name with as many outputs as a number of classes calls for.

    Two classes are told apart by one output, or by two where scores come out of a ReLU
    (SqueezeNet's): a score that is never below 0 cannot say both. More have one output each.

    Args:
        name: one of :func:`torchviz_cnn.models.names`, or ``"package.module:factory"``, whose
            network must have the right outputs already.
        classes: how many.
        weights: ``"default"`` for published ones, a file of a state dict, or what was trained here;
            layers of another size, such as the last, start from random.
        freeze: train only what does not come from ``weights``.
        input_size: where it is not the usual one.
        seed: of the random weights.

    Raises:
        InputError: for an unknown network, weights that cannot be had or fit nowhere, frozen random
            weights.
    """
    given = None if weights in (None, "none") else weights
    if freeze and given is None:
        raise InputError(
            "freeze keeps weights as they are: give some, with weights=",
            typed="--freeze keeps weights as they are: give some, with --weights",
        )
    # Its preprocessing and size; of its weights, those that are wanted.
    bare = models.load(
        name, "none" if ":" not in name else None, input_size=input_size, device="cpu"
    )
    if not isinstance(bare.preprocess, Preprocess):
        raise InputError(
            f"the preprocessing of {name} is a function of its own, which a checkpoint cannot hold; "
            "return a torch.nn.Module, or a Model whose preprocess is a Preprocess"
        )
    if ":" in name:
        return _own_code(name, bare, bare.preprocess, given, freeze)
    architecture = Architecture(name, 1 if classes == 2 else classes)
    preprocess, size = bare.preprocess, bare.input_size
    state: dict[str, Tensor] = {}
    assumed: tuple[str, ...] = ()
    if given is not None:
        published = given == "default"
        # In so many words: left out, a network without published weights would have random ones.
        whole = models.load(name, given).module if published else None
        state = models.read_state(given) if whole is None else whole.state_dict()
        rescales, assumed = models.transforms_input(name, state, given)
        architecture = replace(architecture, transform_input=rescales)
    module = models.build(architecture, seed)
    if classes == 2 and never_negative(module, size):
        architecture = replace(architecture, outputs=2)
        module = models.build(architecture, seed)
    taken = _filled(module, state, given)
    frozen, notes = _kept(module, taken, freeze, given)
    return Start(module, architecture, preprocess, size, frozen, assumed + notes)


def _own_code(
    name: str, bare: Model, preprocess: Preprocess, given: str | None, freeze: bool
) -> Start:
    taken = _filled(bare.module, {} if given is None else models.read_state(given), given)
    frozen, notes = _kept(bare.module, taken, freeze, given)
    return Start(
        bare.module, Architecture(name), preprocess, bare.input_size, frozen, bare.notes + notes
    )


def _filled(module: nn.Module, state: dict[str, Tensor], given: str | None) -> set[str]:
    """Weights that fit by name and shape put in place; their names."""
    own = module.state_dict()
    taken = {key for key in own if key in state and state[key].shape == own[key].shape}
    if given is not None and not any(state[key].ndim for key in taken):
        raise InputError(f"none of the weights in {given!r} fit this {type(module).__name__}")
    with torch.no_grad():
        for key in taken:
            own[key].copy_(state[key])
    return taken


def _kept(
    module: nn.Module, taken: set[str], freeze: bool, given: str | None
) -> tuple[frozenset[str], tuple[str, ...]]:
    if given is None:
        return frozenset(), ()
    names = [name for name, _ in module.named_parameters()]
    kept = [name for name in names if name in taken]
    last = next((n for n, m in reversed(list(module.named_modules())) if _weighted(m)), "")
    new = [name for name in names if name not in taken]
    said = f"{len(kept)} of {len(names)} parameters start from {given}"
    if new:
        said += f", {', '.join(new[:4])}{' and more' if len(new) > 4 else ''} from random"
    if not freeze:
        return frozenset(), (said,)
    frozen = frozenset(name for name in kept if new or not name.startswith(f"{last}."))
    trained = [name for name in names if name not in frozen]
    said += f"; trained: {', '.join(trained[:4])}{' and more' if len(trained) > 4 else ''}"
    return frozen, (said,)


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)
