"""The wire: messages, codec, websocket client. ``PROTOCOL.md`` is the specification."""
