"""How a run goes, and what is kept to go on with it. Knows nothing of Lightning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from torchviz_cnn import checkpoints
from torchviz_cnn.errors import InputError, check_counts, closest, is_real, is_whole
from torchviz_cnn.training.augment import Augmentation
from torchviz_cnn.training.sets import Labelled
from torchviz_cnn.training.start import Start

Epoch = dict[str, float]
History = list[Epoch]

STATE = f"resume{checkpoints.SUFFIX}"

Precision = Literal["32", "16-mixed", "bf16-mixed"]

# What may be changed when a run is taken up again, for it changes no epoch that is there.
_FREE = {"epochs", "patience", "workers", "devices"}


@dataclass(frozen=True)
class Settings:
    """How a run goes; left alone, as the cats-against-dogs tutorial has it.

    Attributes:
        epochs: how many.
        batch_size: pictures a step, over all devices.
        learning_rate: of RMSprop.
        steps: a training epoch's; ``None`` for one pass over the pictures.
        validation_steps: at most so many to validate; ``None`` for all pictures.
        patience: stop after so many epochs without a lower validation loss; ``None`` for never.
        seed: of weights, order, augmentation and dropout.
        augmentation: how training pictures are changed.
        precision: ``"32"``, ``"16-mixed"`` or ``"bf16-mixed"``; mixed ones need CUDA.
        devices: how many GPUs share a batch.
        workers: processes that read pictures which do not fit into memory.
    """

    epochs: int = 30
    batch_size: int = 20
    learning_rate: float = 1e-4
    steps: int | None = 100
    validation_steps: int | None = 50
    patience: int | None = None
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: Precision = "32"
    devices: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "validation_steps", "patience"):
            check_counts(**{name: getattr(self, name)})  # None is for no end
        least = {"epochs": 1, "batch_size": 1, "devices": 1, "workers": 0, "seed": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if not (is_whole(value) and value >= lowest):
                fault = f"must be a whole number of at least {lowest}, not {value!r}"
                raise InputError.about(name, fault)
        if not (is_real(self.learning_rate) and self.learning_rate > 0):
            raise InputError.about("learning_rate", f"must be above 0, not {self.learning_rate!r}")
        if self.precision not in get_args(Precision):
            raise InputError(
                f"there is no precision {self.precision!r}; choose {', '.join(get_args(Precision))}"
                + closest(self.precision, get_args(Precision))
            )
        for name, value in list(vars(self).items()):  # NumPy's numbers cannot be written as JSON
            if is_real(value):
                plain = int(value) if is_whole(value) else float(value)
                object.__setattr__(self, name, plain)
        if self.batch_size % self.devices:
            raise InputError(
                f"a batch of {self.batch_size} cannot be shared evenly by {self.devices} devices"
            )

    def is_over(self, history: Sequence[Epoch]) -> bool:
        """Whether a run with this history has come to its end, by its length or its patience."""
        if len(history) >= self.epochs:
            return True
        return self.patience is not None and (
            len(history) - 1 - best_epoch(history) >= self.patience if history else False
        )


def best_epoch(history: Sequence[Epoch]) -> int:
    """The first epoch with the lowest validation loss, counted from 0.

    Example:
        >>> best_epoch([{"validation_loss": 0.5}, {"validation_loss": 0.3}, {"validation_loss": 0.3}])
        1
    """
    return min(range(len(history)), key=lambda number: history[number]["validation_loss"])


@dataclass(frozen=True)
class Resumed:
    """Where a run stopped: after the last epoch of its history.

    Attributes:
        history: the epochs that are done.
        network: the network's state dict.
        optimizer: of each trained parameter, by number, what the optimiser keeps.
        scaler: of mixed precision.
    """

    history: History
    network: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    scaler: Mapping[str, Any]


def fingerprint(
    settings: Settings,
    start: Start,
    classes: Sequence[str],
    pictures: Sequence[Labelled] | None = None,
) -> dict[str, Any]:
    """What must be the same for a run to be taken up again, in plain values.

    Args:
        settings: how the run goes.
        start: its network.
        classes: names by index.
        pictures: to train and to validate on; ``None`` while they are not read yet.
    """
    own = {key: value for key, value in asdict(settings).items() if key not in _FREE}
    own |= {"network" if key == "name" else key: v for key, v in vars(start.architecture).items()}
    own |= {"input_size": start.input_size, "preprocess": checkpoints.plain(start.preprocess)}
    own |= {"classes": list(classes), "frozen": sorted(start.frozen)}
    if pictures is not None:
        digest = hashlib.sha256()
        for part in pictures:
            names = [Path(name).name for name in part.names]
            digest.update(json.dumps([names, part.labels.tolist()]).encode())
        counts = " + ".join(str(len(part)) for part in pictures)
        own["pictures"] = f"{counts}, {digest.hexdigest()[:12]}"
    found: dict[str, Any] = json.loads(json.dumps(own))  # as it will be read back
    return found


def save_state(folder: Path, resumed: Resumed, settled: Mapping[str, Any]) -> None:
    """Everything needed to go on, in one file, atomically.

    Raises:
        CannotWrite: an ``OSError``, when the disk is full; the file before it stays.
    """
    tensors = {f"network/{key}": value for key, value in resumed.network.items()}
    for number, kept in resumed.optimizer.items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in kept.items()}
    words = {"history": resumed.history, "scaler": resumed.scaler, "run": settled}
    checkpoints.write_tensors(folder / STATE, tensors, {"resume": json.dumps(words)})


def check_state(folder: Path, settled: Mapping[str, Any]) -> dict[str, Any] | None:
    """That the run in a folder can be taken up again: its words; ``None`` where none was begun.

    Args:
        folder: of the run.
        settled: what must be the same, or a part of it, see :func:`fingerprint`.

    Raises:
        InputError: when the file is damaged, or the run was another one.
    """
    path = folder / STATE
    if not path.exists():
        return None
    words = checkpoints.read_words(path)
    try:
        found: dict[str, Any] = json.loads(words["resume"])
        run = dict(found["run"])
        if not found["history"]:
            raise ValueError("it holds no epoch")
        best_epoch(found["history"])
        dict(found["scaler"])
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    for key, value in settled.items():
        if key not in run or run[key] != value:
            was = repr(run[key]) if key in run else "not known"
            raise InputError(
                f"the run in {str(folder)!r} was another one: its {key.replace('_', ' ')} is "
                f"{was}, not {value!r}; go on with the same, or name another folder"
            )
    return found


def load_state(folder: Path, settled: Mapping[str, Any]) -> Resumed | None:
    """Where the run in a folder stopped; ``None`` before its first epoch was done.

    Raises:
        InputError: when the file is damaged, or the run was another one.
    """
    found = check_state(folder, settled)
    if found is None:
        return None
    network, optimizer = {}, dict[int, dict[str, Tensor]]()
    for key, tensor in checkpoints.read_tensors(folder / STATE)[0].items():
        kind, _, rest = key.partition("/")
        number, _, name = rest.partition("/")
        if kind == "network":
            network[rest] = tensor
        elif kind == "optimizer" and number.isdecimal() and name:
            optimizer.setdefault(int(number), {})[name] = tensor
        else:
            raise _damaged(folder / STATE, KeyError(key))
    return Resumed(found["history"], network, optimizer, found["scaler"])


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} is damaged: {type(error).__name__}: {error}")
