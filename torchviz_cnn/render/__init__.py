"""Arrays to pictures: colour maps, grids, overlays, figures. Knows nothing of networks."""

from torchviz_cnn.render.colormaps import colorize
from torchviz_cnn.render.figures import attribution_figure, sheet
from torchviz_cnn.render.grids import feature_maps, units
from torchviz_cnn.render.overlays import masked, overlay, stretch

__all__ = [
    "attribution_figure",
    "colorize",
    "feature_maps",
    "masked",
    "overlay",
    "sheet",
    "stretch",
    "units",
]
