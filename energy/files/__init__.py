"""Files that hold power: ours, tegrastats logs, and those of meters."""
