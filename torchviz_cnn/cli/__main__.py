"""``python -m torchviz_cnn.cli``."""

from torchviz_cnn.cli import main

main()
