"""`yolact_measure`: what the node costs."""
