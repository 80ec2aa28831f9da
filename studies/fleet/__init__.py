"""A fleet of devices on many verifiers: how many it takes, and what a token costs."""
