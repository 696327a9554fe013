"""Arrays to pictures: colour maps, grids, overlays, figures. Knows nothing of networks."""

from torchviz_cnn.render.boxes import boxes
from torchviz_cnn.render.colormaps import check_colormap, colorize, colormap_for
from torchviz_cnn.render.contact import contact_sheet
from torchviz_cnn.render.curves import curves_figure
from torchviz_cnn.render.enlarge import viewable
from torchviz_cnn.render.figures import attribution_figure, color_scale, errors_figure, sheet
from torchviz_cnn.render.grids import Scale, feature_maps, units
from torchviz_cnn.render.overlays import masked, overlay, stretch
from torchviz_cnn.render.styles import style_figure

__all__ = [
    "Scale",
    "attribution_figure",
    "boxes",
    "check_colormap",
    "color_scale",
    "colorize",
    "colormap_for",
    "contact_sheet",
    "curves_figure",
    "errors_figure",
    "feature_maps",
    "masked",
    "overlay",
    "sheet",
    "stretch",
    "style_figure",
    "units",
    "viewable",
]
