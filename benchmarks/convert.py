"""A network that came through an ONNX file beside the same file in onnxruntime, and beside torch's.

By default torchvision's networks are exported by torch and come back through ``converters``, so
all three sides compute the same numbers; these are compared before anything is timed. A file that
Keras exported can be put beside torchvision's network of its kind. The two are then not the same
to the last operation (Keras' ResNet50 strides elsewhere), so their multiply-adds stand beside it.
"""

from __future__ import annotations

import importlib
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import torchviz_cnn as tvc
from benchmarks.clock import Run, peak_bytes
from benchmarks.effort import Effort
from benchmarks.peers import compared
from benchmarks.record import About, Row
from benchmarks.subjects import Subject, fits, network, plain
from torchviz_cnn.errors import InputError

SUITE = "convert"
METHODS = ("forward", "grad_cam", "occlusion")
IMPORTED = "imported"
_NETWORKS = ("vgg16", "resnet50", "resnet18", "mobilenet_v2")


def measure(
    effort: Effort, file: Path | None = None, against: str | None = None
) -> Iterator[Row | str]:
    """A row for each network, batch, other side and measure.

    Args:
        effort: how much.
        file: an ONNX file to measure, instead of torchvision's own networks.
        against: torchvision's name of the network in it.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        if file is not None:
            native = None if against is None else network(against, effort.device)
            yield from _file(effort, file, file.stem, native, same_network=False)
            return
        for name in effort.networks(_NETWORKS, ("resnet18",)):
            asked = effort.subject(name, frozen=True)
            path = Path(folder) / f"{name}.onnx"
            try:
                _export(asked, path)
            except Exception as error:  # whatever torch's exporter says
                yield f"{name} is left out: torch cannot export it ({_first_line(error)})"
                continue
            yield from _file(effort, path, name, asked.module, same_network=True)
            path.unlink()


def _export(asked: Subject, path: Path) -> None:
    """By the exporter that needs no package beside onnx, any number of pictures."""
    torch.onnx.export(
        asked.module,
        (asked.inputs,),
        path,
        dynamo=False,
        input_names=["pictures"],
        output_names=["scores"],
        dynamic_axes={"pictures": {0: "n"}, "scores": {0: "n"}},
    )


def _file(
    effort: Effort, path: Path, name: str, native: nn.Module | None, *, same_network: bool
) -> Iterator[Row | str]:
    importlib.import_module("converters")  # its packages are not what is timed
    importlib.import_module("onnx2torch")
    start = time.perf_counter()
    model = tvc.models.load(str(path), preprocess="none", device=effort.device)
    note = f"imported in {time.perf_counter() - start:.1f} s"
    if native is not None and not same_network:
        _check_fits(native, model)
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    for batch in effort.sizes():
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand((batch, *model.input_size), generator=generator).to(effort.device)
        size = "×".join(map(str, inputs.shape[-2:]))
        about = About(SUITE, "forward", name, f"batch {batch}, {size}")
        if effort.wants("forward"):
            yield from _forward(effort, about, path, model, native, inputs, note, same_network)
        if native is not None and same_network and effort.wants("grad_cam"):
            yield from _explained(effort, about, model, native, inputs)
        if batch == effort.sizes()[0] and effort.wants("occlusion"):
            twin = native if same_network else None
            yield from _occluded(effort, about, model, twin, inputs[:1])


def _forward(
    effort: Effort,
    about: About,
    path: Path,
    model: tvc.models.Model,
    native: nn.Module | None,
    inputs: Tensor,
    note: str,
    same_network: bool,
) -> Iterator[Row | str]:
    """A pass of the imported network beside the file in onnxruntime, and beside torchvision's."""
    others: dict[str, Run] = {}
    session = _onnxruntime(path, inputs)
    if isinstance(session, str):
        yield session
    else:
        others["onnxruntime"] = session
    if native is not None:
        others["torchvision"] = partial(plain, native, inputs)
    ours = partial(plain, model.module, inputs)
    for side, run in list(others.items()):
        if side == "torchvision" and not same_network:
            yield _multiply_adds(about, native, model)
            continue
        found = compared(_tensor(run()), _tensor(ours()))
        yield about.once("map", side, IMPORTED, found.difference, 1.0, found.verdict)
        if not found.same:
            del others[side]
    for side, ratio in effort.ratios(ours, others).items():
        yield about.time(side, IMPORTED, ratio, note)
    if "torchvision" in others:
        theirs, own = (peak_bytes(r, effort.device) for r in (others["torchvision"], ours))
        yield about.once("memory", "torchvision", IMPORTED, theirs, own)


def _explained(
    effort: Effort, about: About, model: tvc.models.Model, native: nn.Module, inputs: Tensor
) -> Iterator[Row]:
    """Grad-CAM of both, at the layer that each is found to have."""
    about = About(SUITE, "grad_cam", about.model, about.setting)
    target = int(plain(native, inputs).mean(0).argmax())
    ours: Run = lambda: tvc.grad_cam(model, inputs, target, relu=False).values  # noqa: E731
    theirs: Run = lambda: tvc.grad_cam(native, inputs, target, relu=False).values  # noqa: E731
    yield from _beside(effort, about, ours, "torchvision", theirs)


def _occluded(
    effort: Effort,
    about: About,
    model: tvc.models.Model,
    native: nn.Module | None,
    inputs: Tensor,
) -> Iterator[Row]:
    """Occlusion of one picture, beside torchvision's network; without one, beside whole passes."""
    window = max(1, min(inputs.shape[-2:]) // 7)
    stride = window if effort.quick else max(1, window // 2)
    setting = f"{about.setting.partition(', ')[2]}, window {window}, stride {stride}"
    about = About(SUITE, "occlusion", about.model, setting)
    target = int(plain(model.module, inputs).mean(0).argmax())

    def run(network: Any, engine: Literal["auto", "dense"] = "auto") -> Tensor:
        answer = tvc.occlusion(network, inputs, target, window=window, stride=stride, engine=engine)
        return torch.as_tensor(answer.values)

    if native is None:
        yield from _beside(
            effort, about, partial(run, model), "dense", partial(run, model, "dense")
        )
    else:
        yield from _beside(effort, about, partial(run, model), "torchvision", partial(run, native))


def _beside(effort: Effort, about: About, ours: Run, side: str, theirs: Run) -> Iterator[Row]:
    """The two maps compared, and timed where they are the same."""
    found = compared(torch.as_tensor(theirs()), torch.as_tensor(ours()))
    yield about.once("map", side, IMPORTED, found.difference, 1.0, found.verdict)
    if found.same:
        yield about.time(side, IMPORTED, effort.ratios(ours, {side: theirs})[side])


def _check_fits(native: nn.Module, model: tvc.models.Model) -> None:
    """Whether torchvision's network takes pictures of the file's size.

    Raises:
        InputError: when it does not.
    """
    device = next(native.parameters()).device
    pictures = torch.zeros(1, *model.input_size, device=device)
    size = "×".join(map(str, model.input_size))
    if not fits(native, pictures):
        raise InputError(
            f"the file's network takes pictures of {size}, which the one named by --against does not"
        )


def _multiply_adds(about: About, native: nn.Module | None, model: tvc.models.Model) -> Row:
    sides = [
        float(tvc.layers(each, model.input_size).macs or 0) for each in (native, model) if each
    ]
    return about.once("multiply-adds", "torchvision", IMPORTED, sides[0], sides[1])


def _tensor(scores: Any) -> Tensor:
    """Scores as torch has them; onnxruntime's own may still be on the device."""
    return (
        scores
        if isinstance(scores, Tensor)
        else torch.as_tensor(getattr(scores, "numpy", lambda: scores)())
    )


def _onnxruntime(path: Path, inputs: Tensor) -> Run | str:
    """The file in onnxruntime, with as many threads as torch has; or why it cannot be run."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return 'onnxruntime is left out; to have it: python -m pip install -e ".[compare]"'
    session = session_of(runtime, path, inputs.device)
    if isinstance(session, str):
        return session
    given = session.get_inputs()[0]
    array = inputs.cpu().numpy()
    if given.shape[-1] == inputs.shape[1] != given.shape[1]:  # as Keras lays pictures out
        array = array.transpose(0, 2, 3, 1).copy()
    if not inputs.is_cuda:
        return lambda: session.run(None, {given.name: array})[0]
    # The other side's pictures are on the device already, and its scores stay there.
    binding = session.io_binding()
    value = runtime.OrtValue.ortvalue_from_numpy(array, "cuda", inputs.device.index or 0)
    binding.bind_ortvalue_input(given.name, value)
    output = session.get_outputs()[0].name
    binding.bind_output(output, "cuda", inputs.device.index or 0)

    def run() -> object:
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return run


def session_of(runtime: Any, path: Path, device: torch.device) -> Any:
    """The file where torch's networks are, in the precision that they have; or why it cannot be had.

    Args:
        runtime: the package.
        path: of the file.
        device: of the network beside it.
    """
    cuda = device.type == "cuda"
    provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        return f"onnxruntime is left out: it was built without {provider}"
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Else its threads go on spinning once it is done, and take a core from the side that is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Left alone it takes the first GPU, and rounds to TF32, as torch does not here.
    wishes = {"device_id": str(device.index or 0), "use_tf32": "0"} if cuda else {}
    session = runtime.InferenceSession(str(path), options, providers=[(provider, wishes)])
    if session.get_providers()[0] != provider:  # it goes on without what it cannot load
        return f"onnxruntime is left out: {provider} could not be started here"
    return session


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
