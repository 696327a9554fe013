"""Networks from files of other frameworks: Keras models exported to ONNX become torch modules."""

# Tells this package from another one that happens to be called converters.
__torchviz_cnn__ = True
