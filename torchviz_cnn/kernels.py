"""The filters a convolution has learnt: its weights, their norms, and a picture of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from torchviz_cnn import render
from torchviz_cnn.errors import InputError, check_counts
from torchviz_cnn.files import write_atomically
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.naming import (
    display_name,
    is_glob,
    merged_norm,
    module_of,
    resolve,
    resolve_one,
)
from torchviz_cnn.render.kernels import picked
from torchviz_cnn.report import write_picture
from torchviz_cnn.words import brief, counted, some

if TYPE_CHECKING:
    from PIL import Image

    from torchviz_cnn.models import Model

# A table of more kernels than this is a wall, of which the strongest are shown.
MOST_KERNELS = 64 * 64
MOST_IN_A_ROW = 64


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of one convolution.

    Attributes:
        layer: its name.
        weight: ``(filters, input channels of each, h, w)``, on the network's device; of a grouped
            or depthwise convolution only the channels of the filter's group.
        bias: ``(filters,)`` or ``None``.
        groups: of how many groups of input channels a filter sees one.
        scaled_by: the batch norm that an exporter merged into the convolution: each filter has been
            multiplied by its factor, and the bias takes in its summand.
    """

    layer: str
    weight: Tensor
    bias: Tensor | None
    groups: int = 1
    scaled_by: str | None = None

    @property
    def norms(self) -> Tensor:
        """The norm of each filter, the root of the sum of its squared weights: ``(filters,)``."""
        return self.weight.flatten(1).norm(dim=1)

    def __len__(self) -> int:
        return len(self.weight)

    def __str__(self) -> str:
        count, channels, height, width = self.weight.shape
        low, high = float(self.norms.min()), float(self.norms.max())
        of_group = f" of its group of {self.groups}" if self.groups > 1 else ""
        scaled = f"; scaled by the batch norm {self.scaled_by!r} that was merged into it"
        return (
            f"{self.layer}: {counted(count, 'filter')} over {counted(channels, 'input channel')}"
            f"{of_group}, {height}×{width}; norms from {brief(low)} to {brief(high)}"
            f"{scaled if self.scaled_by else ''}"
        )

    def __repr__(self) -> str:
        return str(self)  # what an interpreter and a notebook show

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.picture().save(buffer, format="PNG")
        return buffer.getvalue()

    def picture(
        self,
        *,
        top: int | None = None,
        chosen: Sequence[int] | None = None,
        inputs: Sequence[int] | None = None,
        **options: Any,
    ) -> Image.Image:
        """The kernels as one picture, see :func:`torchviz_cnn.render.filters`.

        Args:
            top: only so many filters, those with the largest norm, the largest first. Left out,
                all where they are a picture that can be looked at, else as many as that.
            chosen: these filters instead, in this order.
            inputs: only these input channels, in this order; where there are too many, those in
                which the filters drawn have the largest norm.
            options: ``columns``, ``colormap``, ``scale``, ``rgb`` and ``title``.

        Raises:
            InputError: for a filter or channel that is not there, or a bad option.
        """
        count, channels = self.weight.shape[:2]
        check_counts(top=top)
        if chosen is not None:
            chosen = picked(chosen, count, "filter")
        in_colour = channels == 3 if options.get("rgb") is None else bool(options["rgb"])
        reasons = ["", ""]
        if chosen is None:
            most = count if in_colour or channels == 1 else self._rows_shown(inputs)
            shown = min(count, most if top is None else top)
            if shown < count:
                chosen = self.norms.argsort(descending=True, stable=True)[:shown].tolist()
                reasons[0] = "those with the largest norm, the largest first"
        if inputs is None and not in_colour and channels > MOST_IN_A_ROW:
            rows = self.weight if chosen is None else self.weight[list(chosen)]
            strength = rows.transpose(0, 1).flatten(1).norm(dim=1)
            best = strength.argsort(descending=True, stable=True)[:MOST_IN_A_ROW]
            inputs = best.sort().values.tolist()
            reasons[1] = "those in which the filters drawn have the largest norm, in their order"
        title = f"{self.layer}, filters {'×'.join(map(str, self.weight.shape))}"
        scaled = f", scaled by {self.scaled_by}" if self.scaled_by else ""
        options.setdefault("title", title + scaled)
        options.setdefault("reasons", tuple(reasons))
        return render.filters(self.weight, chosen=chosen, inputs=inputs, **options)

    def _rows_shown(self, inputs: Sequence[int] | None) -> int:
        columns = len(inputs) if inputs is not None else min(self.weight.shape[1], MOST_IN_A_ROW)
        return max(1, MOST_KERNELS // max(1, columns))

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the picture as PNG or JPEG; never half-written.

        Args:
            path: the file, which ends in ``.png`` or ``.jpg``.
            options: as for :meth:`picture`.

        Raises:
            InputError: for another suffix.
            OSError: when it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise InputError(f"cannot save {path.name!r}: the name must end in .png or .jpg")
        image = self.picture(**options)
        if path.suffix.lower() == ".png":
            return write_picture(path.parent, path.name, image)
        return write_atomically(path, lambda file: image.save(file, format="JPEG", quality=95))


def filters(model: nn.Module | Model, layer: str | nn.Module) -> Filters:
    """The filters of a convolution.

    Args:
        model: any network; nothing of it is run or changed.
        layer: a convolution by name, alias or module, or a layer that holds one.

    Returns:
        Its weights, and ways to draw them. Transposed convolutions are turned so that filters come
        first. Of a convolution that an exporter merged a batch norm into, the merged kernels, and
        the name of the batch norm.

    Raises:
        InputError: for a layer that is not there, holds no convolution, or holds several; names
            those that could be meant.

    Example:
        >>> import torchviz_cnn as tvc
        >>> first = tvc.filters(tvc.models.load("cat_dog"), "conv2d_1")
        >>> first.weight.shape, first.norms.shape, first.picture().mode
        (torch.Size([32, 3, 3, 3]), torch.Size([32]), 'RGB')
    """
    module = module_of(model)
    chosen = resolve_one(module, layer, weights=True)
    convolution = _convolution(module, chosen.module, chosen.name)
    with undisturbed(module), _as_computed(convolution):
        weight = convolution.weight.detach().clone()
        if convolution.transposed:
            groups, (given, made) = convolution.groups, weight.shape[:2]
            parts = weight.reshape(groups, given // groups, made, *weight.shape[2:])
            weight = parts.transpose(1, 2).reshape(
                groups * made, given // groups, *weight.shape[2:]
            )
        bias = None if convolution.bias is None else convolution.bias.detach().clone()
    if weight.ndim == 3:  # along one axis: one row high
        weight = weight[:, :, None]
    if weight.ndim != 4:
        raise InputError(
            f"the kernels of {chosen.name!r} are {tuple(weight.shape)}; only those of one or two "
            "dimensions are drawn"
        )
    own_name = {child: name for name, child in module.named_modules()}[convolution]
    norm = merged_norm(module, own_name)
    return Filters(chosen.name, weight, bias, convolution.groups, norm)


@contextmanager
def _as_computed(convolution: nn.Module) -> Iterator[None]:
    """Let ``weight`` be what the next forward pass computes with.

    Torch's older ways to normalise and prune weights compute it only then, in a hook: until then it
    may be of the weights before these were loaded.
    """
    before = dict(vars(convolution))
    try:
        for hook in convolution._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                hook(convolution, ())
        yield
    finally:
        vars(convolution).update(before)


def convolutions(model: nn.Module | Model, layer: str) -> list[str]:
    """The layers a word means of which :func:`filters` tells, in the network's order.

    Args:
        model: any network.
        layer: a name, which is given back as it is; or a glob: the layers it matches that are a
            convolution or hold one, each convolution once, by the first of its names.

    Raises:
        InputError: for a glob that matches no such layer.

    Example:
        >>> import torchviz_cnn as tvc
        >>> convolutions(tvc.models.load("cat_dog"), "conv2d_?")
        ['conv2d_1', 'conv2d_2', 'conv2d_3', 'conv2d_4']
    """
    module = module_of(model)
    if not is_glob(module, layer):
        return [layer]
    names: dict[nn.Module, str] = {}
    for each in resolve(module, layer, weights=True):
        held = _held(each.module)
        if len(held) == 1:
            names.setdefault(held[0], each.name)
    if not names:
        raise InputError(
            f"no layer that {layer!r} matches is a convolution or holds one{_those(module)}"
        )
    return list(names.values())


def _held(layer: nn.Module) -> list[nn.modules.conv._ConvNd]:
    return [m for m in layer.modules() if isinstance(m, nn.modules.conv._ConvNd)]


def _those(root: nn.Module) -> str:
    every = _held(root)
    return f"; convolutions are {_names(root, every)}" if every else ""


def _convolution(root: nn.Module, layer: nn.Module, name: str) -> nn.modules.conv._ConvNd:
    found = _held(layer)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{name!r} holds {len(found)} convolutions; name one of them: {_names(root, found)}"
        )
    raise InputError(f"{name!r} is no convolution and has no filters{_those(root)}")


def _names(root: nn.Module, modules: Sequence[nn.Module]) -> str:
    names = {child: name for name, child in root.named_modules()}
    return some([display_name(root, names[child]) for child in modules])
