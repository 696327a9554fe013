"""Arrays to pictures: colour maps, grids, overlays, figures. Knows nothing of networks."""

from torchviz_cnn.render.bars import numbered, units, units_before_and_after
from torchviz_cnn.render.boxes import boxes
from torchviz_cnn.render.charts import confusion_matrix, training_curves
from torchviz_cnn.render.colormaps import check_colormap, colorize, colormap_for, limits
from torchviz_cnn.render.contact import contact_sheet
from torchviz_cnn.render.curves import curves_figure
from torchviz_cnn.render.enlarge import viewable
from torchviz_cnn.render.figures import (
    attribution_figure,
    color_scale,
    errors_figure,
    figure_picture,
    shares_figure,
    sheet,
)
from torchviz_cnn.render.grids import (
    Scale,
    before_and_after,
    check_scale,
    feature_map,
    feature_maps,
    strongest,
)
from torchviz_cnn.render.kernels import KernelScale, filters
from torchviz_cnn.render.overlays import masked, overlay, stretch
from torchviz_cnn.render.styles import style_figure

__all__ = [
    "KernelScale",
    "Scale",
    "attribution_figure",
    "before_and_after",
    "boxes",
    "check_colormap",
    "check_scale",
    "color_scale",
    "colorize",
    "colormap_for",
    "confusion_matrix",
    "contact_sheet",
    "curves_figure",
    "errors_figure",
    "feature_map",
    "feature_maps",
    "figure_picture",
    "filters",
    "limits",
    "masked",
    "numbered",
    "overlay",
    "shares_figure",
    "sheet",
    "stretch",
    "strongest",
    "style_figure",
    "training_curves",
    "units",
    "units_before_and_after",
    "viewable",
]
