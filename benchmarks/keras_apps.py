"""The whole way from Keras to here, on Keras' own applications: no layer lost, none misnamed.

Each network gets random weights, biases and batch-norm statistics (fresh ones are mostly zeros and
ones, which hides mistakes), is exported, imported, and compared twice: with its file in onnxruntime,
and with what Keras itself says each layer puts out. Every network has a process of its own, so that
its peak memory is its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import torchviz_cnn as tvc
from converters import ImportedNetwork, compare, export_keras, load_onnx
from torchviz_cnn.errors import InputError, NotInstalled
from torchviz_cnn.models import choose_device

# TensorFlow must come after torch: in the other order the two may load different LLVMs and abort.
APPLICATIONS = (
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "MobileNetV2",
    "InceptionV3",
    "Xception",
    "DenseNet121",
    "EfficientNetB0",
    "NASNetMobile",
)
EXPLAINED = {"VGG16": "block5_conv3", "ResNet50": None}
_NEEDED = ("keras", "tensorflow", "tf2onnx", "onnxruntime")
ALLOWED = 1e-5
# No two layers in these networks put out the same within this: so far off, it is another layer.
ANOTHER_LAYER = 1e-3


@dataclass(frozen=True)
class Row:
    """One network's way through.

    Attributes:
        name: the application.
        layers: in Keras.
        compared: layers whose own outputs were compared with Keras'.
        wrong: names that are not Keras', or stand on another layer's output.
        missing: Keras' layers without an entry in the imported network.
        by_file: worst relative error of a layer beside onnxruntime.
        by_keras: worst relative error of a layer beside Keras.
        weakest: the smallest of the layers' largest outputs.
        strongest: the largest of them.
        export_seconds: of the export alone.
        export_gib: most memory of the process until the export was over.
        import_seconds: of the import alone.
        explained: what Grad-CAM found, where it was asked.
    """

    name: str
    layers: int
    compared: int
    wrong: int
    missing: int
    by_file: float
    by_keras: float
    weakest: float
    strongest: float
    export_seconds: float
    export_gib: float
    import_seconds: float
    explained: str = ""

    @property
    def passed(self) -> bool:
        worst = max(self.by_file, self.by_keras)
        return not self.wrong and not self.missing and worst <= ALLOWED and self.compared > 0


def check(names: Sequence[str], device: str) -> None:
    """See that the applications can be run, before any of them is.

    Raises:
        InputError: for an application that is not in the list, a device that is not there, or a
            package that is not installed.
    """
    for name in names:
        if name not in APPLICATIONS:
            raise InputError(f"choose from {', '.join(APPLICATIONS)}, not {name!r}")
    choose_device(device)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise NotInstalled(
            f"Keras' applications need {', '.join(missing)}, not installed here: "
            'python -m pip install -e ".[keras,compare]"'
        )


def measure(
    names: Sequence[str], *, every_layer: bool = True, device: str = "auto"
) -> Iterator[Row]:
    """A row for each application, each measured in a process of its own.

    Raises:
        InputError: for an application that could not be run.
    """
    for name in names:
        wish = json.dumps({"every_layer": every_layer, "device": device})
        command = [sys.executable, "-m", "benchmarks.keras_apps", name, wish]
        environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InputError(f"{name} could not be run: {last}")
        yield Row(**json.loads(done.stdout.splitlines()[-1]))


HEAD = (
    "| network | layers | compared | missing | wrong names | worst beside onnxruntime "
    "| worst beside Keras | outputs | export | peak | import | Grad-CAM |"
)


def line(row: Row) -> str:
    """A row as Markdown."""
    cells = [
        row.name,
        str(row.layers),
        str(row.compared),
        str(row.missing),
        str(row.wrong),
        f"{row.by_file:.1e}",
        f"{row.by_keras:.1e}",
        f"{row.weakest:.2g} to {row.strongest:.2g}",
        f"{row.export_seconds:.1f} s",
        f"{row.export_gib:.1f} GiB",
        f"{row.import_seconds:.1f} s",
        row.explained,
    ]
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------------- one network


def run(name: str, *, every_layer: bool, device: str) -> Row:
    """Export, import and compare one application."""
    import keras

    model = random_model(keras, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        start = time.perf_counter()
        export_keras(model, path, every_layer=every_layer)
        export_seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        network = load_onnx(path)
        import_seconds = time.perf_counter() - start
        pictures = np.random.default_rng(1).uniform(-1, 1, (2, *model.input_shape[1:]))
        images = pictures.astype(np.float32)
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        beside_file = compare(path, inputs=inputs, network=network)
    wanted = keras_outputs(keras, model, images)
    errors = layer_errors(network, inputs, wanted)
    known = {record.name for record in network.source.layers}
    strengths = [float(np.abs(array).max()) for array in wanted.values()]
    strange = [layer for layer in known if layer not in wanted]
    return Row(
        name=name,
        layers=len(wanted),
        compared=len(errors),
        wrong=len(strange) + sum(error > ANOTHER_LAYER for error in errors.values()),
        missing=len(wanted.keys() - known),
        by_file=beside_file.worst,
        by_keras=max(errors.values(), default=float("inf")),
        weakest=min(strengths),
        strongest=max(strengths),
        export_seconds=export_seconds,
        export_gib=peak,
        import_seconds=import_seconds,
        explained=explain(network, inputs, EXPLAINED[name], device) if name in EXPLAINED else "",
    )


def random_model(keras: Any, name: str) -> Any:
    """An application with random numbers everywhere, at scales at which signals stay alive."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(random.normal(0, 0.2, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def keras_outputs(keras: Any, model: Any, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What Keras says each layer puts out."""
    names = [layer.name for layer in model.layers]
    whole = keras.Model(model.inputs, [layer.output for layer in model.layers])
    return dict(zip(names, whole.predict_on_batch(images), strict=True))


def layer_errors(
    network: ImportedNetwork, inputs: torch.Tensor, wanted: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Each layer's largest error over Keras' largest value, by Keras' name."""
    records = {
        record.name: record
        for record in network.source.layers
        if record.status == "in the file" and record.name in wanted
    }
    seen = tvc.activations(network, inputs, list(records))
    errors = {}
    for name, record in records.items():
        array = seen[name].numpy()
        if record.permutation is not None:
            array = array[:, list(record.permutation)]
        array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        theirs = wanted[name]
        gap = np.abs(array - theirs).max() if array.shape == theirs.shape else np.inf
        error = float(gap / np.abs(theirs).max())
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def explain(network: ImportedNetwork, inputs: torch.Tensor, layer: str | None, device: str) -> str:
    """Grad-CAM of the imported network: at which layer, how large, and where it ran."""
    chosen = choose_device(device)
    found = tvc.grad_cam(network.to(chosen), inputs.to(chosen), layer=layer)
    values = found.values
    if not torch.isfinite(values).all() or not values.any():
        raise InputError(f"Grad-CAM at {found.layer} is empty")
    size = "×".join(str(side) for side in values.shape[1:])
    return f"{found.layer}, {size}, {chosen.type}"


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], **json.loads(sys.argv[2])))))
