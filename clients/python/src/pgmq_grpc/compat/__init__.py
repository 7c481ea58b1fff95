"""Interfaces of other queues' Python packages, over gRPC: a program moves by changing its imports and the address."""
