"""draftwire in a ROS 2 graph."""
