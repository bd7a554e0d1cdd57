"""What x0 lives in: pixels, or the latents of a first stage."""
