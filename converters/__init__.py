"""Networks from files of other frameworks: Keras models exported to ONNX become torch modules."""

from torchviz_cnn.beside_tensorflow import leave_triton_out

leave_triton_out()  # onnx2torch imports torchvision

from converters.beside_keras import compare_with_keras
from converters.beside_torch import compare_with_torch
from converters.comparison import compare
from converters.export import Export, export_keras
from converters.importer import LayerRecord, Source, load_onnx
from converters.trust import Limits
from converters.verdicts import Comparison, LayerComparison
from converters.wiring import ImportedNetwork

__all__ = [
    "Comparison",
    "Export",
    "ImportedNetwork",
    "LayerComparison",
    "LayerRecord",
    "Limits",
    "Source",
    "compare",
    "compare_with_keras",
    "compare_with_torch",
    "export_keras",
    "load_onnx",
]

# Tells this package from another one that happens to be called converters.
__torchviz_cnn__ = True
