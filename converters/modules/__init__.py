"""Torch modules for operators that torch has no module for, every setting of them fixed.

Those of onnx2torch for shapes read their settings from tensors at every call, which
``torch.export`` refuses.
"""
