"""A run from its first epoch to its last: Lightning's loop, checkpoints after every epoch."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchviz_cnn import checkpoints, models
from torchviz_cnn.beside_tensorflow import leave_triton_out
from torchviz_cnn.checkpoints import BEST, LAST, Description
from torchviz_cnn.errors import InputError
from torchviz_cnn.files import check_folder, write_atomically
from torchviz_cnn.models import Model
from torchviz_cnn.training.ending import ending_of
from torchviz_cnn.training.plan import (
    STATE,
    Epoch,
    History,
    Resumed,
    Settings,
    best_epoch,
    check_state,
    fingerprint,
    load_state,
    save_state,
)
from torchviz_cnn.training.sets import Labelled
from torchviz_cnn.training.start import Start
from torchviz_cnn.words import counted

if TYPE_CHECKING:
    from torchviz_cnn.training.recipe import Recipe


REMARKS = "pictures.txt"


@dataclass(frozen=True)
class Run:
    """A run that is over.

    Attributes:
        model: the network after its best epoch.
        history: loss and accuracy of every epoch, of training and validation pictures.
        best: which epoch is the best, counted from 1.
        folder: where the checkpoints are.
    """

    model: Model
    history: History
    best: int
    folder: Path


def check_run(folder: Path, resume: bool, settings: Settings, device: torch.device) -> None:
    """Say before any work, without having read a picture, what will not go.

    Args:
        folder: where the checkpoints go.
        resume: whether the run in it is to be taken up again.
        settings: how the run goes.
        device: where.

    Raises:
        InputError: for a folder that holds another run, a precision or a number of GPUs that
            cannot be had; when Lightning is not installed.
    """
    check_folder(folder)
    if not resume and any((folder / name).exists() for name in (STATE, BEST, LAST)):
        taken = f"{str(folder)!r} holds a trained network already; go on with it"
        raise InputError(
            f"{taken} (resume=True), or name another folder",
            typed=f"{taken} (--resume), or name another folder (--out)",
        )
    cuda = device.type == "cuda"
    if settings.precision != "32" and not cuda:
        raise InputError(f"the precision {settings.precision} needs CUDA; on the CPU it is 32")
    if settings.devices > 1 and not cuda:
        raise InputError(f"{settings.devices} devices means GPUs; on the CPU it is 1")
    if cuda and settings.devices > torch.cuda.device_count():
        raise InputError(
            f"{settings.devices} GPUs are asked for, and {torch.cuda.device_count()} can be used here"
        )
    _recipe()


def check_network(
    folder: Path, resume: bool, settings: Settings, start: Start, classes: Sequence[str]
) -> None:
    """Say what will not go with a network, still without having read a picture.

    Raises:
        InputError: for a network that does not fit the classes, or another one than that of the run
            that is to be taken up again.
    """
    ending_of(start.module, start.input_size, len(classes))
    if resume:
        check_state(folder, fingerprint(settings, start, classes))


def is_first() -> bool:
    """Whether this process speaks and writes: Lightning starts one more for every further GPU."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def sentence(epoch: Epoch, epochs: int) -> str:
    """An epoch in a line.

    Example:
        >>> sentence({"epoch": 2, "loss": 0.5, "accuracy": 0.75,
        ...           "validation_loss": 0.625, "validation_accuracy": 0.5}, 30)
        'epoch  2/30  loss 0.5000  accuracy 75.0 %  validation: loss 0.6250  accuracy 50.0 %'
    """
    number = f"{int(epoch['epoch']):{len(str(epochs))}d}/{epochs}"
    return (
        f"epoch {number}  loss {epoch['loss']:.4f}  accuracy {100 * epoch['accuracy']:.1f} %  "
        f"validation: loss {epoch['validation_loss']:.4f}  "
        f"accuracy {100 * epoch['validation_accuracy']:.1f} %"
    )


def fit(
    start: Start,
    classes: Sequence[str],
    train: Labelled,
    validation: Labelled,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    watch: Callable[[Model, int], None] | None = None,
    remarks: Sequence[str] = (),
) -> Run:
    """Train a network, and keep the best and the last one.

    After every epoch ``resume.safetensors``, ``last.safetensors`` and (if the validation loss is the
    lowest so far) ``best.safetensors`` are replaced in the folder, each at once: whatever stops the
    run, each file is whole. Where it stopped between them, the first, which holds what the others
    are made of, makes them good when the run is taken up again. Torch's random state is left as it
    was.

    Args:
        start: the network, see :func:`torchviz_cnn.training.start.start`; it is trained in place.
        classes: names by index.
        train, validation: pictures with their classes.
        folder: where the checkpoints go.
        settings: how the run goes.
        resume: go on after the last epoch that was finished in that folder; on the CPU the result
            is, to the last bit, that of a run that was never stopped.
        device: where it runs.
        progress: show a progress bar in a terminal.
        tell: is given a sentence about each epoch.
        watch: is given the network and the number of epochs done, before the first of this call
            (which may have none to run) and after every one.
        remarks: what was found out about the pictures, a line each; kept as ``pictures.txt`` once
            everything else has been accepted.

    Raises:
        InputError: for a folder that holds another run, a network that does not fit the classes, a
            precision or GPUs that cannot be had, fewer pictures than GPUs or of other classes, a
            picture that has gone since, a loss that is no longer finite; when Lightning is not
            installed.
        CannotWrite: an ``OSError``, when the disk is full.
        KeyboardInterrupt: on Ctrl-C, once everything is put away.
    """
    settings, folder = settings or Settings(), Path(folder)
    device = torch.device(device)
    check_run(folder, resume, settings, device)
    _check_pictures(train, "train", settings, classes)
    _check_pictures(validation, "validate", settings, classes)
    settled = fingerprint(settings, start, classes, (train, validation))
    resumed = load_state(folder, settled) if resume else None
    keeper = _Keeper(folder, classes, settings, settled, tell, watch)
    if resumed is not None:
        models.load_state(start.module, resumed.network, str(folder / STATE))
    recipe = _recipe()(
        start,
        len(classes),
        train,
        validation,
        settings,
        resumed=resumed,
        after_epoch=keeper,
        progress=progress,
    )
    if is_first():
        if resumed is not None:
            keeper.mend(recipe)
        if remarks:
            text = "\n".join(remarks) + "\n"
            write_atomically(folder / REMARKS, lambda file: file.write(text.encode()))
    before = 0 if resumed is None else len(resumed.history)
    if before >= settings.epochs:
        tell(f"epochs done: {before}, asked for: {settings.epochs}; nothing is left to do")
    elif before:
        tell(f"going on after epoch {before} of {settings.epochs}")
    elif resume:
        tell("no epoch was finished: starting from the beginning")
    gpus = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), _quiet():
        if watch is not None and is_first():
            start.module.to(device)
            watch(keeper.model(recipe), len(recipe.history))
        if not settings.is_over(recipe.history):
            _run(recipe, settings, device)
    done = len(recipe.history)
    if done < settings.epochs and settings.patience is not None:
        tell(
            f"stopped after epoch {done} of {settings.epochs}: "
            f"{counted(settings.patience, 'epoch')} without a lower validation loss"
        )
    return _outcome(folder, start, recipe.history)


def _check_pictures(
    pictures: Labelled, purpose: str, settings: Settings, classes: Sequence[str]
) -> None:
    """Refuse pictures that devices cannot share, or that are of none of the classes."""
    if len(pictures) < settings.devices:
        raise InputError(
            f"{settings.devices} devices cannot share {len(pictures)} pictures to {purpose} on; ask "
            "for fewer"
        )
    low, high = int(pictures.labels.min()), int(pictures.labels.max())
    if low < 0 or high >= len(classes):
        raise InputError(
            f"a picture to {purpose} on is of class {low if low < 0 else high}; classes "
            f"go from 0 to {len(classes) - 1}"
        )


def _recipe() -> type[Recipe]:
    leave_triton_out()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchviz_cnn.training.recipe import Recipe
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning":
            raise
        raise InputError(
            'training runs on Lightning: python -m pip install "torchviz-cnn[train]"'
        ) from None
    return Recipe


def _run(recipe: Recipe, settings: Settings, device: torch.device) -> None:
    import lightning.pytorch as pl

    several = settings.devices > 1
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=settings.devices if several or device.index is None else [device.index],
        strategy="ddp" if several else "auto",
        precision="32-true" if settings.precision == "32" else settings.precision,
        max_epochs=settings.epochs - recipe.first_epoch,
        # Epochs are told, kept and ended by the recipe; orders are its own, too.
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(recipe)
    except InputError as error:
        # Of what went wrong in a process that reads pictures torch tells the whole traceback.
        if not str(error).startswith(f"Caught {type(error).__name__} in DataLoader worker"):
            raise
        sentence = str(error).rstrip().rpartition("\n")[2].partition(": ")[2]
        raise InputError(sentence) from None
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit, and deaf to the next Ctrl-C.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's greetings and advice are not about what the user does."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    loggers.append(logging.getLogger("lightning_utilities.core.rank_zero"))
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", module=r"torch\.utils\.data")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class _Keeper:
    """Writes what an epoch leaves, and tells about it."""

    folder: Path
    classes: Sequence[str]
    settings: Settings
    settled: dict[str, Any]
    tell: Callable[[str], None]
    watch: Callable[[Model, int], None] | None

    def __call__(self, recipe: Recipe) -> None:
        history, state = recipe.history, recipe.network.state_dict()
        epoch = history[-1]
        description = self._description(recipe.start, epoch)
        optimizer = recipe.optimizers(use_pl_optimizer=False).state_dict()["state"]  # type: ignore[union-attr]
        kept = Resumed(history, state, optimizer, recipe.scaler_state())
        # First of all: the others can be made from it, and only from it.
        save_state(self.folder, kept, self.settled)
        checkpoints.write(self.folder / LAST, state, description)
        if best_epoch(history) == len(history) - 1:
            checkpoints.write(self.folder / BEST, state, description)
        self.tell(sentence(epoch, self.settings.epochs))
        if self.watch is not None:
            self.watch(self.model(recipe), len(history))

    def mend(self, recipe: Recipe) -> None:
        """Make good what an interruption between two files left of the epoch before.

        Raises:
            InputError: when the best network is gone, and is not the last one.
        """
        history = recipe.history
        for name, number in ((BEST, best_epoch(history)), (LAST, len(history) - 1)):
            path, wanted = self.folder / name, int(history[number]["epoch"])
            found = checkpoints.describe(path) if path.exists() else None
            if found is not None and found.about.get("epoch") == wanted:
                continue
            if number < len(history) - 1:
                raise InputError(
                    f"the network of the best epoch, {wanted}, should be in {str(path)!r}, and is "
                    "not: it was removed or replaced; train anew in another folder"
                )
            description = self._description(recipe.start, history[number])
            checkpoints.write(path, recipe.network.state_dict(), description)

    def _description(self, start: Start, epoch: Epoch) -> Description:
        metrics = {name: value for name, value in epoch.items() if name != "epoch"}
        about = {"epoch": int(epoch["epoch"]), "settings": asdict(self.settings)}
        return Description(
            start.architecture,
            tuple(self.classes),
            start.input_size,
            start.preprocess,
            metrics,
            about,
        )

    def model(self, recipe: Recipe) -> Model:
        """The network as it is now, to be looked into."""
        start = recipe.start
        name = start.architecture.name
        return Model(recipe.network, start.preprocess, start.input_size, tuple(self.classes), name)


def _outcome(folder: Path, start: Start, history: History) -> Run:
    name = start.architecture.name
    best = str(folder / BEST)
    model = models.load(name, best) if ":" in name else models.load(best)
    return Run(model, history, best_epoch(history) + 1, folder)
