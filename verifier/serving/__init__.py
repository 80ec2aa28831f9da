"""The process around the streams: listening, who may come in, connections, metrics."""
