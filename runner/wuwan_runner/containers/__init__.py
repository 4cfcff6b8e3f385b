"""Docker: the daemon, images, and containers that can reach nothing but what they are handed."""
