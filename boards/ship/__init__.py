"""What a board is supplied with: bundles, their wheels, and who signs them."""
