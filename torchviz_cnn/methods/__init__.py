"""The attribution methods: one file per idea, one function per method, one table of them all."""

# isort: off
# Methods stand in METHODS, and so in every list of them, in the order they are imported: what the
# gradient says, where the network looks, what the score cannot do without.
from torchviz_cnn.methods.gradient import saliency, input_x_gradient, guided_backprop, deconvnet
from torchviz_cnn.methods.averages import smooth_grad, integrated_gradients
from torchviz_cnn.methods.cam import (
    grad_cam,
    hires_cam,
    layer_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
)
from torchviz_cnn.methods.masking import score_cam
from torchviz_cnn.methods.perturbation import occlusion
from torchviz_cnn.methods.registry import METHODS
from torchviz_cnn.methods.together import explain
# isort: on

__all__ = [
    "METHODS",
    "deconvnet",
    "explain",
    "grad_cam",
    "grad_cam_plus_plus",
    "guided_backprop",
    "guided_grad_cam",
    "hires_cam",
    "input_x_gradient",
    "integrated_gradients",
    "layer_cam",
    "occlusion",
    "saliency",
    "score_cam",
    "smooth_grad",
]
