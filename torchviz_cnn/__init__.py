"""What is this convolutional network looking at?

Opens up any CNN by its named layers: feature maps, filters, saliency, guided backpropagation,
Grad-CAM, occlusion.
"""

import torchviz_cnn.beside_tensorflow  # noqa: F401  (before torch's counter of operations)
from torchviz_cnn import models, objectives, render
from torchviz_cnn.attribution import (
    Attribution,
    CellAttribution,
    PathAttribution,
    PixelAttribution,
    WindowAttribution,
)
from torchviz_cnn.errors import InputError
from torchviz_cnn.fields import ReceptiveField, receptive_field
from torchviz_cnn.kernels import Filters, filters
from torchviz_cnn.methods import (
    METHODS,
    deconvnet,
    explain,
    grad_cam,
    grad_cam_plus_plus,
    guided_backprop,
    guided_grad_cam,
    hires_cam,
    input_x_gradient,
    integrated_gradients,
    layer_cam,
    occlusion,
    saliency,
    score_cam,
    smooth_grad,
)
from torchviz_cnn.methods.maximization import maximize
from torchviz_cnn.methods.maximized import Maximization
from torchviz_cnn.models import Model
from torchviz_cnn.naming import rename
from torchviz_cnn.objectives import Objective
from torchviz_cnn.observe import Observation, activations, capture
from torchviz_cnn.retrieval import Patch, Patches, patches
from torchviz_cnn.steps import Step, Walk
from torchviz_cnn.summary import LayerInfo, LayerTable, layers
from torchviz_cnn.texture import StyleComparison, gram_matrix, style_distance, style_layers
from torchviz_cnn.tracing import default_layer
from torchviz_cnn.version import __version__
from torchviz_cnn.walking import walk

__all__ = [
    "METHODS",
    "Attribution",
    "CellAttribution",
    "Filters",
    "InputError",
    "LayerInfo",
    "LayerTable",
    "Maximization",
    "Model",
    "Objective",
    "Observation",
    "Patch",
    "Patches",
    "PathAttribution",
    "PixelAttribution",
    "ReceptiveField",
    "Step",
    "StyleComparison",
    "Walk",
    "WindowAttribution",
    "__version__",
    "activations",
    "capture",
    "deconvnet",
    "default_layer",
    "explain",
    "filters",
    "grad_cam",
    "grad_cam_plus_plus",
    "gram_matrix",
    "guided_backprop",
    "guided_grad_cam",
    "hires_cam",
    "input_x_gradient",
    "integrated_gradients",
    "layer_cam",
    "layers",
    "maximize",
    "models",
    "objectives",
    "occlusion",
    "patches",
    "receptive_field",
    "rename",
    "render",
    "saliency",
    "score_cam",
    "smooth_grad",
    "style_distance",
    "style_layers",
    "walk",
]
