"""The worker towards its clients: connections, and when it ends."""
