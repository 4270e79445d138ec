"""The engine on the network: HTTP, and the life of a task."""
