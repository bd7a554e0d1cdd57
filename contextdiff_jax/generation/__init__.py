"""From an export and requests to pictures: the cascade, resumable output."""
