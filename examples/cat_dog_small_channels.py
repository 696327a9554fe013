"""Single channels of the small cat-dog network, and whether sparsity increases with depth.

Claims of "Visualizing CNN Activations", a network of 66,000 parameters on 150×150 pictures:
- channel 5 of the first layer detects edges, channel 1 of the second parts (eyes, ears): drawn in
  viridis. Here the first does, the outline from one side; the second answers to the green ground;
- "sparsity of the activations increases with increase in the depth": not in this network. About 60,
  80, 70, 60 and 40 % of the values are 0 after its five ReLUs: some per cent more or less on another
  processor, with a rank correlation with depth below 0 (−0.4 and −0.7 were seen);
- the summary with every layer's name and shape: printed; 65,521 parameters.
The author's model.h5 and cat.jpg are not to be had: the same kind of network learns here to tell a
flower from a temple, in seconds.
"""

from common import arguments, photograph, trained

import torchviz_cnn as tvc


def main() -> None:
    """Train, look, count zeros."""
    options = arguments(__doc__ or "", "cat_dog_small_channels", "picture")
    model, accuracy = trained("cat_dog_small", steps=40, learning_rate=1e-3, seed=4)
    print(f"{100 * accuracy:.0f} % of held-out crops are told apart")
    print(tvc.layers(model))

    picture = options.picture or photograph()
    inputs = model.prepare(picture)
    names = tvc.layers(model).names[:8]
    activations = tvc.activations(model, inputs, names)
    for layer, channel in ((names[0], 5), (names[1], 1)):
        print(layer, tuple(activations[layer].shape))
        tvc.render.feature_map(
            activations[layer][0, channel],
            "viridis",
            title=f"{layer}, channel {channel} (trained on flower and temple)",
        ).save(options.out / f"{layer}_channel_{channel}.png")

    steps = tvc.walk(model, inputs, picture=picture)
    for each in steps.sparsity:
        print(f"{each.name}: {100 * each.zeros:.0f} % of the values are 0")
    print(f"rank correlation of sparsity with depth: {steps.sparsity_trend():.2f}")
    print(f"open {steps.save(options.out / 'layers')}")


if __name__ == "__main__":
    main()
