"""The networks of the tutorials this library grew out of, with their layers' names.

A layer is one module whose output is what Keras calls the layer's output, after its activation. Its
parts are ``conv2d_1.conv`` (or ``.dense``) and ``conv2d_1.act``, so that before and after can be
compared. Weights start as Keras' do: Glorot uniform, biases zero.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from torchviz_cnn.overwriting import Layer

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class WeightedLayer(Layer):
    """One named layer made of parts: a weighted operation and the activation after it."""

    def __init__(self, part: str, operation: nn.Conv2d | nn.Linear, activation: str | None) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict([(part, operation)])
        if activation == "softmax":
            parts["act"] = nn.Softmax(dim=1)
        elif activation is not None:
            parts["act"] = _ACTIVATIONS[activation]()
        super().__init__(parts)
        nn.init.xavier_uniform_(operation.weight)
        if operation.bias is not None:
            nn.init.zeros_(operation.bias)


class Conv2D(WeightedLayer):
    """A 3×3 convolution without padding, and a ReLU."""

    layer_type = "Conv2D"

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__("conv", nn.Conv2d(channels_in, channels_out, 3), "relu")


class Dense(WeightedLayer):
    """A linear layer and its activation."""

    layer_type = "Dense"

    def __init__(self, features_in: int, features_out: int, activation: str = "relu") -> None:
        super().__init__("dense", nn.Linear(features_in, features_out), activation)


class MaxPooling2D(nn.MaxPool2d):
    """2×2 max pooling."""

    def __init__(self) -> None:
        super().__init__(2)


def _classifier(features_in: int, outputs: int) -> Dense:
    """The last layer: one output is a sigmoid's, several are a softmax's."""
    return Dense(features_in, outputs, "sigmoid" if outputs == 1 else "softmax")


class MnistConvNet(nn.Sequential):
    """The MNIST ConvNet: ``(N, 1, 28, 28)`` -> ``(N, 10)`` probabilities; 1,199,882 parameters.

    Args:
        outputs: one for two classes, else one a class.
    """

    def __init__(self, outputs: int = 10) -> None:
        super().__init__(
            OrderedDict(
                input_layer=Conv2D(1, 32),
                conv_1=Conv2D(32, 64),
                pool_1=MaxPooling2D(),
                dropout_1=nn.Dropout(0.25),
                flate_1=nn.Flatten(),
                dense_1=Dense(64 * 12 * 12, 128),
                dropout_2=nn.Dropout(0.5),
                output_layer=_classifier(128, outputs),
            )
        )


class CatDog(nn.Sequential):
    """The cats-against-dogs CNN: ``(N, 3, 150, 150)`` -> ``(N, 1)``, the probability of a dog.

    Args:
        channels: of the four convolutions.
        hidden: units of the first dense layer.
        outputs: one for two classes, else one a class.
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = (32, 64, 128, 128),
        hidden: int = 512,
        outputs: int = 1,
    ) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        before = 3
        for number, after in enumerate(channels, start=1):
            parts[f"conv2d_{number}"] = Conv2D(before, after)
            parts[f"max_pooling2d_{number}"] = MaxPooling2D()
            before = after
        parts["flatten_1"] = nn.Flatten()
        parts["dense_1"] = Dense(before * 7 * 7, hidden)
        parts["dense_2"] = _classifier(hidden, outputs)
        super().__init__(parts)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Sequential's name
        output: Tensor = super().forward(input)
        return output


def cat_dog(outputs: int = 1) -> CatDog:
    """The network as its tutorial prints it: 3,453,121 parameters."""
    return CatDog(outputs=outputs)


def cat_dog_small(outputs: int = 1) -> CatDog:
    """The small one, of about 66,000 parameters: 65,521."""
    return CatDog((8, 16, 32, 32), 32, outputs)
