"""The Log Anticipation Service: the shard map's owner, which foresees failures and plans for them."""
