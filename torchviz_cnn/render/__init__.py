"""Arrays to pictures: colour maps, grids, overlays, figures. Knows nothing of networks."""

from torchviz_cnn.render.colormaps import check_colormap, colorize, colormap_for
from torchviz_cnn.render.enlarge import viewable
from torchviz_cnn.render.figures import attribution_figure, color_scale, errors_figure, sheet
from torchviz_cnn.render.grids import Scale, feature_maps, units
from torchviz_cnn.render.overlays import masked, overlay, stretch

__all__ = [
    "Scale",
    "attribution_figure",
    "check_colormap",
    "color_scale",
    "colorize",
    "colormap_for",
    "errors_figure",
    "feature_maps",
    "masked",
    "overlay",
    "sheet",
    "stretch",
    "units",
    "viewable",
]
