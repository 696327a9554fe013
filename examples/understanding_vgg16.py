"""Occlusion, masked occlusion, saliency, guided saliency, Grad-CAM and layer outputs of VGG16.

Claims of "A Guide to Understanding Convolutional Neural Networks using Visualization":
- only the parts that contributed to the class remain visible: occlusion, and the picture masked;
- a saliency map has the shape of the picture: (1, 3, 224, 224), checked;
- guided backpropagation truncates negative gradients to 0, at every ReLU on the way; the map at the
  picture keeps both signs: checked;
- the feature map is 14×14×512 and Grad-CAM is four steps: written out here, and equal;
- early layers keep edges, later ones parts: ten convolutions of blocks 1 to 4, block 5 left out.
Random weights unless --weights default or a file: 14×14×512 holds and the layers' outputs can be
seen to coarsen, while what speaks for a class is chance. The pictures say so.
"""

import torch
from common import arguments, photograph

import torchviz_cnn as tvc

BLOCKS_1_TO_4 = [f"features.{i}" for i in (1, 3, 6, 8, 11, 13, 15, 18, 20, 22)]  # after the ReLU


def main() -> None:
    """Draw."""
    options = arguments(__doc__ or "", "understanding_vgg16", "picture", "weights")
    model = tvc.models.load("vgg16", options.weights)
    picture = options.picture or photograph()
    inputs = model.prepare(picture)
    weights = "; ".join(model.notes) or "published weights"

    occlusion = tvc.occlusion(model, inputs, window=48, stride=32)
    saliency = tvc.saliency(model, inputs)
    guided = tvc.guided_backprop(model, inputs)
    assert saliency.values.shape == inputs.shape
    assert bool((guided.values < 0).any())
    with tvc.capture(model, "features.29", gradients=True) as seen:
        model(inputs)[0, occlusion.target[0]].backward()  # the gradient of the output …
    model.module.zero_grad(set_to_none=True)
    maps, gradient = seen["features.29"][0], seen.gradients["features.29"][0]
    pooled = gradient.mean((1, 2))  # … averaged over places, times the maps, summed
    by_hand = torch.einsum("c,chw->hw", pooled, maps).relu()
    cam = tvc.grad_cam(model, inputs)
    torch.testing.assert_close(by_hand, cam.values[0], rtol=1e-3, atol=1e-7)
    print(f"feature map {tuple(maps.shape)}, {cam.title()}; by hand the same")
    drawn = {
        "occlusion": occlusion.overlay(picture),
        "masked occlusion": occlusion.masked(picture, keep=0.25),
        "saliency": saliency.overlay(picture, colormap="gray", alpha=1.0),
        "guided saliency": guided.overlay(picture, colormap="gray", alpha=1.0),
        "Grad-CAM": cam.overlay(picture),
    }
    row, names = [model.view(picture), *drawn.values()], ["picture", *drawn]
    sheet = tvc.render.sheet([row], names, title=f"class {cam.label()}: {weights}")
    sheet.save(options.out / "explanations.png")
    steps = tvc.walk(model, inputs, BLOCKS_1_TO_4, picture=picture)
    print(f"open {steps.save(options.out / 'layers', top=16, by='variance')}")


if __name__ == "__main__":
    main()
