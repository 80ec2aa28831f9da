"""While it runs: recordings, marks, the live view, the exporter, calibration."""
