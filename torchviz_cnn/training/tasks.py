"""The three runs of the command line: which pictures, which network, how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchviz_cnn.data import digits
from torchviz_cnn.errors import InputError, closest
from torchviz_cnn.preprocess import Preprocess
from torchviz_cnn.training.folders import Remarks, find, load
from torchviz_cnn.training.idx import mnist_files
from torchviz_cnn.training.plan import Settings
from torchviz_cnn.training.sets import Labelled, in_memory, split

_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Task:
    """What a run is when nothing else is said.

    Attributes:
        about: its pictures, in words.
        model: name of the network.
        settings: how it goes.
        needs_data: whether a folder must be named.
    """

    about: str
    model: str
    settings: Settings
    needs_data: bool


_ONE_PASS = Settings(
    epochs=12, batch_size=64, learning_rate=1e-3, steps=None, validation_steps=None
)

TASKS: dict[str, Task] = {
    "cat-dog": Task("pictures in one folder a class", "cat_dog", Settings(), True),
    "mnist": Task("MNIST's original files", "mnist_convnet", _ONE_PASS, True),
    "digits": Task("the digits that come with scikit-learn", "mnist_convnet", _ONE_PASS, False),
}


@dataclass(frozen=True)
class Pictures:
    """What a network is trained on, before it is known how the network takes it.

    Attributes:
        classes: names by index.
        task: which run.
        folder: of the files.
        share: held out, where nothing says which pictures are.
        seed: which ones are.
    """

    classes: tuple[str, ...]
    task: str
    folder: Path | None
    share: float | None
    seed: int

    def load(
        self, preprocess: Preprocess, *, progress: bool = False
    ) -> tuple[Labelled, Labelled, Remarks, tuple[str, ...]]:
        """Pictures to train and to validate on, what was found in them, and what was decided.

        Raises:
            InputError: when they cannot be read, or are not what the network takes.
        """
        if self.task == "cat-dog":
            assert self.folder is not None
            found = find(self.folder, self.share, self.seed)
            return *load(found, preprocess, progress=progress), found.notes
        parts, note = self._digits()
        for part in parts:
            assert part.kept is not None
            if preprocess.size != part.kept.shape[-2:] or preprocess.channels != "L":
                raise InputError(
                    f"{TASKS[self.task].about} are gray and 28×28, and the network takes "
                    f"{preprocess.channels} of {'×'.join(map(str, preprocess.size))}; "
                    "use the model mnist_convnet"
                )
        return parts[0], parts[1], Remarks(), (note,)

    def _digits(self) -> tuple[Sequence[Labelled], str]:
        if self.task == "digits":
            data = digits()
            train, test = ((each * 255).round().byte() for each in (data.train, data.test))
            pair = [
                in_memory(train, data.train_labels, "digit"),
                in_memory(test, data.test_labels, "held-out digit"),
            ]
            return pair, f"{len(train)} digits to train on, {len(test)} held out"
        assert self.folder is not None
        files = mnist_files(self.folder)
        for pixels, labels in files.values():
            if int(labels.max()) > 9 or pixels.shape[-2:] != (28, 28):
                raise InputError(
                    f"the files in {str(self.folder)!r} are not MNIST's: "
                    f"{'×'.join(map(str, pixels.shape[-2:]))} pixels, labels up to {int(labels.max())}"
                )
        sets = {name: in_memory(*pair, f"{name} digit") for name, pair in files.items()}
        if len(sets) == 2:
            if self.share is not None:
                raise InputError.about(
                    "validation_share",
                    "is for where there is one pair of files only, and MNIST's test pictures are "
                    "there to validate on",
                )
            return (sets["train"], sets["t10k"]), "trained on train, validated on t10k"
        (name, whole), share = next(iter(sets.items())), 0.2 if self.share is None else self.share
        if not 0 < share < 1:
            raise InputError.about("validation_share", f"must lie between 0 and 1, not {share}")
        own, held = split(len(whole), share, self.seed)
        note = f"only the {name} pair is there: {len(held)} of its {len(whole)} digits are held out"
        return (whole.part(own), whole.part(held)), note


def task_of(name: str) -> Task:
    """A task by its name.

    Raises:
        InputError: for a name that none has.
    """
    if name not in TASKS:
        raise InputError(
            f"there is no training run {name!r}; choose {', '.join(TASKS)}{closest(name, TASKS)}"
        )
    return TASKS[name]


def pictures(task: str, folder: Path | None, share: float | None, seed: int) -> Pictures:
    """The pictures of a run, with their classes; files are found, not opened yet.

    Raises:
        InputError: for an unknown run, or a folder that is missing or wrong.
    """
    wanted = task_of(task)
    if wanted.needs_data and folder is None:
        lacking = f"training {task} needs {wanted.about}: name the folder with"
        raise InputError(f"{lacking} data=", typed=f"{lacking} --data DIR")
    if not wanted.needs_data and folder is not None:
        raise InputError.about("data", f"is not for {task}, which brings its own pictures")
    if task == "digits" and share is not None:
        raise InputError.about("validation_share", "is not for the digits, which are split already")
    classes = _DIGITS
    if task == "cat-dog":
        assert folder is not None
        classes = find(folder, share, seed).classes
    return Pictures(classes, task, folder, share, seed)
