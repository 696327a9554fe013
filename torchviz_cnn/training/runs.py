"""A whole run: its pictures, its network, the training, and the page about what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from torchviz_cnn import models
from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.pictures import Picture, to_image
from torchviz_cnn.report import write_page
from torchviz_cnn.training import outcome
from torchviz_cnn.training.augment import Augmentation
from torchviz_cnn.training.fit import Run, check_network, check_run, fit, is_first
from torchviz_cnn.training.plan import Settings
from torchviz_cnn.training.start import Start, start
from torchviz_cnn.training.tasks import pictures, task_of
from torchviz_cnn.training.watch import Watch
from torchviz_cnn.words import percent


def train(
    task: str,
    data: str | Path | None = None,
    folder: str | Path = "torchviz-cnn-train",
    *,
    model: str | None = None,
    weights: str | None = None,
    freeze: bool = False,
    input_size: tuple[int, ...] | None = None,
    validation_share: float | None = None,
    resume: bool = False,
    watch: Picture | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
    tell: Callable[[str], None] = print,
    note: Callable[[str], None] | None = None,
    **changes: Any,
) -> Run:
    """Train a network as the tutorials do, and write what it learnt and where it errs as a page.

    Args:
        task: ``"cat-dog"``, ``"mnist"`` or ``"digits"``.
        data: folder of ``train/CLASS/*`` and ``validation/CLASS/*``, or of ``CLASS/*``; of MNIST's
            files; ``None`` for the digits, which come with scikit-learn.
        folder: where the checkpoints and the page, ``index.html``, go.
        model: name of the network, or ``"package.module:factory"``; the tutorial's otherwise.
        weights, freeze, input_size: as for :func:`torchviz_cnn.training.start.start`.
        validation_share: held out, where nothing says what to validate on.
        resume: go on after the last epoch finished in the folder.
        watch: a picture whose feature maps and Grad-CAM are drawn after every epoch.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or a device of torch's.
        progress: show progress bars in a terminal.
        tell: is given a sentence about the start, each epoch and the end.
        note: is given what was decided or left out, a sentence each; ``tell`` otherwise.
        changes: what goes otherwise than in the tutorial, by the names of
            :class:`~torchviz_cnn.training.Settings` (``epochs=5``, ``learning_rate=1e-3``, …) and
            of :class:`~torchviz_cnn.training.Augmentation` (``flip=True``, ``rotate=20``, …).

    Returns:
        The run: ``.model`` is the network of its best epoch, with class names and preprocessing,
        ready to be explained; ``.history`` holds loss and accuracy of every epoch.

    Raises:
        InputError: for a wrong task, folder, network or setting, as far as possible before a
            picture is read; see :func:`~torchviz_cnn.training.fit`.
        CannotWrite: an ``OSError``, when the disk is full.
        KeyboardInterrupt: on Ctrl-C, once the last finished epoch is put away.

    Example:
        >>> import torchviz_cnn as tvc
        >>> from torchviz_cnn.training import train
        >>> run = train("cat-dog", "pets", "my-pets", epochs=10, flip=True)  # doctest: +SKIP
        >>> tvc.render.training_curves(run.history, best=run.best)  # doctest: +SKIP
        >>> x = run.model.prepare("cat.jpg")  # doctest: +SKIP
        >>> tvc.grad_cam(run.model, x).overlay("cat.jpg")  # doctest: +SKIP
    """
    settings, folder = settings_of(task, changes), Path(folder)
    known = pictures(task, None if data is None else Path(data), validation_share, settings.seed)
    place = device if isinstance(device, torch.device) else models.choose_device(device)
    check_run(folder, resume, settings, place)
    watched = None if watch is None else Watch(to_image(watch), folder)
    begin = start(
        model or task_of(task).model,
        len(known.classes),
        weights=weights,
        freeze=freeze,
        input_size=input_size,
        seed=settings.seed,
    )
    check_network(folder, resume, settings, begin, known.classes)
    parts, validation, remarks, notes = known.load(begin.preprocess, progress=progress)
    if not is_first():  # it would only say what another process says
        tell = note = _silent
    note = note or (lambda sentence: tell(f"note: {sentence}"))
    for line in (*begin.notes, *notes, *remarks.lines()):
        note(line)
    tell(_beginning(begin, known.classes, len(parts), len(validation)))
    run = fit(
        begin,
        known.classes,
        parts,
        validation,
        folder,
        settings,
        resume=resume,
        device=place,
        progress=progress,
        tell=tell,
        watch=watched,
        remarks=remarks.lines(None),
    )
    if is_first():
        found = outcome.judge(run.model.to(place), validation)
        tell(
            f"the best epoch is {run.best}: {percent(found.accuracy, 1)} of {len(validation):,} "
            "held-out pictures are right"
        )
        write_page(
            folder,
            f"What {begin.architecture.name} learnt",
            outcome.lead(run, found, len(parts)),
            outcome.sections(run, found, validation, watched=resume or watched is not None),
        )
    return run


def settings_of(task: str, changes: Mapping[str, Any]) -> Settings:
    """How a task's run goes, with what is to go otherwise than in the tutorial.

    Args:
        task: its name.
        changes: by the names of :class:`Settings` and of :class:`Augmentation`.

    Raises:
        InputError: for an unknown task or name, or a value that cannot be.

    Example:
        >>> settings_of("digits", {"epochs": 3, "flip": True}).augmentation
        Augmentation(flip=True, rotate=0.0, shift=0.0, zoom=0.0)
    """
    usual = task_of(task).settings
    moves, own = ({each.name for each in fields(kind)} for kind in (Augmentation, Settings))
    for name in changes:
        if name not in moves | own:
            raise InputError(f"a run has no setting {name!r}{closest(name, sorted(moves | own))}")
    wishes = {name: value for name, value in changes.items() if name in own}
    turned = {name: value for name, value in changes.items() if name in moves}
    if not isinstance(wishes.get("augmentation", usual.augmentation), Augmentation):
        fault = (
            f"is an Augmentation, such as Augmentation(flip=True), not {changes['augmentation']!r}"
        )
        raise InputError.about("augmentation", fault)
    if turned:
        wishes["augmentation"] = replace(wishes.get("augmentation", usual.augmentation), **turned)
    return replace(usual, **wishes)


def _silent(_: str) -> None:
    """Say nothing."""


def _beginning(begin: Start, classes: Sequence[str], trained_on: int, held_out: int) -> str:
    parameters = sum(p.numel() for p in begin.module.parameters())
    return (
        f"{begin.architecture.name}: {parameters:,} parameters; {trained_on:,} pictures to train "
        f"on, {held_out:,} to validate on; classes {', '.join(classes[:10])}"
        + (" …" if len(classes) > 10 else "")
    )
