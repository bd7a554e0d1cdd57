"""What is compared with what, one command each."""

from tests.oracles.torchvision_import import make_importable

make_importable()
