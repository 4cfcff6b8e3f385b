"""Networks by OpenVINO, on the CPU."""
