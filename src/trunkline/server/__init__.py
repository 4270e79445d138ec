"""The engine on the network: HTTP, gRPC, and the life of a task."""
