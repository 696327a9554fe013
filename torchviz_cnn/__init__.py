"""What is this convolutional network looking at?

Opens up any CNN by its named layers: feature maps, filters, saliency, guided backpropagation,
Grad-CAM, occlusion.
"""

from torchviz_cnn import models, render
from torchviz_cnn.attribution import (
    Attribution,
    CellAttribution,
    PixelAttribution,
    WindowAttribution,
)
from torchviz_cnn.errors import InputError
from torchviz_cnn.kernels import Filters, filters
from torchviz_cnn.methods import (
    METHODS,
    deconvnet,
    grad_cam,
    guided_backprop,
    guided_grad_cam,
    input_x_gradient,
    occlusion,
    saliency,
)
from torchviz_cnn.models import Model
from torchviz_cnn.naming import rename
from torchviz_cnn.observe import Observation, activations, capture
from torchviz_cnn.summary import LayerInfo, LayerTable, layers
from torchviz_cnn.tracing import default_layer
from torchviz_cnn.version import __version__
from torchviz_cnn.walking import Step, Walk, walk

__all__ = [
    "METHODS",
    "Attribution",
    "CellAttribution",
    "Filters",
    "InputError",
    "LayerInfo",
    "LayerTable",
    "Model",
    "Observation",
    "PixelAttribution",
    "Step",
    "Walk",
    "WindowAttribution",
    "__version__",
    "activations",
    "capture",
    "deconvnet",
    "default_layer",
    "filters",
    "grad_cam",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "layers",
    "models",
    "occlusion",
    "rename",
    "render",
    "saliency",
    "walk",
]
