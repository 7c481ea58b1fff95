"""The client for threads. All but `io.py` is made of `_async` by make_sync.py."""
