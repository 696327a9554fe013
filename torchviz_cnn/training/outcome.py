"""What came of a run: curves, confusions, and the pictures the network is most wrong about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from torchviz_cnn import render
from torchviz_cnn.errors import NotApplicable
from torchviz_cnn.guard import undisturbed
from torchviz_cnn.head import is_single, run
from torchviz_cnn.inputs import place_and_kind
from torchviz_cnn.methods import grad_cam
from torchviz_cnn.models import Model
from torchviz_cnn.naming import module_of
from torchviz_cnn.preprocess import Preprocess
from torchviz_cnn.render.figures import figure_picture
from torchviz_cnn.report import Plate, Section
from torchviz_cnn.training.fit import Run
from torchviz_cnn.training.sets import Labelled
from torchviz_cnn.training.watch import STRIP, shown_columns
from torchviz_cnn.words import percent

WORST = 12
CELL = 168


@dataclass(frozen=True)
class Judgement:
    """What a network says of pictures whose classes are known.

    Attributes:
        probabilities: ``(N, classes)``, on the CPU.
        labels: the classes they are of, ``(N,)``.
    """

    probabilities: Tensor
    labels: Tensor

    @property
    def guesses(self) -> Tensor:
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.guesses == self.labels).float().mean())

    def confusion(self) -> Tensor:
        """``(classes, classes)``: how many of each class, row, were taken for which, column.

        Example:
            >>> sure = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
            >>> Judgement(sure, torch.tensor([0, 1, 1])).confusion().tolist()
            [[1, 0], [1, 1]]
        """
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.guesses
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def worst(self, most: int) -> list[int]:
        """Those that are wrong, the least of their own class' probability first."""
        own = self.probabilities.gather(1, self.labels[:, None])[:, 0]
        wrong = torch.nonzero(self.guesses != self.labels)[:, 0]
        return wrong[own[wrong].argsort(stable=True)][:most].tolist()


def _numbers(model: Model, pictures: Labelled, indexes: list[int]) -> Tensor:
    """Some of the pictures as the network takes them, where it is."""
    assert isinstance(model.preprocess, Preprocess)
    kind = place_and_kind(model.module)
    pixels = pictures.pixels(indexes).to(kind["device"])
    numbers = model.preprocess.numbers(pixels).to(kind["dtype"])
    return numbers if model.preprocess.channel_axis else numbers[:, 0]


def judge(model: Model, pictures: Labelled, batch_size: int = 64) -> Judgement:
    """What a network says of every picture of a set.

    Args:
        model: whose ``preprocess`` is a :class:`~torchviz_cnn.preprocess.Preprocess`; one output is
            taken for the logit of class 1.
        pictures: ``N`` of them, of the size the network takes.
        batch_size: how many are run at once.

    Returns:
        Probabilities ``(N, classes)``, on the CPU, beside the labels ``(N,)``. The model is left as
        it was.

    Raises:
        InputError: for a network that cannot be run as it is, see
            :func:`~torchviz_cnn.guard.undisturbed`; for outputs that are not one row a picture.

    Example:
        >>> from torchviz_cnn import models
        >>> from torchviz_cnn.training.sets import in_memory
        >>> bytes_ = torch.zeros(2, 3, 150, 150, dtype=torch.uint8)
        >>> two = in_memory(bytes_, torch.tensor([0, 1]), "black picture")
        >>> judge(models.load("cat_dog_small"), two).probabilities.shape
        torch.Size([2, 2])
    """
    module = module_of(model)
    found = []
    with undisturbed(module):
        for first in range(0, len(pictures), batch_size):
            indexes = list(range(first, min(first + batch_size, len(pictures))))
            output = run(module, _numbers(model, pictures, indexes), sure=True)
            chances = output.probabilities()
            if is_single(chances):
                chances = torch.stack([1 - chances.reshape(-1), chances.reshape(-1)], 1)
            found.append(chances.float().cpu())
    return Judgement(torch.cat(found), pictures.labels)


def lead(run: Run, found: Judgement, trained_on: int) -> str:
    """The page's first sentences."""
    return (
        f"{run.model.source.partition(' (')[0]}: {trained_on:,} pictures, {len(run.history)} "
        f"epochs. After epoch {run.best}, whose validation loss is the lowest, "
        f"{percent(found.accuracy, 1)} of {len(found.labels):,} held-out pictures are right; that "
        "network is kept, and is what this page shows."
    )


def sections(
    run: Run, found: Judgement, pictures: Labelled, *, watched: bool = False
) -> list[Section]:
    """Curves, confusions, and what the network looked at where it is most wrong.

    Args:
        run: that is over.
        found: what its network says of the held-out pictures.
        pictures: these.
        watched: whether a strip of one picture that lies in the folder is of this run.
    """
    names = list(run.model.classes or ())
    curves = figure_picture(render.training_curves(run.history, best=run.best))
    table = render.confusion_matrix(found.confusion().numpy(), names)
    shown = [
        Section(
            "Loss and accuracy",
            "After every epoch. Where the curve of the held-out pictures turns away from the other, "
            "the network begins to learn the pictures by heart.",
            [Plate("curves.png", curves, f"The line marks the best epoch, {run.best}.")],
        ),
        Section(
            "What is taken for what",
            "Held-out pictures: each row is a class, each column what the network says.",
            [Plate("confusion.png", figure_picture(table), "Right ones lie on the diagonal.")],
        ),
    ]
    if watched and (run.folder / STRIP).exists():
        epochs = ", ".join(map(str, shown_columns(run.folder, len(run.history))))
        told = f"Epochs {epochs}; 0 is before the first. Every epoch's column is in watch."
        with Image.open(run.folder / STRIP) as strip:
            shown.append(
                Section(
                    "What it learnt over time",
                    "One picture after every epoch: where Grad-CAM says the network looks, and "
                    "what the first channels of some of its layers put out.",
                    [Plate(STRIP, strip.copy(), told)],
                )
            )
    return [*shown, _worst(run.model, found, pictures)]


def _worst(model: Model, found: Judgement, pictures: Labelled) -> Section:
    title = "Where it is most wrong"
    chosen = found.worst(WORST)
    if not chosen:
        return Section(title, "Nowhere: every held-out picture is right.")
    assert isinstance(model.preprocess, Preprocess)
    inputs = _numbers(model, pictures, chosen)
    guesses = found.guesses[chosen].tolist()
    views = [
        render.viewable(_as_image(pixels, model.preprocess), CELL)
        for pixels in pictures.pixels(chosen)
    ]
    try:
        maps = grad_cam(model, inputs, guesses)
    except NotApplicable as error:
        return Section(title, f"Grad-CAM cannot show where it looks: {error}")
    overlays = [render.overlay(view, maps.one_heatmap(number)) for number, view in enumerate(views)]
    names = model.classes or ()
    titles = [
        f"{names[int(pictures.labels[index])]}, taken for {names[guess]} "
        f"({100 * float(found.probabilities[index, guess]):.0f} %)"
        for index, guess in zip(chosen, guesses, strict=True)
    ]
    plates = []
    for first in range(0, len(chosen), 6):
        part = slice(first, first + 6)
        sheet = render.sheet([views[part], overlays[part]], titles[part], cell=CELL)
        told = "What spoke for the wrong class."
        mute = [
            title
            for title, cells in zip(titles[part], maps.values[part], strict=True)
            if not cells.any()
        ]
        if mute:
            told += f" Of {', and of '.join(mute)} nothing did: Grad-CAM's map is 0 everywhere."
        plates.append(Plate(f"wrong_{first // 6 + 1}.png", sheet, told))
    listing = "\n".join(
        f"{title:40} {pictures.names[index]}" for title, index in zip(titles, chosen, strict=True)
    )
    text = (
        f"{int((found.guesses != found.labels).sum())} held-out pictures are wrong; those whose "
        "own class it finds least probable, and where Grad-CAM says it looked for the one it said."
    )
    return Section(title, text, plates, listing)


def _as_image(pixels: Tensor, preprocess: Preprocess) -> Image.Image:
    """What the network was shown of a picture, from its bytes ``(C, H, W)``."""
    if preprocess.channels == "BGR":
        pixels = pixels.flip(0)
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
