"""The machine below: files, buckets, signals, text from strangers."""
