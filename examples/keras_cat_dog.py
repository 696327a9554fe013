"""The cats-against-dogs network of the Keras tutorials, from Keras to a Grad-CAM in torch.

Builds the network as the tutorial prints it (3,453,121 parameters), or loads one you have trained,
exports it to ONNX, imports it, proves layer by layer that it computes the same, and looks at one
picture with it. Needs Keras:

    python -m pip install -e ".[keras,compare]"
    python examples/keras_cat_dog.py cat.jpg
    python examples/keras_cat_dog.py cat.jpg --trained cats_and_dogs_small_1.h5

Without --trained the weights are random: the proof is as good, the map shows nothing learnt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import converters
import torchviz_cnn as tvc


def build() -> Any:
    """The tutorial's ``Sequential`` model, as it stands there."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((150, 150, 3)),
            layers.Conv2D(32, (3, 3), activation="relu", name="conv2d_1"),
            layers.MaxPooling2D((2, 2), name="max_pooling2d_1"),
            layers.Conv2D(64, (3, 3), activation="relu", name="conv2d_2"),
            layers.MaxPooling2D((2, 2), name="max_pooling2d_2"),
            layers.Conv2D(128, (3, 3), activation="relu", name="conv2d_3"),
            layers.MaxPooling2D((2, 2), name="max_pooling2d_3"),
            layers.Conv2D(128, (3, 3), activation="relu", name="conv2d_4"),
            layers.MaxPooling2D((2, 2), name="max_pooling2d_4"),
            layers.Flatten(name="flatten_1"),
            layers.Dense(512, activation="relu", name="dense_1"),
            layers.Dense(1, activation="sigmoid", name="dense_2"),
        ]
    )


def main() -> None:
    """Export, import, compare, explain."""
    parser = argparse.ArgumentParser(description="A Keras network, looked into with torch.")
    parser.add_argument("picture")
    parser.add_argument("--trained", help="a .h5 or .keras file of the network, trained")
    parser.add_argument("--layer", default="conv2d_4")
    parser.add_argument("--out", default="keras_cat_dog", type=Path)
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "cat_dog.onnx"
    exported = converters.export_keras(options.trained or build(), file)
    print(f"{file}: {len(exported.layers)} layers of {exported.exporter}")

    model = tvc.models.load(str(file), preprocess="rescale", classes=["cat", "dog"])
    print(tvc.layers(model))
    inputs = model.prepare(options.picture)
    comparison = converters.compare(file, inputs=inputs)
    print(comparison)

    result = tvc.grad_cam(model, inputs, layer=options.layer)
    print(result.title())
    result.save(options.out / "grad_cam.png", options.picture)
    feature_maps = tvc.activations(model, inputs, "conv2d_1")["conv2d_1"][0]
    tvc.render.feature_maps(feature_maps, title="conv2d_1").save(options.out / "conv2d_1.png")
    print(f"pictures in {options.out}")


if __name__ == "__main__":
    main()
