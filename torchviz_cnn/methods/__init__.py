"""The attribution methods: one file per idea, one function per method, one table of them all."""

from torchviz_cnn.methods.cam import grad_cam, guided_grad_cam
from torchviz_cnn.methods.gradient import deconvnet, guided_backprop, input_x_gradient, saliency
from torchviz_cnn.methods.perturbation import occlusion
from torchviz_cnn.methods.registry import METHODS

__all__ = [
    "METHODS",
    "deconvnet",
    "grad_cam",
    "guided_backprop",
    "guided_grad_cam",
    "input_x_gradient",
    "occlusion",
    "saliency",
]
