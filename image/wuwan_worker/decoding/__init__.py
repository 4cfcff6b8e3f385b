"""The formats: from a file's bytes to a picture, one module a container format.

`decode` chooses among them and prepares the picture for the network.
"""
