"""What layers keep from call to call.

`cache` has the types and `cache_tokens` counts what they hold; `cached_keys`
attends to the part that is in use, `period_caches` serves layers that a model
scans.
"""
