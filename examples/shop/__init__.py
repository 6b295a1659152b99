"""The order desk of a small web shop: run it with ``python -m examples.shop``.

Read it in this order: ``messages`` (what can be asked and what happens), ``handlers`` and ``payments`` (what is done
about it), ``fulfilment`` and ``partners`` (how an order gets to its customer), ``read_model`` (what is kept for
reading), ``application`` (how it is put together).
"""
