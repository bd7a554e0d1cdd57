"""A list of training runs in order: building, resuming, preparing, exporting."""
