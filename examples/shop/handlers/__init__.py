"""What the shop does about a request."""
