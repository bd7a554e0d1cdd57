"""What is compared with what, one command each."""

from benchmarks.torchvision_import import make_importable

make_importable()
