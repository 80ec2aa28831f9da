"""Both ends in virtual time: hours of a link in seconds of a processor."""
