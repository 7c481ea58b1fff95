"""The client for asyncio. The one for threads in `_sync` is made of it by make_sync.py."""
