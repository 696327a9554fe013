"""The style of a picture as a network sees it: which features occur together, wherever they do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchviz_cnn.axes import channels_first, widths_of
from torchviz_cnn.errors import InputError, NotApplicable
from torchviz_cnn.inputs import check_inputs
from torchviz_cnn.naming import display_name, module_of, resolve, split_call
from torchviz_cnn.observe import LayerChoice, activations
from torchviz_cnn.passage import kind_of
from torchviz_cnn.summary import is_row
from torchviz_cnn.tracing import remembered
from torchviz_cnn.words import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from torchviz_cnn.models import Model


def gram_matrix(maps: Tensor) -> Tensor:
    """Inner products of a layer's maps: ``G_ij = Σ_k F_ik F_jk`` over the cells k.

    Args:
        maps: ``(N, C, h, w)``.

    Returns:
        ``(N, C, C)``, symmetric; not divided by anything. Of half precision in single: sums over
        the cells of a map are beyond its largest number.

    Raises:
        InputError: for maps of another number of axes.

    Source: Gatys, Ecker, Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks",
    equation 3.

    Example:
        >>> import torch
        >>> gram_matrix(torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]]))
        tensor([[[5., 6.],
                 [6., 9.]]])
    """
    if maps.ndim != 4:
        raise InputError(f"feature maps are (N, C, h, w), not {tuple(maps.shape)}")
    half = maps.dtype in (torch.float16, torch.bfloat16)
    flat = (maps.float() if half else maps).flatten(2)
    return flat @ flat.transpose(1, 2)


def style_layers(model: nn.Module | Model, inputs: Tensor) -> list[str]:
    """For each size of map the first convolution that makes one, after its activation.

    In VGG they are the layers of Gatys et al. 2016: relu1_1, relu2_1, … relu5_1.

    Args:
        model: any network.
        inputs: ``(N, C, H, W)`` or ``(N, H, W)``; one image of it is run, the answer is remembered.

    Raises:
        InputError: for bad inputs.
        NotApplicable: when no convolution of the network puts out a map.

    Example:
        >>> import torch, torchvision
        >>> style_layers(torchvision.models.vgg16(), torch.zeros(1, 3, 64, 64))
        ['features.1', 'features.6', 'features.11', 'features.18', 'features.25']
    """
    module = module_of(model)
    trace = remembered(module, check_inputs(model, module, inputs))
    rows = [name for name, child in module.named_modules() if name and is_row(child)]
    inside = tuple(f"{name}." for name in rows)
    runs = [run for run in trace.runs if run.name in rows and not run.name.startswith(inside)]
    found: dict[tuple[int, ...], str] = {}
    for number, run in enumerate(runs):
        shape = run.shape or ()
        if len(shape) != 4 or max(shape[2:]) == 1 or shape[2:] in found:
            continue
        if not _convolves(module.get_submodule(run.name)):
            continue
        last = number
        while last + 1 < len(runs) and runs[last + 1].shape == shape:
            follower = module.get_submodule(runs[last + 1].name)
            if _convolves(follower) or kind_of(follower) not in ("activation", "normalisation"):
                break
            last += 1
        earlier = sum(each.name == runs[last].name for each in runs[:last])
        name = display_name(module, runs[last].name)
        found[shape[2:]] = f"{name}@{earlier}" if earlier else name
    if not found:
        raise NotApplicable(
            "no convolution of this network puts out a map, so there is no style to compare"
        )
    return list(found.values())


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())


@dataclass(frozen=True, eq=False)
class StyleComparison:
    """How alike the styles of two pictures are, layer by layer.

    N is the number of pairs of pictures, L that of layers.

    Attributes:
        layers: their names.
        shapes: channels, rows and columns of the first picture's maps, by layer.
        grams: the Gram matrices of both pictures by layer, each ``(N, C, C)`` and divided by the
            number of cells, so that pictures of different sizes can be compared.
        distance: ``(N, L)``, Gatys' style loss of each layer, before its weight.
        relative: ``(N, L)``, ``‖G − A‖ / √(‖G‖² + ‖A‖²)`` in Frobenius norms: 0 for the same style, 1
            where no two channels are active together in both pictures, and never more, as no two
            Gram matrices have a negative product; comparable between layers.
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    grams: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    distance: Tensor
    relative: Tensor

    def __len__(self) -> int:
        return len(self.distance)

    def to_dict(self, index: int = 0) -> dict[str, Any]:
        """One pair's numbers as plain data."""
        return {
            "layers": [
                {"name": name, "shape": list(shape), "distance": float(d), "relative": float(r)}
                for name, shape, d, r in zip(
                    self.layers,
                    self.shapes,
                    self.distance[index].tolist(),
                    self.relative[index].tolist(),
                    strict=True,
                )
            ],
            "mean_relative": float(self.relative[index].mean()),
        }

    def table(self, index: int = 0) -> str:
        """One pair's distances, a line a layer."""
        shapes = ["×".join(map(str, shape)) for shape in self.shapes]
        name, size = (max(map(len, each)) for each in (("layer", *self.layers), ("maps", *shapes)))
        lines = [f"{'layer':{name}}  {'maps':{size}}    distance  relative"]
        for layer, shape, d, r in zip(
            self.layers,
            shapes,
            self.distance[index].tolist(),
            self.relative[index].tolist(),
            strict=True,
        ):
            lines.append(f"{layer:{name}}  {shape:{size}}  {brief(d, 4):>10}  {r:8.3f}")
        mean = float(self.relative[index].mean())
        lines.append(f"{'mean':{name}}  {'':{size}}  {'':10}  {mean:8.3f}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return str(self)  # what an interpreter and a notebook show

    def figure(
        self,
        pictures: tuple[Image.Image, Image.Image] | None = None,
        *,
        names: tuple[str, str] = ("first", "second"),
        index: int = 0,
    ) -> Figure:
        """Relative distances over the layers, and below them the Gram matrices side by side.

        Args:
            pictures: shown beside the curve.
            names: what the two pictures are called.
            index: which pair.
        """
        from torchviz_cnn import render

        return render.style_figure(
            self.layers,
            [
                (a[index].double().cpu().numpy(), b[index].double().cpu().numpy())
                for a, b in self.grams
            ],
            self.relative[index].double().cpu().numpy(),
            pictures=pictures,
            names=names,
        )


def style_distance(
    model: nn.Module | Model,
    first: Tensor,
    second: Tensor,
    layers: LayerChoice | None = None,
) -> StyleComparison:
    """Which layers see two pictures made of the same texture, and which do not.

    ``E_l = 1 / (4 C² M²) Σ_ij (G_ij − A_ij)²`` with C channels of M cells, for the Gram matrices G
    and A of the two pictures. Where their sizes differ, each matrix is divided by its own M.

    Args:
        model: any network; comes back as it was.
        first, second: ``(N, C, H, W)`` or ``(N, H, W)``, as many in each.
        layers: names, globs or modules, or one of them; by default :func:`style_layers`.

    Returns:
        A :class:`StyleComparison`; its numbers stay on the inputs' device and dtype, of half
        precision in single.

    Raises:
        InputError: for bad inputs, other numbers of pictures, or a layer that puts out no maps.

    Source: Gatys, Ecker, Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks",
    equations 3 and 4.

    Example:
        >>> import torch, torchviz_cnn as tvc
        >>> model = tvc.models.load("mnist_convnet")
        >>> a, b = torch.rand(2, 1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        >>> found = tvc.style_distance(model, a, b)
        >>> found.layers, bool((tvc.style_distance(model, a, a).distance == 0).all())
        (('input_layer', 'conv_1'), True)
    """
    module = module_of(model)
    pair = [check_inputs(model, module, each) for each in (first, second)]
    if len(pair[0]) != len(pair[1]):
        raise InputError(
            f"{len(pair[0])} pictures are to be compared with {len(pair[1])}; give as many in each"
        )
    if layers is None:
        layers = style_layers(model, first)
    wanted = [layers] if isinstance(layers, str | nn.Module) else list(layers)
    if not wanted:
        raise InputError("no layers were named; leave layers out for those of style_layers")
    by_name = {layer.name for layer in resolve(module, wanted) if layer.explicit}
    widths = widths_of(module)
    seen = [
        {
            name: channels_first(maps, tuple(each.shape[-2:]), widths)
            for name, maps in activations(model, each, wanted).items()
        }
        for each in pair
    ]
    names = [name for name in seen[0] if name in seen[1]]
    grams, distances, relatives, shapes = [], [], [], []
    kept, sound = [], []
    for name in names:
        maps = [each[name] for each in seen]
        if maps[0].ndim != 4:
            if split_call(module, name)[0] not in by_name:
                continue
            raise InputError(
                f"the layer {name!r} puts out {tuple(maps[0].shape)}, not maps (N, C, h, w), and "
                "has no Gram matrix"
            )
        g, a = (gram_matrix(each) / each[0, 0].numel() for each in maps)
        sound.append(g.isfinite().all() & a.isfinite().all())
        channels = g.shape[1]
        distances.append((g - a).pow(2).sum((1, 2)) / (4 * channels**2))
        size = torch.hypot(_norm(g), _norm(a))
        relatives.append(torch.where(size > 0, _norm(g - a) / size, torch.zeros_like(size)))
        grams.append((g, a))
        shapes.append((channels, *maps[0].shape[2:]))
        kept.append(name)
    if not kept:
        raise InputError(
            f"no layer that {', '.join(map(repr, wanted))} matches puts out maps (N, C, h, w)"
        )
    # Asked for once: a GPU is waited for every time that Python asks.
    for name, good in zip(kept, torch.stack(sound).tolist(), strict=True):
        if not good:
            raise InputError(
                f"the layer {name!r} puts out NaN or infinite numbers; look at its weights"
            )
    return StyleComparison(
        tuple(kept),
        tuple(shapes),
        tuple(grams),
        torch.stack(distances, 1),
        torch.stack(relatives, 1),
    )


def _norm(matrices: Tensor) -> Tensor:
    return matrices.pow(2).sum((1, 2)).sqrt()
