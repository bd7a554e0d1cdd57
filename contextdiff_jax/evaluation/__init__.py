"""What finished models are measured by."""
