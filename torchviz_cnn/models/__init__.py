"""Networks by name or file, with their preprocessing, input size and class names."""

from torchviz_cnn.models.choices import DeviceChoice, choose_device, read_classes, read_list
from torchviz_cnn.models.imported import compare_file, export_file, noise
from torchviz_cnn.models.loading import build, holds_weights, load, names
from torchviz_cnn.models.model import Model
from torchviz_cnn.models.own import OWN
from torchviz_cnn.models.weights import (
    IMAGENET_CLASSES,
    KERAS,
    load_state,
    read_state,
    transforms_input,
)

__all__ = [
    "IMAGENET_CLASSES",
    "KERAS",
    "OWN",
    "DeviceChoice",
    "Model",
    "build",
    "choose_device",
    "compare_file",
    "export_file",
    "holds_weights",
    "load",
    "load_state",
    "names",
    "noise",
    "read_classes",
    "read_list",
    "read_state",
    "transforms_input",
]
