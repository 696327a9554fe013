"""Visual representations of what each layer of a CNN puts out; Grad-CAM on ResNet50, class 630.

Claims of "Visual representations of Outputs/Activations of each CNN layer", and what came out:
- activation functions let the parts through that contribute: the ReLUs of a digits network silence
  31 %, 81 % and 60 % of their units on this digit, drawn before and after;
- pooling keeps the vital features: every pooled map is drawn beside its map, half as large;
- class index 630 is "Donut": it is not. ImageNet's class 630 is "Loafer", a shoe.
The page also has the input, the dense layers as strips and bars, and the class scores.
Not here: the network is trained on scikit-learn's digits in a minute, and ResNet50 has random
weights unless --weights default (a download): its map then shows how, not where.
"""

from common import arguments, photograph

import torchviz_cnn as tvc
from torchviz_cnn.data import digits
from torchviz_cnn.demo import as_picture
from torchviz_cnn.training import digits_model

CLASS_INDEX = 630


def main() -> None:
    """Draw both."""
    options = arguments(__doc__ or "", "outputs_of_each_layer")
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
    result = tvc.grad_cam(resnet, resnet.prepare(picture), target=CLASS_INDEX)
    note = "; ".join(resnet.notes)
    print(result.title(), tuple(result.values.shape), note)
    result.overlay(picture, colormap="jet").save(options.out / "superimposed.png")
    tvc.render.sheet(
        [[resnet.view(picture), result.overlay(picture, colormap="jet")]],
        ["picture", f"{result.title()}, jet"],
        title=note or "published weights",
        cell=320,
    ).save(options.out / "grad_cam_630.png")

    if hasattr(tvc, "maximize"):  # the conclusion's activation maximisation
        best = tvc.maximize(model, layer="output_layer", channel=3, seed=0)
        print(f"the network's idea of a 3: activation {best.history[-1]:.2f}")
        best.save(options.out / "maximized_3.png")


if __name__ == "__main__":
    main()
