"""One step of training: the loss, the optimiser, and what happens after every epoch.

The only room that knows Lightning's module; it is imported when a run begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils.data import DataLoader
from tqdm import tqdm

from torchviz_cnn import head
from torchviz_cnn.errors import InputError
from torchviz_cnn.inputs import place_and_kind
from torchviz_cnn.training.augment import warped
from torchviz_cnn.training.ending import ending_of
from torchviz_cnn.training.plan import History, Resumed, Settings
from torchviz_cnn.training.sets import Batch, Labelled, Loaded, Order, in_order, split
from torchviz_cnn.training.start import Start


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of one logit a picture, else cross-entropy; the mean over the batch.

    Of the scores before the sigmoid or softmax, where it is exact however sure the network is.

    Args:
        logits: ``(N,)``, ``(N, 1)`` or ``(N, classes)``.
        labels: ``(N,)`` class indexes.

    Example:
        >>> round(float(loss_of(torch.tensor([[0.0], [0.0]]), torch.tensor([0, 1]))), 4)  # log 2
        0.6931
    """
    if head.is_single(logits):
        flat = logits.reshape(-1)
        return F.binary_cross_entropy_with_logits(flat, labels.to(flat.dtype))
    return F.cross_entropy(logits, labels)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of pictures whose class is the most probable."""
    guesses = (logits.reshape(-1) > 0) if head.is_single(logits) else logits.argmax(1)
    return (guesses == labels).float().mean()


class Sums:
    """Means over all pictures of an epoch, on however many devices, and however they share them.

    A mean of the devices' means would count the pictures of a smaller share for more.

    Args:
        device: where the sums are.

    Example:
        >>> sums = Sums("cpu")
        >>> sums.add("loss", torch.tensor(1.0), 3)
        >>> sums.add("loss", torch.tensor(2.0), 1)
        >>> sums.means()
        {'loss': 1.25}
    """

    NAMES = ("loss", "accuracy", "validation_loss", "validation_accuracy")

    def __init__(self, device: str | torch.device) -> None:
        # A row of sums and one of counts: each device has all of them, whatever it was given.
        self.table = torch.zeros(2, len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, name: str, mean: Tensor, count: int) -> None:
        """A batch: the mean of so many pictures, without waiting for it."""
        column = self.NAMES.index(name)
        self.table[0, column] += mean.detach().double() * count
        self.table[1, column] += count

    def means(
        self, over_devices: Callable[[Tensor], Tensor] = lambda table: table
    ) -> dict[str, float]:
        """What was added so far, of all devices.

        Args:
            over_devices: adds up a tensor of every device.
        """
        sums, counts = over_devices(self.table.clone()).tolist()
        return {
            name: total / count
            for name, total, count in zip(self.NAMES, sums, counts, strict=True)
            if count
        }


def rmsprop(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.RMSprop:
    """RMSprop as Keras 2 had it: ρ 0.9, and ε 1e-7 added outside the root.

    Source: T. Tieleman, G. Hinton 2012, "Neural Networks for Machine Learning", lecture 6.5.
    """
    return torch.optim.RMSprop(parameters, lr=learning_rate, alpha=0.9, eps=1e-7)


def _whole(batch: Any) -> Any:
    return batch  # the set has put it together already


class Recipe(pl.LightningModule):
    """The tutorial's training, on any network.

    Args:
        start: the network.
        classes: how many.
        train, validation: pictures.
        settings: how long, how fast, in what order.
        resumed: where an earlier run stopped.
        after_epoch: is given this recipe after every epoch, on the first device only. Whatever it
            raises ends the run.
        progress: show a progress bar in a terminal.
    """

    def __init__(
        self,
        start: Start,
        classes: int,
        train: Labelled,
        validation: Labelled,
        settings: Settings,
        *,
        resumed: Resumed | None = None,
        after_epoch: Callable[[Recipe], None] = lambda _: None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.network = start.module
        self.start = start
        self.ending = ending_of(start.module, start.input_size, classes)
        self.pictures, self.held_out, self.settings = train, validation, settings
        self.resumed, self.after_epoch, self.progress = resumed, after_epoch, progress
        self.history: History = [] if resumed is None else list(resumed.history)
        self.first_epoch = len(self.history)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in start.frozen)

    @property
    def epoch(self) -> int:
        """Counted from 0 over all runs, where Lightning counts this one's."""
        return self.first_epoch + self.current_epoch

    def logits(self, images: Tensor) -> Tensor:
        """Scores before the final softmax or sigmoid, with their graph."""
        if self.ending is None:
            return head.tensor_in(self.network(images))
        return head.run(self.network, images, sure=True, variants_of=images).logits

    # -- data

    def train_dataloader(self) -> DataLoader[Batch]:
        plan = self.settings
        order = Order(
            len(self.pictures),
            plan.batch_size,
            epoch=self.epoch,
            seed=plan.seed,
            steps=plan.steps,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        augmentation = plan.augmentation or None
        return self._loader(Loaded(self.pictures, augmentation, plan.seed), order)

    def val_dataloader(self) -> DataLoader[Batch]:
        plan = self.settings
        count = len(self.held_out)
        chosen = list(range(count))
        if plan.validation_steps is not None and plan.validation_steps * plan.batch_size < count:
            share = plan.validation_steps * plan.batch_size / count
            chosen = split(count, share, plan.seed)[1]  # the same every time, to compare epochs
        batches = in_order(
            chosen, plan.batch_size, self.trainer.global_rank, self.trainer.world_size
        )
        return self._loader(Loaded(self.held_out), batches)

    def _loader(self, pictures: Loaded, batches: Any) -> DataLoader[Batch]:
        return DataLoader(
            pictures,
            batch_sampler=batches,
            collate_fn=_whole,
            num_workers=0 if pictures.pictures.kept is not None else self.settings.workers,
            pin_memory=self.device.type == "cuda",
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Bytes become numbers, and are warped, where the network is."""
        images = self.start.preprocess.numbers(batch.pixels)
        images = images.to(place_and_kind(self.network)["dtype"])
        if batch.warps is not None:
            images = warped(images, batch.warps)
        if not self.start.preprocess.channel_axis:
            images = images[:, 0]
        return images, batch.labels

    # -- steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = rmsprop(trained, self.settings.learning_rate)
        if self.resumed is not None:
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self.resumed.optimizer, "param_groups": groups})
        return optimizer

    def on_fit_start(self) -> None:
        if self.resumed is not None and self.resumed.scaler:
            self.trainer.precision_plugin.load_state_dict(dict(self.resumed.scaler))

    def on_train_epoch_start(self) -> None:
        self.sums = Sums(self.device)
        self.network.train()
        for module in self.network.modules():
            # What is frozen is used as it was trained, its batch norms' statistics as well.
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        self.bar = tqdm(
            total=self.trainer.num_training_batches,
            desc=f"epoch {self.epoch + 1}/{self.settings.epochs}",
            unit="step",
            leave=False,
            disable=None if self.progress and self.trainer.is_global_zero else True,
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout is a function of where the run is, not of what ran before."""
        place = [self.settings.seed, self.epoch, batch_idx, self.trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.logits(images)
        loss = loss_of(logits, labels)
        self._note("loss", loss.detach(), labels)
        self._note("accuracy", right(logits.detach(), labels), labels)
        self.bar.update()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.logits(images)
        self._note("validation_loss", loss_of(logits, labels), labels)
        self._note("validation_accuracy", right(logits, labels), labels)

    def _note(self, name: str, value: Tensor, labels: Tensor) -> None:
        self.sums.add(name, value, len(labels))

    def on_train_epoch_end(self) -> None:
        self.bar.close()
        found = self.sums.means(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))
        if not all(math.isfinite(found[name]) for name in ("loss", "validation_loss")):
            ill = (
                f"the loss is no longer a finite number after epoch {self.epoch + 1}; try a smaller"
            )
            kept = "(checkpoints of the epochs before are kept)"
            raise InputError(f"{ill} learning_rate {kept}", typed=f"{ill} --learning-rate {kept}")
        self.history.append({"epoch": self.epoch + 1, **found})
        if self.trainer.is_global_zero:
            self.after_epoch(self)
        # No process ends its run before the last epoch is written: each of them reads it.
        self.trainer.strategy.barrier("kept")
        if self.settings.is_over(self.history):
            self.trainer.should_stop = True

    def scaler_state(self) -> dict[str, Any]:
        """What mixed precision has learnt about the size of gradients."""
        return dict(self.trainer.precision_plugin.state_dict())
