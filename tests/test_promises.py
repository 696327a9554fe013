"""What every method promises, generated from one table: no trace is left, and the answer is right.

Each setting a network may be found in (training mode, frozen, compiled, wrapped, under a caller's
``inference_mode``, …) is judged twice: the network and the caller's world are compared in depth
before and after, and the result must be the one the same network gives when found at rest.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import torchviz_cnn as tvc
from tests.networks import (
    CLASSES,
    HEADS,
    BackwardTripwire,
    BatchStatistics,
    Bookkeeper,
    Drawing,
    Functional,
    Gray,
    Headed,
    Normalising,
    Repeated,
    Residual,
    TrippedError,
    Tripwire,
    identity,
    pictures,
    plain,
    randomised,
    with_part,
)
from torchviz_cnn.guard import every_module, undisturbed

# ---- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """How the tests call one method.

    Attributes:
        options: its keywords, chosen so that values of both signs stay.
        layer: whether it looks at a layer.
        gradient: whether it runs a backward pass through all of the network.
        linear: whether the values of a sum of scores are the sum of their values.
        still: keywords for tests of a symmetry that its random numbers do not have.
    """

    options: dict[str, Any] = field(default_factory=dict)
    layer: bool = False
    gradient: bool = True
    linear: bool = True
    still: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "saliency": Row(),
    "input_x_gradient": Row(),
    "guided_backprop": Row(linear=False),
    "deconvnet": Row(linear=False),
    "smooth_grad": Row({"samples": 3, "batch_size": 4}, still={"noise": 0.0}),
    "integrated_gradients": Row({"steps": 3, "baseline": 0.1, "batch_size": 4}),
    "grad_cam": Row({"relu": False}, layer=True, gradient=False),
    "hires_cam": Row({"relu": False}, layer=True, gradient=False),
    "layer_cam": Row({"relu": False}, layer=True, gradient=False, linear=False),
    "grad_cam_plus_plus": Row({"relu": False}, layer=True, gradient=False, linear=False),
    "guided_grad_cam": Row(layer=True, linear=False),
    "score_cam": Row({"relu": False, "batch_size": 5}, layer=True, gradient=False, linear=False),
    "occlusion": Row({"window": (5, 4), "stride": (3, 2), "fill": 0.3}, gradient=False),
}

every_method = pytest.mark.parametrize("method", ROWS)
layer_methods = pytest.mark.parametrize("method", [name for name, row in ROWS.items() if row.layer])


def test_every_method_of_the_library_has_a_row_here():
    assert set(ROWS) == set(tvc.METHODS)


def explain(method: str, model: Any, inputs: Tensor, target: Any = 1, **options: Any) -> Any:
    return tvc.METHODS[method](model, inputs, target, **{**ROWS[method].options, **options})


def assert_same(found: Any, wanted: Any) -> None:
    """Values, score and target equal to rounding in double precision; layer and type equal."""
    assert type(found) is type(wanted)
    assert found.layer == wanted.layer
    assert torch.equal(found.target.cpu(), wanted.target.cpu())
    assert_close(found.score, wanted.score)
    assert_close(found.values, wanted.values)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, check_device=False)


def residual() -> Residual:
    """Dropout, batch norm, in-place operations: in training mode it would answer differently."""
    return randomised(Residual(dropout=0.5), seed=7)


# ---- comparing before and after -------------------------------------------------------------------


def _held(value: object) -> object:
    """A value to compare later: the contents of dictionaries and lists, else the object itself."""
    if isinstance(value, dict):
        return {key: id(each) for key, each in value.items()}
    if isinstance(value, bool | int | float | str | None):
        return value
    return id(value)


def _tensor_state(tensor: Tensor | None) -> object:
    if tensor is None:
        return None
    values = tensor.detach().cpu().clone()
    return (
        id(tensor),
        values.dtype,
        values.shape,
        values.numpy().tobytes(),
        tensor.requires_grad,
        tensor.is_leaf,
        _held(tensor._backward_hooks),
        _tensor_state(tensor.grad) if tensor.is_leaf else None,
    )


def module_state(module: nn.Module) -> dict[str, dict[str, object]]:
    """Everything about every module: each attribute, hook, flag, parameter, gradient, buffer."""
    state = {}
    for name, part in module.named_modules(remove_duplicate=False):
        attributes = {key: _held(value) for key, value in vars(part).items()}
        attributes |= {f"parameter {k}": _tensor_state(v) for k, v in part._parameters.items()}
        attributes |= {f"buffer {k}": _tensor_state(v) for k, v in part._buffers.items()}
        state[name] = attributes
    return state


def world_state() -> dict[str, object]:
    """What of PyTorch itself a call could leave changed."""
    globally = vars(torch.nn.modules.module)
    state = {name: _held(value) for name, value in globally.items() if "_global_" in name}
    return state | {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "random state": torch.get_rng_state().numpy().tobytes(),
        "random state of the devices": [
            torch.cuda.get_rng_state(i).numpy().tobytes() for i in range(torch.cuda.device_count())
        ],
        "function modes": len(_get_current_function_mode_stack()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly mode": torch.is_anomaly_enabled(),
    }


@contextmanager
def nothing_changes(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Fails when the block leaves network, tensors or PyTorch otherwise than it found them."""
    modules, given, world = module_state(model), [*map(_tensor_state, tensors)], world_state()
    versions = [tensor._version for tensor in tensors if not tensor.is_inference()]
    yield
    after = module_state(model)
    assert after.keys() == modules.keys()
    for name, attributes in modules.items():
        assert after[name] == attributes, f"the module {name!r} was changed"
    assert [*map(_tensor_state, tensors)] == given
    assert [tensor._version for tensor in tensors if not tensor.is_inference()] == versions
    assert world_state() == world


def test_the_comparison_sees_a_leftover_hook_a_flag_a_gradient_and_a_buffer():
    """The tests below are only as good as this comparison."""

    def hook(net: Residual) -> None:
        net.bn1.register_forward_pre_hook(print)

    def flag(net: Residual) -> None:
        net.dropout.training = True

    def gradient(net: Residual) -> None:
        net.fc.weight.grad = torch.zeros_like(net.fc.weight)

    def buffer(net: Residual) -> None:
        net.bn2.running_mean[0] += 1e-15

    def frozen(net: Residual) -> None:
        net.conv1.bias.requires_grad_(False)

    def in_place(net: Residual) -> None:
        net.relu.inplace = False

    def random_state(_net: Residual) -> None:
        torch.rand(1)

    for change in (hook, flag, gradient, buffer, frozen, in_place, random_state):
        net = residual()
        with pytest.raises(AssertionError), nothing_changes(net):
            change(net)


# ---- the settings a network may be found in -------------------------------------------------------


def compiled_and_run(*modules: nn.Module, net: nn.Module) -> None:
    """Compile in place, and run now, before any hook is there."""
    torch._dynamo.reset()  # of too many networks of one class PyTorch would stop compiling
    for module in modules:
        module.compile(backend="eager")
    net(pictures())


def wrapped_and_run(module: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    wrapper = torch.compile(module, backend="eager")
    wrapper(pictures())
    return wrapper


@dataclass
class Found:
    """A network in some setting: what is handed to the method, and the world around the call."""

    net: nn.Module
    model: Any
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def at_rest(net: nn.Module) -> Found:
    return Found(net, net)


def in_training_mode(net: nn.Module) -> Found:
    net.train()
    return Found(net, net)


def in_mixed_modes(net: nn.Module) -> Found:
    for number, part in enumerate(net.modules()):
        part.training = number % 2 == 1
    return Found(net, net)


def frozen(net: nn.Module) -> Found:
    net.requires_grad_(False)
    return Found(net, net)


def half_frozen_with_gradients(net: nn.Module) -> Found:
    for number, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        if number % 3:
            parameter.grad = torch.full_like(parameter, 0.5 + number)
    return Found(net, net)


def under_no_grad(net: nn.Module) -> Found:
    return Found(net, net, torch.no_grad)


def under_inference_mode(net: nn.Module) -> Found:
    return Found(net, net, torch.inference_mode)


def inside_a_function_mode(net: nn.Module) -> Found:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    return Found(net, net, Mode)


def under_another_default_device(net: nn.Module) -> Found:
    """What is made there has no numbers: nothing may be that has to do with the pictures."""
    return Found(net, net, lambda: torch.device("meta"))


def with_hooks_of_the_users_own(net: nn.Module) -> Found:
    net.conv1.register_forward_hook(lambda module, args, output: output * 1.0)
    net.conv2.register_forward_pre_hook(lambda module, args: None)
    net.conv2.register_forward_hook(lambda m, a, k, out: None, with_kwargs=True, always_call=True)
    net.fc.register_full_backward_hook(lambda module, before, after: None)
    net.gap.register_full_backward_pre_hook(lambda module, gradient: None)
    net.fc.weight.register_hook(lambda gradient: None)
    net.fc.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    return Found(net, net)


def compiled_in_place(net: nn.Module) -> Found:
    compiled_and_run(net, net=net)
    return Found(net, net)


def children_compiled_in_place(net: nn.Module) -> Found:
    compiled_and_run(net.conv1, net.bn2, net.relu, net.conv3, net=net)
    return Found(net, net)


def wrapped_by_compile(net: nn.Module) -> Found:
    return Found(net, wrapped_and_run(net))


def wrapped_by_data_parallel(net: nn.Module) -> Found:
    return Found(net, nn.DataParallel(net))


def wrapped_twice(net: nn.Module) -> Found:
    return Found(net, wrapped_and_run(nn.DataParallel(net)))


def in_a_model(net: nn.Module) -> Found:
    names = ("ant", "bee", "cat", "dog")
    return Found(net, tvc.Model(net, lambda picture: picture, (3, 14, 10), names))


SETTINGS = [
    at_rest,
    in_training_mode,
    in_mixed_modes,
    frozen,
    half_frozen_with_gradients,
    under_no_grad,
    under_inference_mode,
    inside_a_function_mode,
    under_another_default_device,
    with_hooks_of_the_users_own,
    compiled_in_place,
    children_compiled_in_place,
    wrapped_by_compile,
    wrapped_by_data_parallel,
    wrapped_twice,
    in_a_model,
]

HARD_SETTINGS = [
    in_mixed_modes,
    half_frozen_with_gradients,
    under_inference_mode,
    with_hooks_of_the_users_own,
    compiled_in_place,
]


def _name(setting: Callable[[nn.Module], Found]) -> str:
    return setting.__name__


every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=_name)
every_hard_setting = pytest.mark.parametrize("setting", HARD_SETTINGS, ids=_name)


def at_peace(method: str, inputs: Tensor, target: Any = 1, **options: Any) -> Any:
    """The result for the same network in eval mode, bare, untouched by any setting."""
    return explain(method, residual(), inputs, target, **options)


@every_method
def test_the_reference_has_something_to_compare(method):
    result = at_peace(method, pictures(3))
    assert result.values.std() > 1e-4
    other = at_peace(method, pictures(3), target=2)
    assert not torch.allclose(result.values, other.values, atol=1e-4)


@every_method
@every_setting
def test_after_success_nothing_has_changed_and_the_result_is_that_of_a_network_at_rest(
    method, setting
):
    found = setting(residual())
    inputs = pictures()
    with found.around(), nothing_changes(found.net, inputs):
        result = explain(method, found.model, inputs)
    assert_same(result, at_peace(method, inputs))
    assert not result.values.requires_grad
    assert not result.score.requires_grad


@every_method
@every_hard_setting
def test_several_targets_and_a_second_call_are_right_in_hard_settings(method, setting):
    found = setting(residual())
    inputs = pictures()
    targets = [[0, 3], [2, 1]]
    with found.around(), nothing_changes(found.net, inputs):
        explain(method, found.model, inputs, None)
        result = explain(method, found.model, inputs, targets)
    assert_same(result, at_peace(method, inputs, targets))


@every_method
def test_inputs_made_in_inference_mode_are_explained_like_any_other(method):
    wanted = at_peace(method, pictures(), target=None)
    with torch.inference_mode():
        inputs = pictures()
        assert inputs.is_inference()
        net = residual()
    net = residual()
    with torch.inference_mode(), nothing_changes(net, inputs):
        inside = explain(method, net, inputs, target=None)
    with nothing_changes(net, inputs):
        outside = explain(method, net, inputs, target=None)
    assert_same(inside, wanted)
    assert_same(outside, wanted)
    assert not inside.values.is_inference(), "the values could not be used in a graph later"


@every_method
def test_a_distributed_wrapper_is_looked_through(method):
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this PyTorch is built without gloo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        net = residual()
        wrapper = nn.parallel.DistributedDataParallel(net)
        with nothing_changes(net):
            result = explain(method, wrapper, pictures())
    finally:
        distributed.destroy_process_group()
    assert_same(result, at_peace(method, pictures()))


@every_method
def test_a_network_with_a_compiled_child_gives_what_it_gives_uncompiled(method):
    """``net.body = torch.compile(net.body)``: hooks put inside the child later must be seen.

    PyTorch ignores them in what it has compiled already, so it is run beforehand in each of the
    modes that a method may run it in.
    """
    net = randomised(Headed(identity), seed=5)
    options = {"layer": net.body.relu2} if ROWS[method].layer else {}
    inputs = pictures()
    wanted = explain(method, net, inputs, **options)
    torch._dynamo.reset()
    net.body = torch.compile(net.body, backend="eager")
    frozen(net)
    with torch.no_grad():
        net(pictures())
    net(pictures())
    net(pictures().requires_grad_().clone())
    with nothing_changes(net):
        found = explain(method, net, inputs, **options)
    assert_close(found.values, wanted.values)
    assert_close(found.score, wanted.score)


# ---- after a refusal and after an exception -------------------------------------------------------


def _refused(found: Found, method: str, words: str, *args: Any, **options: Any) -> None:
    inputs = pictures()
    with found.around(), nothing_changes(found.net, inputs):
        with pytest.raises(tvc.InputError, match=words):
            explain(method, found.model, inputs, *args, **options)


@every_method
@every_hard_setting
def test_after_a_target_out_of_range_nothing_has_changed(method, setting):
    _refused(setting(residual()), method, r"99.*out of range.*0 to 3", 99)


@every_method
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([1, 2, 3], "3 targets .* 2 images"),
        ([1], "1 target was .* 2 images"),
        ([[1, 2], [1]], "same number of targets"),
        ([[1], 2], r"one list of classes for every image, not some of each: \[\[1\], 2\]"),
        (-1, "-1 is out of range"),
        ([0, CLASSES], f"{CLASSES} is out of range"),
        ("bee", "names .* not known"),
        (1.5, "class index"),
    ],
)
def test_after_a_bad_target_nothing_has_changed(method, target, words):
    _refused(in_mixed_modes(residual()), method, words, target)


@every_method
def test_a_list_of_targets_of_the_wrong_length_is_refused_before_anything_runs(method):
    wire = Tripwire()
    net = randomised(with_part(wire))
    with pytest.raises(tvc.InputError):
        explain(method, net, pictures(2), [1, 2, 3])
    assert not wire.runs


@layer_methods
@every_hard_setting
def test_after_a_bad_layer_name_nothing_has_changed(method, setting):
    _refused(setting(residual()), method, "no layer 'conv4'.*conv3", 1, layer="conv4")


@layer_methods
@pytest.mark.parametrize(
    ("layer", "words"),
    [("fc", "fc"), ("*", "one layer is needed"), ("relu@7", "relu"), (nn.ReLU(), "not part of")],
)
def test_after_a_layer_that_cannot_serve_nothing_has_changed(method, layer, words):
    _refused(in_mixed_modes(residual()), method, words, 1, layer=layer)


@layer_methods
def test_a_bad_layer_name_is_refused_before_anything_runs(method):
    wire = Tripwire()
    with pytest.raises(tvc.InputError):
        explain(method, randomised(with_part(wire)), pictures(2), 1, layer="nowhere")
    assert not wire.runs


@every_method
@pytest.mark.parametrize(
    ("error", "after", "at"),
    [
        (TrippedError, "conv1", 1),
        (TrippedError, "relu2", 2),
        (TrippedError, "fc", 1),
        (TrippedError, "fc", 3),
        (tvc.InputError, "relu2", 1),
        (KeyboardInterrupt, "relu2", 1),
        (KeyboardInterrupt, "fc", 2),
    ],
)
def test_after_an_exception_in_any_forward_pass_nothing_has_changed(method, error, after, at):
    wire = Tripwire(at, error)
    net = randomised(with_part(wire, after))
    half_frozen_with_gradients(in_mixed_modes(net).net)
    inputs = pictures()

    def until_it_trips() -> None:
        for _ in range(at):
            explain(method, net, inputs)

    with nothing_changes(net, inputs):
        with pytest.raises(error):
            until_it_trips()
    wire.at = 0  # it may have been a copy of it, made for tracing, that tripped
    found = explain(method, net, inputs)
    wanted = explain(method, randomised(with_part(Tripwire(), after)), inputs)
    assert_same(found, wanted)


@every_method
def test_after_an_exception_in_the_backward_pass_nothing_has_changed(method):
    if not ROWS[method].gradient:
        pytest.skip("runs no backward pass through the early layers")
    net = randomised(with_part(BackwardTripwire(), "conv1"))
    half_frozen_with_gradients(in_mixed_modes(net).net)
    with nothing_changes(net):
        with pytest.raises(TrippedError):
            explain(method, net, pictures())


@every_method
def test_after_a_callable_target_that_raises_nothing_has_changed(method):
    def target(_scores: Tensor) -> Tensor:
        raise TrippedError

    net = in_mixed_modes(residual()).net
    with nothing_changes(net):
        with pytest.raises(TrippedError):
            explain(method, net, pictures(), target)


@layer_methods
@pytest.mark.parametrize("layer", ["conv1", "bn1", "bn2", "relu", "relu@0", "relu@1", "conv3"])
def test_a_layer_that_is_written_into_later_gives_what_its_out_of_place_twin_gives(method, layer):
    net, twin = (randomised(Residual(in_place=each), seed=7) for each in (True, False))
    with nothing_changes(net):
        found = explain(method, net, pictures(), layer=layer)
    assert found.values.abs().amax() > 0
    assert_same(found, explain(method, twin, pictures(), layer=layer))


# ---- random numbers and buffers -------------------------------------------------------------------


@every_method
def test_the_random_state_is_untouched_when_the_network_draws_random_numbers(method, device):
    net = randomised(Drawing()).to(device)
    before = torch.get_rng_state()
    net(pictures().to(device))
    assert not torch.equal(before, torch.get_rng_state()), "this network draws none"
    with nothing_changes(net):
        explain(method, net, pictures().to(device))


@every_method
@pytest.mark.parametrize(
    "habit", ["in_place", "replaced", "through_data", "first_value", "new_buffer"]
)
def test_buffers_that_the_network_writes_in_eval_mode_come_back(method, habit):
    net = randomised(with_part(Bookkeeper(habit)))
    probe = copy.deepcopy(net)
    before = module_state(probe)
    probe(pictures())
    assert module_state(probe) != before, "this network writes no buffer"
    with nothing_changes(net):
        explain(method, net, pictures())
    with nothing_changes(net):
        with pytest.raises(tvc.InputError):
            explain(method, net, pictures(), 99)


@every_method
def test_running_statistics_moved_by_a_parent_in_eval_mode_come_back(method):
    net = randomised(with_part(BatchStatistics()))
    with nothing_changes(net):
        explain(method, net, pictures())


# ---- the user's tensors ---------------------------------------------------------------------------


@every_method
def test_a_network_that_writes_into_its_input_is_explained_like_its_out_of_place_twin(
    method, device
):
    net = randomised(Normalising(in_place=True)).to(device)
    twin = randomised(Normalising(in_place=False)).to(device)
    inputs = pictures(3).to(device)
    with nothing_changes(net, inputs):
        found = [explain(method, net, inputs) for _ in range(2)]
    wanted = explain(method, twin, inputs)
    assert_same(found[0], wanted)
    assert_same(found[1], wanted)


@every_method
def test_an_input_that_requires_a_gradient_keeps_its_own_and_its_graph(method):
    leaf = pictures().requires_grad_()
    leaf.grad = torch.ones_like(leaf)
    inputs = leaf * 2
    net = residual()
    with nothing_changes(net, leaf, inputs):
        on_leaf = explain(method, net, leaf)
        on_result = explain(method, net, inputs)
    assert_same(on_leaf, at_peace(method, pictures()))
    assert_same(on_result, at_peace(method, pictures() * 2))
    inputs.sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 3.0))  # 1 before, and 2 more


@every_method
def test_inputs_of_any_memory_layout_give_the_same(method):
    inputs = pictures()
    wanted = at_peace(method, inputs)
    assert_same(at_peace(method, inputs.to(memory_format=torch.channels_last)), wanted)
    expanded = inputs[:1].expand(2, -1, -1, -1)
    assert_same(at_peace(method, expanded), at_peace(method, expanded.contiguous()))


# ---- batches and targets --------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: randomised(plain()),
    "residual": residual,
    "functional": lambda: randomised(Functional()),
    "repeated": lambda: randomised(Repeated()),
    "softmax": lambda: randomised(Headed(nn.Softmax(dim=1))),
    "one sigmoid": lambda: randomised(Headed(nn.Sigmoid(), 1)),
    "one sigmoid, squeezed": lambda: randomised(Headed(HEADS["sigmoid().squeeze(1)"][0], 1)),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


@every_method
@every_network
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_a_batch_equals_its_images_one_by_one(method, network, score):
    net, inputs = NETWORKS[network](), pictures(3)
    together = explain(method, net, inputs, None, score=score)
    for index in range(3):
        alone = explain(method, net, inputs[index : index + 1], None, score=score)
        assert_close(together.values[index : index + 1], alone.values)
        assert_close(together.score[index : index + 1], alone.score)
        assert together.target[index] == alone.target[0]


@every_method
@every_network
def test_each_image_may_have_its_own_target(method, network):
    net, inputs = NETWORKS[network](), pictures(3)
    targets = [1, 0, 1] if network.startswith("one") else [3, 0, 2]
    together = explain(method, net, inputs, targets)
    assert together.target.tolist() == targets
    for index, target in enumerate(targets):
        alone = explain(method, net, inputs[index : index + 1], target)
        assert_close(together.values[index : index + 1], alone.values)
        assert_close(together.score[index : index + 1], alone.score)


@every_method
@every_network
def test_several_targets_an_image_equal_as_many_single_calls(method, network):
    net, inputs = NETWORKS[network](), pictures(2)
    targets = [[1, 0, 1], [0, 0, 1]] if network.startswith("one") else [[0, 3, 1], [2, 2, 0]]
    together = explain(method, net, inputs, targets)
    assert together.target.tolist() == targets
    for index in range(3):
        single = explain(method, net, inputs, [row[index] for row in targets])
        assert_close(together.values[:, index], single.values)
        assert_close(together.score[:, index], single.score)


@every_method
def test_the_default_target_is_the_top_class_of_each_image(method):
    net, inputs = randomised(plain(), seed=3), 8 * pictures(8, height=8, width=8)
    with torch.no_grad():
        scores = net(inputs)
    top = scores.argmax(1)
    assert len(set(top.tolist())) > 1, "one class wins everywhere: this would show nothing"
    found = explain(method, net, inputs, None)
    assert_same(found, explain(method, net, inputs, top.tolist()))
    assert_close(found.score, scores.amax(1))


@every_method
def test_a_callable_target_equals_the_class_it_picks(method):
    net, inputs = residual(), pictures()
    found = explain(method, net, inputs, lambda scores: scores[:, 2])
    assert found.target is None
    assert_close(found.values, at_peace(method, inputs, 2).values)


@every_method
def test_a_class_may_be_given_by_name(method):
    model = in_a_model(residual()).model
    assert_same(explain(method, model, pictures(), "cat"), at_peace(method, pictures(), 2))
    named = explain(method, residual(), pictures(), ["dog", "ant"], classes=model.classes)
    assert_same(named, at_peace(method, pictures(), [3, 0]))


@every_method
def test_the_two_classes_of_one_sigmoid_are_its_logit_and_the_negative(method):
    if not ROWS[method].linear:
        pytest.skip("not linear in the score")
    net, inputs = randomised(Headed(nn.Sigmoid(), 1)), pictures()
    for_it, against = (explain(method, net, inputs, target) for target in (1, 0))
    with torch.no_grad():
        assert_close(for_it.score, net.body(inputs)[:, 0])
    assert_close(against.score, -for_it.score)
    assert_close(against.values, -for_it.values)


# ---- the head -------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("spelling", HEADS)
def test_the_logit_is_explained_however_the_last_activation_is_spelled(method, spelling):
    head, outputs = HEADS[spelling]
    net = randomised(Headed(head, outputs), seed=4)
    bare = randomised(Headed(identity, outputs), seed=4)
    inputs = pictures()
    wanted = explain(method, bare, inputs, 1)
    with nothing_changes(net, inputs):
        first = explain(method, net, inputs, 1)
        again = explain(method, net, inputs, 1)
    assert_same(first, wanted)
    assert_same(again, wanted)


@every_method
@pytest.mark.parametrize("spelling", HEADS)
def test_a_head_put_on_after_the_first_explanation_is_noticed(method, spelling):
    head, outputs = HEADS[spelling]
    net = randomised(Headed(identity, outputs), seed=4)
    wanted = explain(method, net, pictures(), 1)
    net.head = head
    assert_same(explain(method, net, pictures(), 1), wanted)


@every_method
@pytest.mark.parametrize("spelling", ["nn.Softmax", "F.softmax", "x.softmax"])
def test_the_probability_is_explained_when_asked_for(method, spelling):
    """The oracle takes the softmax itself, as a callable target on a network without a head."""
    head, _ = HEADS[spelling]
    net, bare = randomised(Headed(head), seed=4), randomised(Headed(identity), seed=4)
    wanted = explain(method, bare, pictures(), lambda scores: scores.softmax(1)[:, 1])
    for network in (net, bare):
        found = explain(method, network, pictures(), 1, score="probability")
        assert_close(found.values, wanted.values)
        assert_close(found.score, wanted.score)


# ---- shapes, types and devices --------------------------------------------------------------------


def transposed(net: nn.Module) -> nn.Module:
    """The network that does to a transposed picture what ``net`` does to the picture."""
    mirrored = copy.deepcopy(net)
    with torch.no_grad():
        for part in mirrored.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(part.weight.mT.clone())
    return mirrored


@every_method
def test_height_and_width_are_treated_alike(method):
    """A transposed picture in a transposed network has the transposed explanation."""
    net, inputs = residual(), pictures(2, height=14, width=11)
    still = ROWS[method].still
    found = explain(method, net, inputs, **still)
    options = still | {
        name: value[::-1]
        for name, value in ROWS[method].options.items()
        if name in ("window", "stride")
    }
    mirrored = explain(method, transposed(net), inputs.mT.contiguous(), **options)
    assert found.values.shape[-2] != found.values.shape[-1]
    assert_close(mirrored.values, found.values.mT)
    assert mirrored.input_size == found.input_size[::-1] == (11, 14)
    assert_close(mirrored.heatmap(), found.heatmap().mT)


@every_method
def test_the_place_that_matters_is_found_where_it_is(method):
    """A bright patch on black, and units that answer to nothing else, in a picture H ≠ W."""
    if method == "deconvnet":
        pytest.skip("without pooling it does not depend on the picture")
    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *plain()[4:6], nn.Flatten()))
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.fill_(-0.1)
    inputs = torch.zeros(2, 3, 20, 44, dtype=torch.float64)
    inputs[0, :, 12:16, 33:37] = 1
    inputs[1, :, 3:7, 8:12] = 1
    options = ROWS[method].still | ({"fill": 0.0} if method == "occlusion" else {})
    maps = explain(method, net, inputs, **options).heatmap()
    for image, (row, column) in zip(maps, [(13.5, 34.5), (4.5, 9.5)], strict=True):
        weights = image.clamp(min=0) / image.clamp(min=0).sum()
        assert float(weights.sum(1) @ torch.arange(20.0).double()) == pytest.approx(row, abs=1)
        assert float(weights.sum(0) @ torch.arange(44.0).double()) == pytest.approx(column, abs=1)


@every_method
def test_values_keep_the_precision_of_the_input(method):
    exact = explain(method, randomised(plain()), pictures())
    assert exact.values.dtype == exact.score.dtype == torch.float64
    single = explain(method, randomised(plain()).float(), pictures().float())
    assert single.values.dtype == single.score.dtype == torch.float32
    torch.testing.assert_close(single.values.double(), exact.values, rtol=1e-3, atol=1e-5)


@every_method
def test_a_network_without_a_channel_axis_is_explained_like_the_one_inside_it(method):
    net, inputs = randomised(Gray()), pictures(3, channels=1)
    with nothing_changes(net):
        found = explain(method, net, inputs[:, 0])
    wanted = explain(method, net.net, inputs)
    values = wanted.values[:, 0] if isinstance(wanted, tvc.PixelAttribution) else wanted.values
    assert_close(found.values, values)
    assert_close(found.heatmap(), wanted.heatmap())
    several = explain(method, net, inputs[:, 0], [[0, 1]] * 3)
    assert_close(several.values[:, 1], values)
    assert_close(several.heatmap()[:, 1], wanted.heatmap())


@every_method
def test_one_channel_is_explained_like_three_of_which_two_are_ignored(method):
    gray, colour = randomised(plain(channels=1)), randomised(plain())
    state = gray.state_dict()
    state["conv1.weight"] = torch.cat(
        [state["conv1.weight"], torch.zeros(6, 2, 3, 3, dtype=torch.float64)], 1
    )
    colour.load_state_dict(state)
    inputs, still = pictures(), ROWS[method].still
    found = explain(method, gray, inputs[:, :1], **still)
    wanted = explain(method, colour, inputs, **still)
    if isinstance(wanted, tvc.PixelAttribution):
        assert_close(found.values, wanted.values[:, :1])
        assert not wanted.values[:, 1:].any()
    else:
        assert_close(found.values, wanted.values)


@every_method
@every_network
def test_a_device_gives_what_the_cpu_gives_and_results_stay_on_it(method, network, device):
    net, inputs = NETWORKS[network](), pictures(3)
    targets = [[0, 1], [1, 0], [1, 1]]
    with torch.random.fork_rng():
        wanted = explain(method, net, inputs, targets)
    net, inputs = net.to(device), inputs.to(device)
    with nothing_changes(net, inputs):
        found = explain(method, net, inputs, targets)
    assert found.values.device.type == found.score.device.type == device.type
    torch.testing.assert_close(found.values.cpu(), wanted.values, rtol=1e-7, atol=1e-9)


# ---- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def young_heap() -> Iterator[None]:
    """Only what the test itself makes is counted, and collecting it is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class _Token:
    """Lives as long as the graph it was put into."""


class _Witness:
    """Puts weak references on every activation of a network, and tokens into its graphs."""

    def __init__(self, net: nn.Module) -> None:
        self.activations: list[weakref.ref[Tensor]] = []
        self.tokens: list[weakref.ref[_Token]] = []
        for part in net.modules():
            part.register_forward_hook(self.look)

    def look(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.activations.append(weakref.ref(output))
        if output.requires_grad:
            token = _Token()
            self.tokens.append(weakref.ref(token))
            output.register_hook(lambda _gradient, _token=token: None)

    def alive(self) -> tuple[int, int]:
        gc.collect()
        return (
            sum(each() is not None for each in self.activations),
            sum(each() is not None for each in self.tokens),
        )


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@pytest.mark.usefixtures("young_heap")
def test_the_witness_sees_a_graph_that_is_kept_alive():
    net = residual()
    witness = _Witness(net)
    output = net(pictures())
    assert witness.alive()[1] > 3
    del output
    assert witness.alive() == (0, 0)


@pytest.mark.usefixtures("young_heap")
@every_method
@pytest.mark.parametrize("network", ["residual", "repeated", "one sigmoid"])
def test_a_kept_result_holds_no_activation_and_no_graph_alive(method, network):
    net = NETWORKS[network]()
    witness = _Witness(net)
    result = explain(method, net, pictures(), [[0, 1], [1, 0]])
    assert witness.activations
    assert bool(witness.tokens) == (method not in ("occlusion", "score_cam"))
    assert witness.alive() == (0, 0)
    assert len(result) == 2


@pytest.mark.usefixtures("young_heap")
@every_method
@pytest.mark.parametrize("target", [1, 99])
def test_repeated_calls_leave_no_more_tensors_than_the_first(method, target):
    def call() -> None:
        try:
            explain(method, net, inputs, target)
        except tvc.InputError:
            assert target == 99

    net, inputs = residual(), pictures()
    call()
    before = _live_tensors()
    for _ in range(5):
        call()
    assert _live_tensors() == before


@every_method
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_repeated_calls_leave_no_more_device_memory_than_the_first(method):
    net, inputs = residual().cuda(), pictures().cuda()
    explain(method, net, inputs)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        explain(method, net, inputs)
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.usefixtures("young_heap")
@every_method
def test_an_explained_network_can_be_freed(method):
    net = residual()
    explain(method, net, pictures())
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_inside_a_block_every_network_has_the_modules_it_has():
    """Those of the network at rest are remembered; so they must not be taken for another's."""
    net, other = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh(), nn.ReLU())
    with undisturbed(net):
        assert set(every_module(net)) == set(net.modules())
        assert set(every_module(other)) == set(other.modules())
        with undisturbed(other):
            assert set(every_module(other)) == set(other.modules())
            assert set(every_module(net)) == set(net.modules())
        assert set(every_module(net)) == set(net.modules())
    with undisturbed(net):
        pass
    net.append(nn.Sigmoid())
    assert set(every_module(net)) == set(net.modules())


def test_a_buffer_that_two_layers_share_is_one_inside_a_block():
    count = torch.zeros(())
    net = nn.ModuleList([nn.Module(), nn.Module()])
    for each in net:
        each.register_buffer("count", count)
    with undisturbed(net):
        net[0].count += 1
        assert net[1].count == 1
    assert net[0].count is net[1].count is count
    assert count == 0


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion"])
def test_a_weight_that_is_computed_of_others_may_stand_for_a_parameter(method):
    """As where a network's update is to be differentiated: it is no leaf and stays in its graph."""
    net = randomised(plain())
    wanted = explain(method, net, pictures())
    held = net.conv1.weight
    computed = held * 1
    net.conv1._parameters["weight"] = computed
    found = explain(method, net, pictures())
    torch.testing.assert_close(found.values, wanted.values)
    assert net.conv1.weight is computed
    assert computed.requires_grad
    assert torch.equal(torch.autograd.grad(computed.sum(), held)[0], torch.ones_like(held))


def test_layers_that_share_their_buffers_share_them_inside_a_block():
    one = nn.Module()
    one.register_buffer("count", torch.zeros(()))
    net = nn.ModuleList([one, copy.copy(one)])
    assert net[0]._buffers is net[1]._buffers
    with undisturbed(net):
        net[0].count = net[0].count + 1
        assert net[1].count == 1
    assert net[0].count == net[1].count == 0
    assert net[0]._buffers is net[1]._buffers
