"""Modules whose parts are called in a fixed order, each on what earlier ones put out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchviz_cnn.errors import InputError
from torchviz_cnn.overwriting import after


@dataclass(frozen=True)
class Step:
    """One call of one part: which values it is given, which it makes, which are not needed after."""

    part: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    done: tuple[int, ...] = ()


class Wired(nn.Module):
    """Parts called one after another, each on what earlier ones put out.

    Args:
        parts: modules by name.
        steps: the calls in order; values are numbered, the inputs first.
        outputs: numbers of the values returned.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], steps: Sequence[Step], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.steps = tuple(steps)
        self.results = tuple(outputs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        wiring = self.__dict__  # somebody may exchange the steps, or end with another
        if name in ("steps", "results") and {"steps", "results"} <= wiring.keys():
            self.makers = _makers(wiring["steps"], wiring["results"])

    def run(self, inputs: Sequence[Tensor]) -> Any:
        values: dict[int, Any] = dict(enumerate(inputs))
        for step, maker in zip(self.steps, self.makers, strict=True):
            part = getattr(self, step.part)
            given = [values[number] for number in step.inputs]
            made = part(*given) if maker is None else after(getattr(self, maker), part, *given)
            if len(step.outputs) == 1:
                values[step.outputs[0]] = made
            else:
                values.update(zip(step.outputs, made, strict=True))
            for number in step.done:
                del values[number]
        results = tuple(values[number] for number in self.results)
        return results[0] if len(results) == 1 else results

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(inputs)


def _makers(steps: Sequence[Step], results: Sequence[int]) -> tuple[str | None, ...]:
    """For each step that alone is given one value, the part that made it; ``None`` for others."""
    readers = Counter(number for step in steps for number in step.inputs)
    readers.update(results)
    made_by: dict[int, str] = {}
    found: list[str | None] = []
    for step in steps:
        alone = len(step.inputs) == 1 and readers[step.inputs[0]] == 1
        found.append(made_by.get(step.inputs[0]) if alone else None)
        if len(step.outputs) == 1:
            made_by[step.outputs[0]] = step.part
    return tuple(found)


class WiredLayer(Wired):
    """A Keras layer whose parts do not simply follow one another."""

    is_layer = True
    layer_type = "Layer"


class Nested(Wired):
    """A model used as a layer of another."""

    layer_type = "Functional"


class ImportedNetwork(Wired):
    """A network read from a file.

    Attributes:
        source: where it came from, and what each Keras layer has become.
        unavailable_layers: layers that cannot be looked into -> why, in a sentence.
        merged_norms: convolutions that batch norms were merged into -> the names of these.
        layer_names: Keras' names of layers -> those of the modules, where the two differ.
        fixed_batch: the only number of pictures it can take, where its file has written that number
            into an operator; ``None`` for any number.
    """

    is_imported_network = True

    source: Any
    unavailable_layers: dict[str, str]
    merged_norms: dict[str, str]
    layer_names: dict[str, str]
    fixed_batch: int | None = None

    def forward(self, input: Tensor) -> Any:  # type: ignore[override]  # noqa: A002
        return self.run((input,)) if self.fixed_batch is None else self._run_batch((input,))

    def _run_batch(self, inputs: Sequence[Tensor]) -> Any:
        """Run what may take one number of pictures alone, and say so where that is why it fails."""
        try:
            return self.run(inputs)
        except RuntimeError as error:
            given = len(inputs[0])
            if given == self.fixed_batch:
                raise
            raise InputError(
                f"the network was exported for a fixed batch of {self.fixed_batch}, and cannot "
                f"take {given} picture{'s' * (given != 1)}; export it again with the batch axis "
                f"left open, or give it {self.fixed_batch} at a time"
            ) from error


class ImportedNetworkOfSeveralInputs(ImportedNetwork):
    """A network that is given several tensors."""

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(inputs) if self.fixed_batch is None else self._run_batch(inputs)
