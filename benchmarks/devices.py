"""The most operations a second that a device can do."""

# Dense bfloat16 operations per second with float32 accumulation, by NVIDIA's data sheets. The
# first name that is part of a device's name counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of a device of this name, or None for one that the table does not have."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)
