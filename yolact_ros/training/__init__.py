"""Training: data, augmentation, matching, losses, and the run itself."""
