"""``python -m torchviz_cnn``: the command line, where its script is not on the path."""

from torchviz_cnn.cli import main

if __name__ == "__main__":
    main()
