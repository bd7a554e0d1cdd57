"""The biased diffusion process: schedules, marginals, steps, predictions, weights, bound."""
