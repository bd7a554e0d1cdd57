"""Where the parts meet: from a config to tasks, training runs, exports and cascades."""
