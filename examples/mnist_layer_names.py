"""Layers by name in the MNIST ConvNet: 32 maps of 26×26, 64 of 24×24, and renaming a layer.

Claims of the article on visualising the ConvNet of MNIST digits:
- "changing the name attribute of a layer should not affect the accuracy": every output is equal to
  the last bit, and so is the accuracy;
- 'conv_0' puts out 26×26×32, drawn 4 by 8 in gray; 'conv_1' puts out 24×24×64. The article draws
  32 of these; all 64 are drawn here, 8 by 8;
- some maps of the second layer answer to the digit's strokes, most are noisy: look and see.
Not here: MNIST itself is a download; scikit-learn's 1,797 digits, enlarged to 28×28, are not.
"""

import torch
from common import arguments

import torchviz_cnn as tvc
from torchviz_cnn.data import digits
from torchviz_cnn.training import accuracy, digits_model


def main() -> None:
    """Rename, compare, draw two grids."""
    options = arguments(__doc__ or "", "mnist_layer_names")
    model, _ = digits_model()
    data = digits()
    print(tvc.layers(model))

    picture = data.train[2][None]
    with torch.no_grad():
        outputs = model(data.test)
    before = accuracy(model.module, data.test, data.test_labels)
    tvc.rename(model, {"input_layer": "conv_0"})
    print(tvc.layers(model)[0].name)
    with torch.no_grad():
        assert torch.equal(model(data.test), outputs)
    after = accuracy(model.module, data.test, data.test_labels)
    print(f"accuracy {before:.4f} before renaming and {after:.4f} after; every output is equal")

    for layer, rows, columns in (("conv_0", 4, 8), ("conv_1", 8, 8)):
        maps = tvc.activations(model, picture, layer)[layer]
        count, *size = maps.shape[1:]
        print(layer, tuple(maps.shape))
        assert count == rows * columns
        tvc.render.feature_maps(
            maps[0], columns, "gray", title=f"{layer}: {count} maps of {size[0]}×{size[1]}"
        ).save(options.out / f"{layer}.png")


if __name__ == "__main__":
    main()
