"""Keras itself, where it is installed: the package a model is made with, and models from files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from converters.keras_files import OF_KERAS_2, OLDEST_KERAS, is_of_keras_2
from torchviz_cnn.errors import InputError, NotInstalled

_INSTALL = 'python -m pip install "torchviz-cnn[keras]"'


def keras_of(model: Any, purpose: str) -> ModuleType:
    """The package a model is made with; Keras 3 for a file.

    Args:
        model: a Keras model, or the path of one.
        purpose: what Keras is needed for, as a sentence begins: ``"exporting"``.

    Raises:
        NotInstalled: where it is not installed or too old.
        InputError: where this is no model.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    old = sys.modules.get("tf_keras")
    if old is not None and isinstance(model, old.Model):
        return old
    try:
        import keras
    except ImportError as error:
        missing = "Keras" if error.name in (None, "keras") else f"Keras' back end {error.name}"
        raise NotInstalled(
            f"{purpose} needs Keras 3 with TensorFlow, and {missing} is not installed: {_INSTALL}"
        ) from None
    version = tuple(int(part) for part in keras.__version__.split(".")[:3] if part.isdigit())
    if version < OLDEST_KERAS:
        wanted = ".".join(map(str, OLDEST_KERAS))
        raise NotInstalled(
            f"Keras {keras.__version__} is installed, whose reading of files is not safe; "
            f'{wanted} or later is needed: python -m pip install -U "keras>={wanted}"'
        )
    if not isinstance(model, (str, os.PathLike, keras.Model)):
        raise InputError(
            f"export_keras takes a Keras model or the path of one, not {type(model).__name__}"
        )
    return keras


def backend_of(keras: ModuleType) -> str:
    return "tensorflow" if keras.__name__ == "tf_keras" else keras.backend.backend()


def need_exporter() -> None:
    try:
        import tf2onnx  # noqa: F401
    except ImportError:
        raise InputError(f"exporting needs tf2onnx, which is not installed: {_INSTALL}") from None


_CANNOT_READ = (ValueError, TypeError, KeyError, OSError, RuntimeError, AttributeError)


def load_keras(keras: ModuleType, path: Path) -> tuple[ModuleType, Any]:
    """A checked file's model and its package; Keras' own guard against code in files stays on."""
    try:
        return keras, keras.saving.load_model(path, compile=False, safe_mode=True)
    except _CANNOT_READ as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if path.suffix.lower() == ".keras" and is_of_keras_2(path):
            raise InputError(f"cannot read {str(path)!r}: {OF_KERAS_2}") from error
        if path.suffix.lower() == ".keras":
            raise InputError(f"Keras cannot read {str(path)!r}: {reason}") from error
    try:
        import tf_keras
    except ImportError:
        raise InputError(
            f"Keras 3 cannot read {str(path)!r}; if Keras 2 wrote it, python -m pip install "
            f"tf_keras may help: {reason}"
        ) from None
    try:
        return tf_keras, tf_keras.models.load_model(path, compile=False, safe_mode=True)
    except _CANNOT_READ as error:
        raise InputError(
            f"neither Keras 3 nor tf_keras can read {str(path)!r}: {reason}"
        ) from error
