"""Visual representations of what each layer of a CNN puts out; Grad-CAM on ResNet50, class 630.

Claims of "Visual representations of Outputs/Activations of each CNN layer", and what came out:
- activation functions let the parts through that contribute: the ReLUs of a digits network silence
  about 31 %, 81 % and 60 % of their units on this digit, drawn before and after;
- pooling keeps the vital features: every pooled map is drawn beside its map, half as large;
- activation maximisation makes the picture that excites a neuron most: that of the digit 3;
- Grad-CAM of class index 630, "Donut": ImageNet's class 630 is "Loafer", a shoe.
Not here: the network is trained on scikit-learn's digits in a minute, and ResNet50 has random
weights unless --weights default (a download), by which nothing speaks for 630: its map is 0
everywhere, so the one before the ReLU stands beside it. The digit's map lies on the strokes.
"""

from common import arguments, photograph

import torchviz_cnn as tvc
from torchviz_cnn.data import digits
from torchviz_cnn.demo import as_picture
from torchviz_cnn.training import digits_model

CLASS_INDEX = 630


def main() -> None:
    """Draw the layers, then Grad-CAM."""
    options = arguments(__doc__ or "", "outputs_of_each_layer", "picture", "weights")
    model, _ = digits_model()
    digit = digits().test[3]
    steps = tvc.walk(model, digit[None], picture=as_picture(digit))
    print(steps)
    for step in steps:
        if step.silenced:
            print(f"{step.name} silences {100 * step.silenced:.0f} % of its units")
    print(f"open {steps.save(options.out / 'layers', colormap='gray')}")

    resnet = tvc.models.load("resnet50", options.weights)
    picture = options.picture or photograph()
    note = "; ".join(resnet.notes) or "published weights"
    inputs = resnet.prepare(picture)
    result = tvc.grad_cam(resnet, inputs, target=CLASS_INDEX)
    signed = tvc.grad_cam(resnet, inputs, target=CLASS_INDEX, relu=False)
    of_digit = tvc.grad_cam(model, digit[None])
    print(result.title(), tuple(result.values.shape), note)
    drawn = {
        "picture": resnet.view(picture),
        result.title(): result.overlay(picture, colormap="jet"),
        "before its ReLU": signed.overlay(picture, alpha=0.7),
        of_digit.title(): of_digit.overlay(as_picture(digit), "jet", align="receptive_field"),
    }
    title = f"{note}; the digits network is trained"
    sheet = tvc.render.sheet([[*drawn.values()]], [*drawn], title=title)
    sheet.save(options.out / "grad_cam_630.png")

    best = tvc.maximize(model, layer="output_layer", channel=3, seed=0)
    tvc.render.viewable(best.image).save(options.out / "maximized_3.png")


if __name__ == "__main__":
    main()
