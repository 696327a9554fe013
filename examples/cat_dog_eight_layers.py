"""The eight convolution and pooling layers of the cat-dog network, and two channels of the first.

Claims of "Visualizing representations of outputs/activations of each CNN layer", 3,453,121 parameters:
- the summary is the article's, name by name and number by number: printed, the total checked;
- the first layer puts out (1, 148, 148, 32), here (1, 32, 148, 148); its channels 6 and 15 are drawn
  in viridis. The article sees edges and the colour of eyes in them: here 6 answers to the flower's
  colour and 15 to edges from below, for which channel learns what is chance;
- early layers keep most of the picture, deeper ones are more abstract: all eight are drawn.
Kaggle's cats and dogs are a download: the network learns a flower from a temple here, with the
article's loss, optimizer and batch size, in far fewer steps.
"""

from common import arguments, photograph, trained

import torchviz_cnn as tvc


def main() -> None:
    """Train, print what the article prints, draw what it draws."""
    options = arguments(__doc__ or "", "cat_dog_eight_layers", "picture")
    model, accuracy = trained("cat_dog", steps=20, learning_rate=1e-4)
    print(f"{100 * accuracy:.0f} % of held-out crops are told apart")
    table = tvc.layers(model)
    print(table)
    assert table.parameters == 3_453_121

    picture = options.picture or photograph()
    img_tensor = model.prepare(picture)
    print(tuple(img_tensor.shape))
    model.view(picture).save(options.out / "input.png")
    layer_names = table.names[:8]
    activations = tvc.activations(model, img_tensor, layer_names)
    first_layer_activation = activations[layer_names[0]]
    print(tuple(first_layer_activation.shape))
    for channel in (6, 15):
        tvc.render.feature_map(
            first_layer_activation[0, channel],
            "viridis",
            title=f"{layer_names[0]}, channel {channel} (trained on flower and temple)",
        ).save(options.out / f"channel_{channel}.png")
    print(layer_names)
    for number, (name, maps) in enumerate(activations.items(), 1):
        title = f"layer {number}: {name}, {'×'.join(map(str, maps.shape[1:]))}"
        tvc.render.feature_maps(maps[0], 16, "viridis", title=title).save(
            options.out / f"layer_{number}_{name}.png"
        )


if __name__ == "__main__":
    main()
