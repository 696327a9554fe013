"""Training a network on the user's own pictures, as the tutorials do before they look inside it.

``torchviz-cnn train`` and :func:`train` run the tutorials' recipe, :func:`fit` that on pictures and a
network of the caller's own; the loop itself is Lightning's, and is imported only when a run begins. ``digits`` trains the demo's network, without Lightning.
"""

from torchviz_cnn.cache import cache_folder
from torchviz_cnn.training.augment import Augmentation
from torchviz_cnn.training.digits import accuracy, digits_model, train_digits
from torchviz_cnn.training.fit import Run, fit
from torchviz_cnn.training.plan import Settings
from torchviz_cnn.training.runs import train

__all__ = [
    "Augmentation",
    "Run",
    "Settings",
    "accuracy",
    "cache_folder",
    "digits_model",
    "fit",
    "train",
    "train_digits",
]
