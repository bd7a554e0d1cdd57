"""What one run optimises: contrastive CLIP, text-to-image, super-resolution."""
