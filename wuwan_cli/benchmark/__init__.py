"""What `wuwan bench` measures."""
